"""Hooks, sinks and caps against loops over queries, keys and heads."""

import dataclasses
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.errors import UserError
from model.axes import QUERIES
from model.backends import choice, dense
from model.heads import Heads
from model.masks import NEVER, Mask, causal
from model.pattern import Pattern
from tests.model import small
from tests.model.attending import BATCH, COMPUTE, HEADS, KINDS, LENGTH, both, drawn


def by_hand(q, k, v, mask, pattern):
    """Returns what each query reads, one number at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    length, groups, value_groups = q.shape[2], k.shape[1], v.shape[1]
    out = np.zeros((*q.shape[:3], v.shape[3]))

    def attributes(arrays, b, h, i, **more):
        return SimpleNamespace(
            **more, **{n: np.asarray(x)[b, h % x.shape[1], i] for n, x in arrays.items()}
        )

    for b in range(BATCH):
        for h in range(HEADS):
            head = SimpleNamespace(**{n: np.asarray(x)[h] for n, x in pattern.head.items()})
            for t in range(length):
                query = attributes(pattern.query, b, h, t, position=np.int32(t))
                weights = {}
                for s in range(t + 1):
                    key = attributes(pattern.key, b, h, s, position=np.int32(s))
                    segments = mask.query_segment
                    hidden = mask.window is not None and t - s >= mask.window
                    hidden |= segments is not None and segments[b, t] != segments[b, s]
                    if pattern.visible is not None:
                        hidden |= not pattern.visible(query, key, head)
                    if hidden:
                        continue
                    logit = q[b, h, t] @ k[b, h * groups // HEADS, s] / math.sqrt(q.shape[3])
                    if pattern.cap is not None:
                        logit = pattern.cap * math.tanh(logit / pattern.cap)
                    if pattern.score is not None:
                        logit = pattern.score(logit, query, key, head)
                    weights[s] = math.exp(logit)
                total = sum(weights.values())
                if pattern.sink is not None:
                    total += math.exp(pattern.sink[h])
                for s, weight in weights.items():
                    out[b, h, t] += weight / total * v[b, h * value_groups // HEADS, s]
    return out


@pytest.mark.parametrize(
    "kind", [k for k, how in KINDS.items() if {"score", "visible", "sink"} & {*how}]
)
def test_what_queries_read_is_what_loops_find(kind):
    (q, k, v, given), mask, pattern = drawn(**KINDS[kind])
    found = both(dense.attend, q, k, v, given, mask, pattern)[0]
    np.testing.assert_allclose(found, by_hand(q, k, v, mask, pattern), rtol=0, atol=1e-5)


def test_gradients_of_a_hooks_arrays_are_differences_of_values():
    (q, k, v, given), mask, pattern = drawn(**KINDS["score with all"])
    _, _, _, _, push, pull, heat, slope, table, sink = both(
        dense.attend, q, k, v, given, mask, pattern
    )
    step = 1e-2

    def value(**changes):
        changed = dataclasses.replace(pattern, **changes)
        out = both(dense.attend, q, k, v, given, mask, changed)[0]
        return float((np.asarray(out, np.float64) * given).sum())

    def moved(side, name, place):
        arrays = getattr(pattern, side)
        return [{side: {**arrays, name: arrays[name].at[place].add(s)}} for s in (step, -step)]

    for side, name, place, gradient in (
        ("query", "push", (1, 2, 7), push),
        ("key", "pull", (0, 0, 3), pull),
        ("head", "heat", (1,), heat),
        ("head", "slope", (2,), slope),
        ("head", "table", (3, 1), table),
    ):
        more, less = (value(**change) for change in moved(side, name, place))
        assert gradient[place] == pytest.approx((more - less) / (2 * step), rel=0.02, abs=2e-3)
    more, less = (value(sink=pattern.sink.at[1].add(s)) for s in (step, -step))
    assert sink[1] == pytest.approx((more - less) / (2 * step), rel=0.02, abs=2e-3)


def test_a_query_that_a_hook_lets_see_nothing_reads_nothing():
    (q, k, v, _), mask, _ = drawn()
    blind = Pattern(visible=lambda query, key, head: query.position != 4).checked(
        BATCH, HEADS, LENGTH, LENGTH
    )
    found = dense.attend(Heads(q, k, v), mask, blind, COMPUTE)
    np.testing.assert_array_equal(found[:, :, 4], 0)
    assert np.abs(found[:, :, 5]).min() > 0


def test_operations_of_hooks_are_counted_for_one_pair():
    (_, _, _, _), _, pattern = drawn(**KINDS["score and visible, full value map"])
    score = Pattern(score=lambda logit, query, key, head: 2 * logit + head.slope * key.pull)
    counted = dataclasses.replace(score, key=pattern.key, head=pattern.head)
    assert counted.operations() == 3
    assert Pattern().operations() == 0


def test_a_running_sum_is_of_what_a_row_holds():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 6)).astype(np.float32)
    at_query, at_key = causal(6, None, COMPUTE).running_sum(jnp.asarray(x))
    np.testing.assert_allclose(at_query, x.cumsum(-1), rtol=1e-6)
    np.testing.assert_allclose(at_key, x.cumsum(-1), rtol=1e-6)
    # The second row lacks a token in slot 2; two new tokens take the slots from 3.
    position = jnp.array([[0, 1, 2, 3, 4, NEVER], [0, 1, NEVER, 2, 3, NEVER]])
    mask = Mask(jnp.array([[3, 4], [2, 3]]), position, slot=jnp.int32(3))
    at_query, at_key = mask.running_sum(jnp.asarray(x))
    there = np.where(np.asarray(position)[:, None] == NEVER, 0, x).cumsum(-1)
    np.testing.assert_allclose(at_key, there, rtol=1e-6)
    np.testing.assert_allclose(at_query, there[:, :, 3:5], rtol=1e-6)
    # A thousand gates of 16 bits: their sum has more digits than they.
    gates = jnp.full((1, 1, 1024), 0.1875, jnp.bfloat16)
    found, _ = causal(1024, None, COMPUTE).running_sum(gates)
    np.testing.assert_array_equal(found[0, 0], 0.1875 * np.arange(1, 1025))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(score=lambda logit, query, key, head: key.pull), "no attribute 'pull'"),
        (dict(score=lambda logit, query, key: logit), "takes 3 positional arguments"),
        (dict(score=lambda logit, query, key, head: logit * jnp.ones(3)), "return one number"),
        (dict(score=lambda logit, query, key, head: logit > 0), "return one number"),
        # Two would be false, bit by bit.
        (dict(visible=lambda query, key, head: 2 - key.position % 2), "return one bool"),
        (dict(head=dict(slope=jnp.ones(HEADS + 1))), r"array slope \(5,\).*begin with \(4,\)"),
        (
            dict(key=dict(pull=jnp.ones((BATCH, 2, LENGTH)))),
            r"array pull .*begin with \(2, 4, 13\)",
        ),
        (dict(query=dict(position=jnp.ones((BATCH, 1, LENGTH)))), "not be position"),
        (dict(sink=jnp.ones(2)), "begin with .4,."),
        (dict(sink=0.5), "begin with .4,."),
        (dict(head=dict(slope=[1.0] * HEADS)), r"array slope \(\)"),
        (dict(cap=jnp.float32(3)), "is no number; make an array a score"),
    ],
)
def test_a_pattern_that_cannot_be_says_why(changes, words):
    with pytest.raises(UserError, match=f"Pattern.* of model.attention.*{words}"):
        Pattern(**changes).checked(BATCH, HEADS, LENGTH, LENGTH)


def test_a_hook_that_reads_an_array_of_its_surroundings_is_refused():
    (q, k, v, _), mask, _ = drawn()

    def run(slope):
        hook = Pattern(score=lambda logit, query, key, head: logit * slope)
        return choice.attend("dense", Heads(q, k, v), mask, hook, COMPUTE)

    with pytest.raises(UserError, match=r"Pattern.score .* not given; pass it as Pattern\(head="):
        jax.jit(run)(2.0)


def test_names_of_keys_and_values_are_taken():
    heads = Heads(*(jnp.ones((1, 2, 3, 4)) for _ in range(3)))
    with pytest.raises(UserError, match="with_keys: 'value' is taken"):
        heads.with_keys(value=jnp.ones((1, 2, 3)))


def test_arrays_of_queries_and_keys_have_their_rows_and_tokens():
    heads = Heads(*(jnp.ones((1, 2, 3, 4)) for _ in range(3)))
    assert heads.with_keys(gate=jnp.ones((1, 1, 3))).remembered["gate"].shape == (1, 1, 3)
    for function in (heads.with_keys, heads.with_queries):
        for shape in ((1, 3), (1, 2, 4), (2, 2, 3)):
            with pytest.raises(UserError, match=r"gate .* begins \(1, heads or 1, 3\)"):
                function(gate=jnp.ones(shape))


def test_a_running_sum_goes_over_a_sequence_that_is_split():
    x = np.random.default_rng(0).standard_normal((2, 4, 8)).astype(np.float32)
    with jax.set_mesh(small.mesh(dict(context=4, heads=2))):
        there = COMPUTE.reshard(jnp.asarray(x), QUERIES[:3])
        found = jax.jit(lambda x: causal(8, None, COMPUTE).running_sum(x)[0])(there)
        np.testing.assert_allclose(np.asarray(found), x.cumsum(-1), rtol=1e-5, atol=1e-6)
