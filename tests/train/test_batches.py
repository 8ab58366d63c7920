"""Batches on a mesh hold the rows of NumPy, and each process makes its own alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from model.axes import ShardingRules
from tests.train import tiny
from text.corpora import Corpus
from text.rows import CorpusRows
from train.batches import evaluation_batches, make_batch, training_batches
from train.calls import calls

RULES = ShardingRules()
MESHES = {
    "one device": {},
    "fsdp 8": dict(fsdp=8),
    "data 2, fsdp 2, heads 2": dict(data=2, fsdp=2, heads=2),
    "fsdp 2, context 4": dict(fsdp=2, context=4),
}


def documents():
    """Returns packed rows of uneven documents, which have positions and segments."""
    sizes = np.random.default_rng(0).integers(2, 12, 40)
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return CorpusRows(Corpus(np.arange(starts[-1], dtype=np.uint16), starts), "packed", 16, 3, 999)


def held(batch):
    return {name: np.asarray(value) for name, value in batch._asdict().items() if value is not None}


@pytest.mark.parametrize("sizes", MESHES.values(), ids=MESHES)
def test_a_mesh_holds_the_rows_of_the_host(sizes):
    source, mesh = documents(), tiny.mesh(**sizes)
    numbers = np.arange(24).reshape(3, 8) + 5
    batch = make_batch(source.training, numbers, mesh, RULES)
    expected = source.training(numbers.reshape(-1))
    assert held(batch).keys() == {"tokens", "labels", "counted", "positions", "segments"}
    for name, value in held(batch).items():
        np.testing.assert_array_equal(
            value, getattr(expected, name).reshape(3, 8, 16), err_msg=name
        )
    with jax.set_mesh(mesh):
        spec = RULES.spec((None, "batch", "length"))
    assert batch.tokens.sharding == NamedSharding(mesh, spec)


def test_training_batches_are_the_rows_of_their_steps_however_they_are_cut():
    source, mesh = documents(), tiny.mesh(fsdp=2)

    def steps(slots, everies=()):
        found, cut = [], calls(3, 10, slots, everies)
        batches = training_batches(source, 4, cut, slots, mesh, RULES, prefetch=2)
        for call, batch in batches:
            assert batch.tokens.shape == (slots, 4, 16)
            found.extend(np.asarray(batch.labels)[: len(call)])
        return np.stack(found)

    expected = source.training(np.arange(3 * 4, 10 * 4)).labels.reshape(7, 4, 16)
    np.testing.assert_array_equal(steps(7), expected)
    np.testing.assert_array_equal(steps(3, (5, 8)), expected)
    np.testing.assert_array_equal(steps(1), expected)


@pytest.mark.parametrize(("batch_size", "accumulate"), [(1, 1), (3, 1), (8, 1), (6, 3)])
def test_an_evaluation_reads_every_held_out_token_once(batch_size, accumulate):
    source, mesh = documents(), tiny.mesh()
    found = []
    for batch in evaluation_batches(source, batch_size, 0, mesh, RULES, accumulate):
        assert batch.labels.shape == (batch_size // accumulate, 16)
        found.extend(np.asarray(batch.labels)[np.asarray(batch.counted)])
    np.testing.assert_array_equal(found, source.corpus.tokens)


def test_an_evaluation_may_read_fewer_batches_but_not_more_than_there_are():
    source, mesh = documents(), tiny.mesh()
    every = len(list(evaluation_batches(source, 4, 0, mesh, RULES)))
    assert len(list(evaluation_batches(source, 4, 2, mesh, RULES))) == 2
    assert len(list(evaluation_batches(source, 4, 10**6, mesh, RULES))) == every


def own_only(monkeypatch, own):
    """Lets this process hold some of the devices, as if another held the others."""

    def addressable(sharding, shape):
        return {d: i for d, i in sharding.devices_indices_map(shape).items() if d in own}

    def own_parts(shape, sharding, part):
        whole = np.zeros(shape, np.int32)
        for index in addressable(sharding, shape).values():
            whole[index] = part(index)
        return jnp.asarray(whole)

    monkeypatch.setattr(NamedSharding, "addressable_devices_indices_map", addressable)
    monkeypatch.setattr(jax, "make_array_from_callback", own_parts)


@pytest.mark.parametrize(
    ("sizes", "own_devices", "own_rows"),
    [
        (dict(fsdp=8), range(4, 8), range(4, 8)),
        (dict(data=2, fsdp=2, heads=2), range(2, 4), range(2, 4)),
        (dict(heads=8), range(3, 5), range(8)),
        (dict(fsdp=4, context=2), range(2), range(2)),
    ],
)
def test_a_process_makes_the_rows_of_its_own_devices_once(
    monkeypatch, sizes, own_devices, own_rows
):
    source, mesh = documents(), tiny.mesh(**sizes)
    made = []

    def make(numbers):
        made.extend(numbers.tolist())
        return source.training(numbers)

    with monkeypatch.context() as patch:
        own_only(patch, [mesh.devices.flat[i] for i in own_devices])
        batch = make_batch(make, 100 + np.arange(8), mesh, RULES)
    assert sorted(made) == [100 + row for row in own_rows]
    expected = np.zeros((8, 16), np.int32)
    expected[list(own_rows)] = source.training(100 + np.array(own_rows)).labels
    np.testing.assert_array_equal(batch.labels, expected)
