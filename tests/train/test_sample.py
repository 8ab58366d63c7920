"""Sampling through the cache against the whole forward pass and NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import UserError
from tests.model import small
from tests.train import tiny
from text import tokenizers
from train import sample
from train.sample import BUCKET, Sampler, continue_texts, continue_tokens

GREEDY = Sampler(temperature=0.0)
SHAPE = small.config(num_layers=1, mlp="none", max_length=3 * BUCKET)
PROMPTS = [np.array(p, np.int32) for p in ([3], [5, 2, 9, 9, 1, 0, 4], [10, 7], [1, 2, 3, 4, 5])]


@functools.cache
def model(**changes):
    return small.drawn(small.changed(SHAPE, **changes))


whole = jax.jit(lambda model, tokens: model(tokens), compiler_options=tiny.QUICK)


def greedily(network, prompt, count):
    """Returns the likeliest tokens by whole forward passes over padded rows."""
    row = list(prompt)
    for _ in range(count):
        padded = np.zeros((1, BUCKET), np.int32)
        padded[0, : len(row)] = row
        row.append(int(np.asarray(whole(network, padded))[0, len(row) - 1].argmax()))
    return np.array(row[len(prompt) :])


@pytest.mark.parametrize("changes", [{}, dict(positions="learned", window=(3,))], ids=str)
def test_greedy_continuations_take_the_likeliest_of_the_forward_pass(changes):
    network = model(**changes)
    together = continue_tokens(network, PROMPTS, 12, GREEDY)
    for prompt, found in zip(PROMPTS, together, strict=True):
        np.testing.assert_array_equal(found, greedily(network, prompt, 12))
    assert len(np.unique(np.concatenate(together))) > 3  # no model that repeats one token


def test_prompts_are_continued_together_as_one_by_one():
    together = continue_tokens(model(), PROMPTS, 12, GREEDY)
    for prompt, found in zip(PROMPTS, together, strict=True):
        (alone,) = continue_tokens(model(), [prompt], 12, GREEDY)
        np.testing.assert_array_equal(found, alone)


def test_top_k_of_1_is_greedy():
    hot = Sampler(temperature=5.0, top_k=1)
    for found, expected in zip(
        continue_tokens(model(), PROMPTS, 9, hot, seed=4),
        continue_tokens(model(), PROMPTS, 9, GREEDY),
        strict=True,
    ):
        np.testing.assert_array_equal(found, expected)


def test_a_prompt_is_continued_alike_whoever_stands_behind_it():
    hot = Sampler(temperature=1.5)
    alone = continue_tokens(model(), PROMPTS[1:2], 9, hot, seed=4)
    together = continue_tokens(model(), [PROMPTS[1], *PROMPTS], 9, hot, seed=4)
    np.testing.assert_array_equal(alone[0], together[0])
    # Another seed, or another place in the batch, draws otherwise.
    assert (continue_tokens(model(), PROMPTS[1:2], 9, hot, seed=5)[0] != alone[0]).any()
    assert (together[2] != alone[0]).any()


def test_fewer_tokens_are_the_beginning_of_more():
    hot = Sampler(temperature=1.5)
    (long,) = continue_tokens(model(), PROMPTS[:1], 20, hot)
    (short,) = continue_tokens(model(), PROMPTS[:1], 6, hot)
    np.testing.assert_array_equal(short, long[:6])


@pytest.mark.parametrize("heat", [0.0, 1.0, 1e38])
def test_tokens_that_the_tokenizer_does_not_know_are_never_drawn(heat):
    few = Sampler(temperature=heat, vocab_size=3)
    found = np.concatenate(continue_tokens(model(), PROMPTS, 20, few))
    assert found.max() == 2
    # Nor is the padding of the model's own vocabulary of 11.
    every = np.concatenate(continue_tokens(model(), PROMPTS, 20, Sampler(temperature=1e38)))
    assert every.max() == 10


def test_the_end_token_ends_its_row_alone():
    free = continue_tokens(model(), PROMPTS, 12, GREEDY)
    end = int(free[0][4])
    found = continue_tokens(model(), PROMPTS, 12, GREEDY, end_id=end)
    for row, whole_row in zip(found, free, strict=True):
        places = np.flatnonzero(whole_row == end)
        np.testing.assert_array_equal(row, whole_row[: places[0]] if len(places) else whole_row)
    assert len(found[0]) <= 4


def allowed_by_hand(logits, heat, k, p):
    """Tokens from the likeliest on, while fewer than k are taken and those before reach not p."""
    scaled = logits.astype(np.float64) / heat
    chances = np.exp(scaled - scaled.max())
    chances /= chances.sum()
    taken, reached = set(), 0.0
    for token in np.argsort(-logits, kind="stable"):
        if taken and (reached >= p or (k and len(taken) >= k)):
            break
        taken.add(int(token))
        reached += chances[token]
    return taken


@given(
    st.lists(st.integers(-40, 40), min_size=2, max_size=9, unique=True),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.integers(0, 6),
    st.sampled_from([0.05, 0.37, 0.61, 0.93, 1.0]),
)
@settings(max_examples=80, deadline=None)
def test_allowed_tokens_by_hand(tenths, heat, k, p):
    logits = np.full((1, 9), -30.0, np.float32)
    logits[0, : len(tenths)] = np.array(tenths) / 10
    logits[0, len(tenths) :] -= np.arange(9 - len(tenths))
    sampler = Sampler(jnp.float32(heat), jnp.int32(k), jnp.float32(p))
    found = np.asarray(allowed(jnp.asarray(logits), sampler))
    if p == 1.0:  # what is left of a rounded sum is nobody's
        expected = allowed_by_hand(logits[0], heat, k, 2.0)
        likely = {t for t in expected if t < len(tenths)}
        assert likely <= set(np.flatnonzero(found[0])) <= expected
    else:
        assert set(np.flatnonzero(found[0])) == allowed_by_hand(logits[0], heat, k, p)


@jax.jit
def allowed(logits, sampler):
    return sampler.allowed(logits)


@pytest.mark.parametrize(
    ("sampler", "kept"),
    [(Sampler(1.0), 5), (Sampler(0.5), 5), (Sampler(1.0, top_k=2), 2), (Sampler(1.0, 0, 0.8), 3)],
    ids=["heat 1", "heat 0.5", "top 2", "top 0.8"],
)
def test_draws_are_as_frequent_as_the_softmax_says(sampler, kept):
    chances = np.array([0.05, 0.4, 0.2, 0.25, 0.1])
    rows = 20_000
    logits = jnp.broadcast_to(jnp.log(jnp.asarray(chances, jnp.float32)), (rows, 5))
    drawn = sampler.draw(logits, jax.random.key(3), jnp.zeros(rows, jnp.int32))
    expected = chances ** (1 / sampler.temperature)
    expected[np.argsort(-chances)[kept:]] = 0
    expected /= expected.sum()
    found = np.bincount(drawn, minlength=5) / rows
    # Five standard deviations.
    assert (np.abs(found - expected) <= 5 * np.sqrt(expected * (1 - expected) / rows)).all()


def test_padding_of_the_vocabulary_is_never_drawn():
    found = continue_tokens(model(), PROMPTS, 30, Sampler(temperature=50.0))
    assert max(row.max() for row in found) < SHAPE.vocab_size
    # At this heat every word is.
    assert len(np.unique(np.concatenate(found))) == SHAPE.vocab_size


def test_lengths_within_a_bucket_and_samplers_compile_nothing_new():
    def compilations():
        return sample._prefill._cache_size(), sample._decode._cache_size()

    def draw(length, tokens, sampler, **more):
        prompt = np.arange(length, dtype=np.int32) % SHAPE.vocab_size
        return continue_tokens(model(), [prompt, prompt[:1]], tokens, sampler, **more)

    draw(4, 5, Sampler(1.0))
    before = compilations()
    draw(BUCKET, BUCKET, Sampler(0.3, top_k=4, top_p=0.9), seed=7, end_id=2)
    draw(1, 1, GREEDY)
    assert compilations() == before
    draw(BUCKET + 1, 5, GREEDY)
    assert compilations() > before


def test_a_full_row_does_not_draw_the_same_numbers_again():
    short = small.drawn(small.changed(SHAPE, max_length=10))
    # So hot that the random numbers decide, whatever the model says.
    (found,) = continue_tokens(short, PROMPTS[:1], 60, Sampler(temperature=1e4))
    assert (found[9:-5] == found[14:]).mean() < 0.5


def test_prompts_that_cannot_be_continued_are_refused():
    with pytest.raises(UserError, match="prompt 1 is empty"):
        continue_tokens(model(), [PROMPTS[0], np.array([], np.int32)], 3, GREEDY)
    for token in (-1, SHAPE.vocab_size):
        with pytest.raises(UserError, match="prompt 0 holds a token outside the vocabulary of 11"):
            continue_tokens(model(), [np.array([token], np.int32)], 3, GREEDY)


def test_a_full_row_goes_on_from_its_last_half():
    short = small.drawn(small.changed(SHAPE, positions="learned", max_length=10))
    prompts = [*PROMPTS, np.arange(11, dtype=np.int32)]
    for prompt, found in zip(prompts, continue_tokens(short, prompts, 23, GREEDY), strict=True):
        expected, heard = [], list(prompt)
        for _ in range(23):
            heard = heard[-5:] if len(heard) >= 10 else heard
            padded = np.zeros((1, 10), np.int32)
            padded[0, : len(heard)] = heard
            token = int(np.asarray(whole(short, padded))[0, len(heard) - 1].argmax())
            expected.append(token)
            heard.append(token)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("sampler", "sentence"),
    [
        (Sampler(temperature=-0.1), "--temperature"),
        (Sampler(temperature=float("nan")), "--temperature"),
        (Sampler(top_k=-1), "--top_k"),
        (Sampler(top_p=0.0), "--top_p"),
        (Sampler(top_p=1.1), "--top_p"),
    ],
)
def test_samplers_out_of_range_are_refused(sampler, sentence):
    with pytest.raises(UserError, match=sentence):
        sampler.check()


WORDS = tokenizers.word_tokenizer(["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"])  # and "<end>"


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


def test_sampling_on_a_mesh_equals_sampling_without():
    expected = continue_tokens(model(), PROMPTS, 6, GREEDY)
    placed = model()
    with jax.set_mesh(tiny.mesh(fsdp=2, heads=4)):
        placed = jax.tree.map(
            lambda value, like: jax.device_put(value, like.sharding.spec),
            placed,
            small.abstract(placed.config),
        )
        found = continue_tokens(placed, PROMPTS, 6, GREEDY)
    for row, expected_row in zip(found, expected, strict=True):
        np.testing.assert_array_equal(row, expected_row)
