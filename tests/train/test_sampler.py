"""Which tokens may be drawn, and how often they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import UserError
from train.sampler import Sampler


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
