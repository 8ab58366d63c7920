"""Windows over a sharded sequence: read as on one device, and little is sent for them."""

import dataclasses

import jax
import pytest

from launch.compiled.collectives import collectives
from launch.compiled.program import Program
from model.axes import KEYS, ShardingRules
from model.backends import blockwise, dense, pieces, splash
from model.backends.shards import way
from model.compute import Compute
from model.heads import Heads
from tests.model import small
from tests.model.attending import COMPUTE, KINDS, check_in_the_zigzag, check_on_a_mesh, drawn

RING = Compute("float32", "float32", ShardingRules(context_attention="ring"))
EXCHANGE = Compute("float32", "float32", ShardingRules(context_attention="all_to_all"))


@pytest.mark.parametrize("kind", ["a window of one", "all"])
@pytest.mark.parametrize("backend", [blockwise, splash], ids=lambda b: b.__name__)
def test_windows_up_to_a_shard_are_as_on_one_device(monkeypatch, backend, kind):
    monkeypatch.setattr(splash, "INTERPRET", True)
    check_on_a_mesh(backend.attend, kind, dict(heads=2, context=2))


def test_hooks_read_their_arrays_by_neighbours_keys(monkeypatch):
    monkeypatch.setitem(KINDS, "near", KINDS["score with all"] | dict(window=6))
    check_on_a_mesh(dense.attend, "near", dict(heads=2, context=2))


@pytest.mark.parametrize(
    ("backend", "window"),
    [(pieces, 128), (splash, 1), (splash, 100), (splash, 128)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_pieces_of_the_zigzag_are_read_after_those_before_them(monkeypatch, backend, window):
    monkeypatch.setattr(splash, "INTERPRET", True)
    check_in_the_zigzag(backend.attend, KINDS["all"] | dict(window=window), RING, "neighbours")


def test_a_device_is_sent_as_many_keys_as_a_window_has():
    (q, k, v, _), mask, pattern = drawn(window=3, length=16)
    sizes = dict(data=1, fsdp=1, heads=1, context=4)
    with jax.set_mesh(small.mesh(sizes)):
        q, k, v = (jax.device_put(x, COMPUTE.rules.spec(KEYS, x.shape)) for x in (q, k, v))

        def read(q, k, v):
            return blockwise.attend(Heads(q, k, v), mask, pattern, COMPUTE)

        moved = collectives(Program(jax.jit(read).lower(q, k, v).compile().as_text(), 1), sizes)
    rows, heads, _, width = k.shape
    assert {c.kind for c in moved} == {"collective-permute"}
    floats = [shape for c in moved for kind, shape in c.operands if kind == "f32"]
    assert sorted(floats) == sorted([(rows, heads, 3, width), (rows, heads, 3, v.shape[3])])


def test_windows_longer_than_a_shard_go_round_and_the_users_word_is_kept():
    (q, k, v, _), mask, _ = drawn(length=16)
    heads = Heads(q, k, v)
    with jax.set_mesh(small.mesh(dict(context=4))):
        for window, zigzag_of, expected in (
            (4, 0, True),
            (5, 0, False),
            (2, 4, True),
            (3, 4, False),
        ):
            of = dataclasses.replace(mask, window=window, zigzag=zigzag_of)
            assert (way(heads, of, RING) == "neighbours") == expected
        assert way(heads, mask.within(4), EXCHANGE) == "all_to_all"
        assert way(heads, mask.within(4), COMPUTE) == "neighbours"
    assert way(heads, mask.within(4), RING) == "whole"
