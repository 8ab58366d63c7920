"""The same run on every mesh, and checkpoints that move between meshes."""

import functools

import jax
import numpy as np
import pytest
from rich.console import Console

from configs.errors import UserError
from model.axes import check_mesh
from tests.train import tiny
from train import loop, record
from train.checkpoints import Checkpoints
from train.step import init_state, make_optimizer, make_step

MESHES = {
    "fsdp 8": dict(fsdp=8),
    "fsdp 2, heads 4": dict(fsdp=2, heads=4),
    "data 2, fsdp 2, heads 2": dict(data=2, fsdp=2, heads=2),
    "fsdp 2, heads 2, context 2": dict(fsdp=2, heads=2, context=2),
}
SHARDS_THE_RESIDUAL = ("fsdp 2, heads 4", "fsdp 2, heads 2, context 2")
PLAIN: tuple = ()
# Momentum and weight decay of both groups.
MUON = (("optim.name", "muon"), ("optim.muon_learning_rate", 0.01))
SHARDED = (("mesh.residual", "sharded"),)
STEPS = 50


@functools.cache
def stepper(changes, mesh):
    fields = {"steps": STEPS, "steps_per_call": 10, **dict(changes)}
    return tiny.Stepper(tiny.config(fields), tiny.mesh(**MESHES.get(mesh, {})))


@functools.cache
def run(changes, mesh):
    """Returns the first state and the losses of a run."""
    own = stepper(changes, mesh)
    start = own.start()
    _, losses = own.losses(start, STEPS)
    return start, losses


@pytest.mark.parametrize(
    ("changes", "mesh"),
    [
        *((PLAIN, mesh) for mesh in MESHES),
        (MUON, "fsdp 2, heads 4"),
        *((SHARDED, mesh) for mesh in SHARDS_THE_RESIDUAL),
    ],
    ids=[
        *MESHES,
        "muon on fsdp 2, heads 4",
        *(f"residual sharded, {mesh}" for mesh in SHARDS_THE_RESIDUAL),
    ],
)
def test_a_run_starts_with_the_same_bits_and_has_the_same_losses(changes, mesh):
    first, expected = run(MUON if changes == MUON else PLAIN, "one device")
    start, found = run(changes, mesh)
    tiny.assert_equal(tiny.arrays(start), tiny.arrays(first))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert expected[-5:].mean() < expected[0] - 0.03


def saved_on(mesh, workdir):
    """Takes ten steps on a mesh and saves; returns the state."""
    own = stepper(PLAIN, mesh)
    state, _ = own.losses(run(PLAIN, mesh)[0], 10)
    checkpoints = Checkpoints(workdir, own.config, None)
    checkpoints.save(state, 10)
    checkpoints.wait()
    return state


def restored_on(mesh, workdir):
    """Returns the state of a run's newest step, sharded as on this mesh."""
    own = stepper(PLAIN, mesh)
    shape = tiny.model_config(own.config)
    optimizer = make_optimizer(own.config, shape)
    with jax.set_mesh(own.mesh):
        abstract = jax.eval_shape(lambda k: init_state(shape, optimizer, k), jax.random.key(0))
        checkpoints = Checkpoints(workdir, own.config, None)
        state = checkpoints.restore(checkpoints.find(), abstract, own.mesh)
    for found, like in zip(
        jax.tree.leaves(state), jax.tree.leaves(run(PLAIN, mesh)[0]), strict=True
    ):
        assert found.sharding.is_equivalent_to(like.sharding, found.ndim)
        assert found.dtype == like.dtype
    return state


def test_each_call_of_forced_host_devices_is_recorded_before_the_next(tmp_path, monkeypatch):
    """Its rate is then of its own time."""
    order = []

    class Watched(record.Record):
        def write(self):
            if self.pending is not None:
                order.append(f"wrote {self.pending[0].stop}")
            super().write()

    def watched(*arguments):
        step = make_step(*arguments)

        def call(*arguments):
            order.append("step")
            return step(*arguments)

        return call

    monkeypatch.setattr(loop, "Record", Watched)
    monkeypatch.setattr(loop, "make_step", watched)
    fields = {
        "steps": 4,
        "steps_per_call": 1,
        "log.eval_every": 2,
        "log.eval_batches": 1,
        "mesh.fsdp": 2,
    }
    config = tiny.config(fields | {"model.num_layers": 1, "model.mlp": "none"})
    loop.train(config, tmp_path, Console(quiet=True))
    assert order == [word for n in range(1, 5) for word in ("step", f"wrote {n}")]


def test_a_checkpoint_goes_on_on_other_meshes(tmp_path):
    before = saved_on("fsdp 2, heads 4", tmp_path)
    _, expected = run(PLAIN, "one device")
    for mesh in ("fsdp 8", "one device"):
        state = restored_on(mesh, tmp_path)
        assert int(state.step) == 10
        tiny.assert_equal(tiny.arrays(state), tiny.arrays(before))
        _, losses = stepper(PLAIN, mesh).losses(state, 10)
        np.testing.assert_allclose(losses, expected[10:20], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "sizes", "sentence"),
    [
        ({}, dict(fsdp=3), "batch_size / optim.accumulate = 16 .* mesh.data x mesh.fsdp = 3"),
        ({"batch_size": 15}, dict(fsdp=5), "model.embed_dim = 16 .* mesh.fsdp = 5"),
        ({}, dict(heads=3), "model.num_heads = 8 .* mesh.heads = 3"),
        ({"model.mlp_dim": 20}, dict(heads=8), "model.mlp_dim = 20 .* mesh.heads = 8"),
        ({}, dict(context=3), "length = 8 .* mesh.context = 3"),
    ],
)
def test_sizes_that_a_mesh_does_not_divide_are_refused_by_name(fields, sizes, sentence):
    config = tiny.config(fields)
    with pytest.raises(UserError, match=sentence):
        check_mesh(tiny.mesh(**sizes), tiny.model_config(config), config.batch_size, config.length)
