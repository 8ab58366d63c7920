"""Tokenizers: losslessness, byte counts, vocabularies, saved files, and users' mistakes."""

import json

import numpy as np
import pytest
import tokenizers as hf
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import UserError
from text import tokenizers
from text.tokenizers import Tokenizer

ENGLISH = ["the cat sat on the mat .", "the hat of the cat is flat ."] * 20
BYTE = tokenizers.train("byte", [])
BPE = tokenizers.train("bpe", ENGLISH, 270)


@given(st.text())
@pytest.mark.parametrize("tokenizer", [BYTE, BPE], ids=["byte", "bpe"])
def test_any_unicode_comes_back_and_counts_its_bytes(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode())


@given(st.text())
def test_bytes_are_their_own_ids(text: str) -> None:
    assert BYTE.encode(text).tolist() == list(text.encode())


@given(st.text(min_size=1))
def test_characters_are_those_of_the_text_in_sorted_order(text: str) -> None:
    tokenizer = tokenizers.train("char", [text])
    characters = sorted(set(text))
    ids = tokenizer.encode(text)
    assert tokenizer.vocab_size == len(characters)
    assert tokenizer.end_id is None
    assert ids.tolist() == [characters.index(character) for character in text]
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode())


@given(st.lists(st.text("abcé.,", min_size=1), min_size=1))
def test_words_are_joined_by_single_spaces(words: list[str]) -> None:
    text = " ".join(words)
    tokenizer = tokenizers.train("word", [text])
    ids = tokenizer.encode(text)
    assert len(ids) == len(words)
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode()) + 1


def test_end_comes_last_where_documents_need_it() -> None:
    assert (BYTE.vocab_size, BYTE.end_id) == (257, 256)
    assert (BPE.vocab_size, BPE.end_id) == (270, 269)
    words = tokenizers.train("word", ["b a", "c"])
    assert (words.vocab_size, words.end_id) == (4, 3)
    characters = tokenizers.train("char", ["ba", "c"])
    assert (characters.vocab_size, characters.end_id) == (4, 3)
    for tokenizer in (BYTE, BPE, words, characters):
        assert tokenizer.end_id is not None
        assert tokenizer.token_text(tokenizer.end_id) == "<end>"
        assert tokenizer.token_bytes()[tokenizer.end_id] == 0


def test_end_in_a_text_is_text_unless_special_tokens_are_read() -> None:
    text = "a<end>b"
    for tokenizer in (BYTE, BPE):
        assert tokenizer.end_id not in tokenizer.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert list(tokenizer.encode(text, special=True)).count(tokenizer.end_id) == 1
    words = tokenizers.train("word", ["a b"])
    assert words.encode("a <end> b", special=True).tolist() == [0, 2, 1]
    assert words.decode([0, 2, 1]) == "a <end> b"
    with pytest.raises(UserError, match="word '<end>' at position 1"):
        words.encode("a <end> b")
    characters = tokenizers.train("char", ["ab", "b"])
    assert characters.encode("a<end>b", special=True).tolist() == [0, 2, 1]


@pytest.mark.parametrize("kind", ["word", "char", "byte", "bpe"])
def test_saved_tokenizer_loads_the_same(kind: str, tmp_path) -> None:
    tokenizer = tokenizers.train(kind, ENGLISH, 270)
    path = tmp_path / "folder" / "tokenizer.json"
    tokenizer.save(path)
    loaded = tokenizers.load(path)
    assert [file.name for file in path.parent.iterdir()] == ["tokenizer.json"]
    assert loaded.kind == kind
    assert (loaded.vocab_size, loaded.end_id) == (tokenizer.vocab_size, tokenizer.end_id)
    assert loaded.to_json() == tokenizer.to_json()
    assert loaded.encode(ENGLISH[0]).tolist() == tokenizer.encode(ENGLISH[0]).tolist()
    assert loaded.token_bytes().tolist() == tokenizer.token_bytes().tolist()
    # The library itself reads the same file.
    plain = hf.Tokenizer.from_file(str(path))
    assert plain.encode(ENGLISH[0]).ids == tokenizer.encode(ENGLISH[0]).tolist()


