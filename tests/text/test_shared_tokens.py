"""Tokens matched by what they stand for."""

import pytest

from text import tokenizers
from text.shared_tokens import shared_tokens

TEXTS = ["the cat sat on the mat", "a café"]


def encoded(tokenizer, text):
    return tokenizer.encode(text).tolist()


@pytest.mark.parametrize("kind", ["char", "byte", "bpe", "word"])
def test_the_same_tokenizer_shares_all(kind):
    tokenizer = tokenizers.train(kind, TEXTS, 300)
    found = shared_tokens(tokenizer, tokenizer)
    assert found.tolist() == list(range(tokenizer.vocab_size))


def test_letters_are_matched_across_alphabets():
    old, new = (tokenizers.train("char", [text, text]) for text in ("abcd", "bdxz"))
    assert shared_tokens(old, new).tolist() == [1, 3, -1, -1, 4]  # b, d, x, z and the end


def test_letters_are_matched_with_sub_words_of_the_same_bytes():
    old, new = tokenizers.train("bpe", TEXTS, 300), tokenizers.train("char", TEXTS)
    found = shared_tokens(old, new)
    for letter in "the catsonm":
        assert found[encoded(new, letter)[0]] == encoded(old, letter)[0]
    assert found[encoded(new, "é")[0]] in (-1, *encoded(old, "é"))  # two bytes, unless joined
    assert found[new.end_id] == old.end_id


def test_ends_of_documents_are_the_same_by_any_name():
    old = tokenizers.word_tokenizer(["one", "two"])
    text = old.to_json().replace("<end>", "<|endoftext|>")
    assert shared_tokens(old, tokenizers.from_json(text)).tolist() == [0, 1, 2]


def test_nothing_may_be_shared():
    old, new = (tokenizers.train("char", [text]) for text in ("ab", "xy"))
    assert shared_tokens(old, new).tolist() == [-1, -1]
