"""Which key a query sees: by hand, and as a property of whole networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.axes import ShardingRules
from model.compute import Compute
from model.masks import Mask, causal
from tests.model import reference, small

COMPUTE = Compute("float32", "float32", ShardingRules())


def test_causal_by_hand():
    np.testing.assert_array_equal(
        causal(3, None, COMPUTE).visible()[0, 0], [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    )
    np.testing.assert_array_equal(
        causal(4, None, COMPUTE).within(2).visible()[0, 0],
        [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]],
    )


@pytest.mark.parametrize("window", [None, 1, 3])
def test_documents_do_not_see_each_other(window):
    segments = np.array([[1, 1, 2, 2, 2, 3], [1, 2, 2, 2, 2, 2]], np.int32)
    found = causal(6, jnp.asarray(segments), COMPUTE).within(window).visible()
    for b in range(2):
        expected = [[reference.sees(t, s, window, segments[b]) for s in range(6)] for t in range(6)]
        np.testing.assert_array_equal(found[b, 0], expected)


def test_rows_at_different_places():
    mask = Mask(jnp.array([[0], [2]]), jnp.arange(4)[None])
    np.testing.assert_array_equal(mask.visible()[:, 0, 0], [[1, 0, 0, 0], [1, 1, 1, 0]])


LENGTH = 9
forward = jax.jit(lambda model, tokens: model(tokens))


@functools.cache
def network(**changes):
    return small.drawn(small.config(**changes))


def after_change(model, seed, place, token):
    """Returns the logits of random tokens, before and after one of them changes."""
    tokens = small.tokens(model.config, 1, LENGTH, seed)
    other = tokens.copy()
    other[0, place] = (other[0, place] + token) % model.config.vocab_size
    return np.asarray(forward(model, tokens))[0], np.asarray(forward(model, other))[0]


change = dict(seed=st.integers(0, 1000), place=st.integers(0, LENGTH - 1), token=st.integers(1, 10))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(**change)
def test_a_token_changes_no_logit_before_it(seed, place, token):
    before, after = after_change(network(num_kv_heads=2), seed, place, token)
    np.testing.assert_array_equal(before[:place], after[:place])
    assert (before[place:] != after[place:]).any(-1).all()


@settings(max_examples=15, deadline=None, derandomize=True)
@given(**change)
def test_a_token_out_of_the_window_changes_nothing(seed, place, token):
    """One layer of attention: what is 3 positions or more behind is not seen."""
    model = network(num_layers=1, mlp="none", window=(3,))
    before, after = after_change(model, seed, place, token)
    differs = (before != after).any(-1)
    np.testing.assert_array_equal(differs, [place <= t < place + 3 for t in range(LENGTH)])