def test_training_twice_gives_the_same_tokenizer() -> None:
    assert tokenizers.train("bpe", ENGLISH, 270).to_json() == BPE.to_json()


def test_long_texts_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "añb" * 50
    characters = tokenizers.train("char", [text])
    whole = [tokenizer.encode(text).tolist() for tokenizer in (BYTE, characters)]
    monkeypatch.setattr(tokenizers, "_PIECE", 7)
    assert [tokenizer.encode(text).tolist() for tokenizer in (BYTE, characters)] == whole


def test_batches_are_the_texts_one_by_one() -> None:
    texts = ["the cat", "", "é"]
    batch = BPE.encode_batch(texts)
    assert [ids.tolist() for ids in batch] == [BPE.encode(text).tolist() for text in texts]


def test_bytes_of_letters_are_those_of_the_library() -> None:
    encode = hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    table = tokenizers._byte_of_letter()
    assert sorted(table) == sorted(hf.pre_tokenizers.ByteLevel.alphabet())
    for character in "aé€😀\n\x00 ":
        ((letters, _),) = encode.pre_tokenize_str(character)
        assert bytes(table[letter] for letter in letters) == character.encode()


def gpt2_like(end: str) -> str:
    """A byte-level tokenizer.json as published for GPT-2, with 270 tokens and an end token."""
    inner = hf.Tokenizer(hf.models.BPE())
    inner.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = hf.decoders.ByteLevel()
    inner.post_processor = hf.processors.ByteLevel(trim_offsets=False)
    trainer = hf.trainers.BpeTrainer(
        vocab_size=270,
        special_tokens=[end],
        initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(ENGLISH, trainer)
    return inner.to_str()


@pytest.mark.parametrize("end", ["<|endoftext|>", "</s>", "<end>"])
def test_tokenizer_made_elsewhere(end: str) -> None:
    tokenizer = tokenizers.from_json(gpt2_like(end))
    text = "the cat é 😀\n"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode())
    assert tokenizer.end_id == 0
    assert tokenizer.token_bytes()[0] == 0


def test_token_text_shows_parts_of_characters_as_bytes() -> None:
    assert BYTE.token_text(ord("a")) == "a"
    assert BYTE.token_text(0xC3) == "\\xc3"
    assert " the" in [BPE.token_text(i) for i in range(BPE.vocab_size)]


def test_mistakes_are_told_in_one_sentence(tmp_path) -> None:
    characters = tokenizers.train("char", ["abc"])
    words = tokenizers.train("word", ["cat hat"])
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps({"model": 1}))
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe")
    for call, message in [
        (lambda: characters.encode("abxc"), "character 'x' at position 2"),
        (lambda: words.encode("cat bat"), r"word 'bat' at position 1 .*did you mean"),
        (lambda: words.decode([7]), "id 7 is outside the vocabulary of 3"),
        (lambda: words.token_text(-1), "id -1 is outside"),
        (lambda: tokenizers.train("chars", ["a"]), "no tokenizer kind 'chars'.*'char'"),
        (lambda: tokenizers.train("char", []), "corpus is empty"),
        (lambda: tokenizers.train("word", ["  "]), "corpus is empty"),
        (lambda: tokenizers.train("bpe", ["a"], 256), "data.tokenizer_vocab_size: 256 .* 257"),
        (
            lambda: tokenizers.train("bpe", ["a"], 10**20),
            "10{20} is too many .* at most 16,777,216",
        ),
        (lambda: tokenizers.train("bpe", ["a"]), "data.tokenizer_vocab_size"),
        (lambda: tokenizers.load(tmp_path / "none.json"), "none.json.* cannot be read"),
        (lambda: tokenizers.load(binary), "it is not UTF-8"),
        (lambda: tokenizers.load(broken), "no valid tokenizer.json"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert str(caught.value).endswith(".")


def test_a_file_that_leaves_optional_keys_out_is_read() -> None:
    bare = '{"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}}'
    assert tokenizers.from_json(bare).encode("ab").tolist() == [0, 1]
