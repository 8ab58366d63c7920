"""Texts are continued as their tokens are."""

import functools

import numpy as np
import pytest

from configs.errors import UserError
from tests.model import small
from text import tokenizers
from train.decoding import continue_tokens
from train.sample import continue_texts
from train.sampler import Sampler

GREEDY = Sampler(temperature=0.0)
# And "<end>".
WORDS = tokenizers.word_tokenizer(["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"])


@functools.cache
def model():
    return small.drawn(small.config(num_layers=1, mlp="none", max_length=96))


def test_texts_are_tokens_after_the_end_of_a_document():
    prompts = ["a b", "j"]
    ids = [np.array([10, 0, 1], np.int32), np.array([10, 9], np.int32)]
    tokens = continue_tokens(model(), ids, 12, GREEDY, end_id=10)
    texts = continue_texts(model(), WORDS, prompts, 12, GREEDY)
    for text, new in zip(texts, tokens, strict=True):
        assert text.split() == [chr(ord("a") + t) for t in new]
        assert text.startswith(" ") or not text


def test_an_empty_prompt_begins_a_document():
    (text,) = continue_texts(model(), WORDS, [""], 12, GREEDY)
    (tokens,) = continue_tokens(model(), [np.array([10], np.int32)], 12, GREEDY, end_id=10)
    assert text.split() == [chr(ord("a") + t) for t in tokens]


def test_a_continuation_ends_before_the_stop_text():
    (free,) = continue_texts(model(), WORDS, ["a b"], 12, GREEDY)
    stop = free.split()[2]
    (found,) = continue_texts(model(), WORDS, ["a b"], 12, GREEDY, stop=stop)
    assert found == free.split(stop)[0]
    assert len(found) < len(free)


def test_a_prompt_must_have_words_of_the_tokenizer():
    with pytest.raises(UserError, match="'zebra'"):
        continue_texts(model(), WORDS, ["a zebra"], 3, GREEDY)
    without_end = tokenizers.train("char", ["abcdefghijk"])
    assert without_end.end_id is None
    with pytest.raises(UserError, match="prompt 0 is empty"):
        continue_texts(model(), without_end, [""], 3, GREEDY)
    assert len(continue_texts(model(), without_end, ["abc"], 3, GREEDY)[0]) == 3
