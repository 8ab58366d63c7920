"""Continuations are those of whole forward passes, row by row and all together."""

import functools

import jax
import numpy as np
import pytest

from configs.errors import UserError
from model.decoding import ready
from tests.model import small
from tests.train import tiny
from train import decoding
from train.decoding import BUCKET, continue_tokens
from train.sampler import Sampler

GREEDY = Sampler(temperature=0.0)
SHAPE = small.config(num_layers=1, mlp="none", max_length=3 * BUCKET, scan_layers=None)
PROMPTS = [np.array(p, np.int32) for p in ([3], [5, 2, 9, 9, 1, 0, 4], [10, 7], [1, 2, 3, 4, 5])]


@functools.cache
def model(**changes):
    return small.drawn(small.changed(SHAPE, **changes))


whole = jax.jit(lambda model, tokens: model(tokens))


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
    # Another seed, or another row of the batch, draws otherwise.
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


def test_padding_of_the_vocabulary_is_never_drawn():
    found = continue_tokens(model(), PROMPTS, 30, Sampler(temperature=50.0))
    assert max(row.max() for row in found) < SHAPE.vocab_size
    # At this heat every word is.
    assert len(np.unique(np.concatenate(found))) == SHAPE.vocab_size


def test_lengths_within_a_bucket_and_samplers_compile_nothing_new():
    loop = decoding._loop(())

    def compilations():
        return decoding._prefill._cache_size(), loop._cache_size()

    def draw(length, tokens, sampler, **more):
        prompt = np.arange(length, dtype=np.int32) % SHAPE.vocab_size
        return continue_tokens(model(), [prompt, prompt[:1]], tokens, sampler, **more)

    draw(4, 5, Sampler(1.0))
    before = compilations()
    draw(BUCKET // 2, BUCKET // 2, Sampler(0.3, top_k=4, top_p=0.9), seed=7, end_id=2)
    draw(1, 1, GREEDY)
    assert compilations() == before
    # Twice as long, and every length up to there.
    draw(BUCKET + 2, 5, GREEDY)
    after = compilations()
    assert after == (before[0] + 1, before[1] + 1)
    for length in (BUCKET + 3, BUCKET + 9, 2 * BUCKET - 3):
        draw(length, 2, Sampler(1.0))
        assert compilations() == after


def test_one_row_in_bfloat16_goes_on_as_in_a_batch():
    """One row is compiled apart."""
    network = model(dtype="bfloat16", embed_dim=32, tie_embeddings=True)
    together = continue_tokens(network, PROMPTS, 12, GREEDY)
    alone = [continue_tokens(network, [prompt], 12, GREEDY)[0] for prompt in PROMPTS]
    # Sums in another order turn a tie of two tokens at times.
    same = [np.array_equal(a, b) for a, b in zip(alone, together, strict=True)]
    assert sum(same) >= 3


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


@pytest.mark.parametrize("sizes", [dict(fsdp=2, heads=4), dict(heads=2, context=4)], ids=str)
def test_sampling_on_a_mesh_equals_sampling_without(sizes):
    expected = continue_tokens(model(), PROMPTS, 6, GREEDY)
    placed = model()
    with jax.set_mesh(tiny.mesh(**sizes)):
        placed = jax.tree.map(
            lambda value, like: jax.device_put(value, like.sharding.spec),
            placed,
            small.abstract(placed.config),
        )
        found = continue_tokens(placed, PROMPTS, 6, GREEDY)
    for row, expected_row in zip(found, expected, strict=True):
        np.testing.assert_array_equal(row, expected_row)


@pytest.mark.parametrize("rows", [1, 3])
def test_the_loop_holds_the_cache_once(rows):
    decoder = ready(model(scan_layers=False, max_length=2048))
    cache = decoder.empty_cache(rows, 2048)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(cache))
    numbers = [np.zeros(rows, np.int32)] * 3
    rest = (numbers[0], GREEDY, jax.random.key(0), np.int32(-1))
    compiled = decoding._loop(()).lower(decoder, *numbers, cache, *rest).compile()
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= size
    assert memory.temp_size_in_bytes < size / 2
