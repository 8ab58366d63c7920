"""A step saved on any mesh, by one process or two, is restored on any other."""

import io
import json
import shutil

import jax
import numpy as np
import pytest
from rich.console import Console

from tests.train import tiny
from tests.train.processes import running
from train.checkpoints import Checkpoints
from train.loop import train
from train.metrics import read
from train.step import init_state, make_optimizer

pytestmark = pytest.mark.slow
SAVED, LAST = 5, 15
FIELDS = tiny.FIELDS | {
    "steps": LAST,
    "optim.schedule": "constant",
    "optim.ema": 0.9,
    "checkpoint.every": SAVED,
    "checkpoint.keep": 9,
    "log.eval_batches": 1,
}
MESHES = {
    "1": dict(fsdp=1),
    "2x4": dict(fsdp=2, heads=4),
    "8x1": dict(fsdp=8),
    "1x8": dict(heads=8),
    "2 processes": dict(data=2, fsdp=2, heads=2),
}


def config_of(name, steps):
    sizes = dict(data=1, fsdp=1, heads=1) | MESHES[name]
    changes = {f"mesh.{axis}": size for axis, size in sizes.items()}
    return tiny.config({**FIELDS, **changes, "steps": steps})


def flags_of(name, steps):
    """Returns the flags of the same config for each of two processes of four devices."""
    sizes = dict(data=1, fsdp=1, heads=1) | MESHES[name]
    fields = FIELDS | {f"mesh.{axis}": size for axis, size in sizes.items()}
    fields |= {"steps": steps, "host_devices": 4}
    return ["--config=configs/base.py", *(f"--config.{n}={v}" for n, v in fields.items())]


def go(name, workdir, steps):
    """Trains to a step on a mesh."""
    if name == "2 processes":
        arguments = [*flags_of(name, steps), f"--workdir={workdir}"]
        ended = running.ended(running.start([arguments] * 2), 300)
        assert [process.status for process in ended] == [0, 0], ended
    else:
        console = Console(file=io.StringIO())
        assert train(config_of(name, steps), workdir, console).step == steps


def restored(name, workdir):
    """Returns the arrays of a run's state as a mesh of this process restores them."""
    config = config_of(name, SAVED)
    shape, mesh = tiny.model_config(config), tiny.mesh(**MESHES[name])
    optimizer = make_optimizer(config, shape)
    with jax.set_mesh(mesh):
        abstract = jax.eval_shape(lambda k: init_state(shape, optimizer, k), jax.random.key(0))
        checkpoints = Checkpoints(workdir, config, None)
        return tiny.arrays(checkpoints.restore(checkpoints.find(), abstract, mesh))


def losses(workdir):
    """Returns the losses of a run, of each step once."""
    rows = read(workdir)
    assert [row["step"] for row in rows] == [*range(1, LAST + 1)]
    return [row["loss"] for row in rows]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Returns the folder of a run on each mesh, saved once."""
    folders = {name: tmp_path_factory.mktemp("saved") / "run" for name in MESHES}
    for name, workdir in folders.items():
        go(name, workdir, SAVED)
    return folders


@pytest.fixture(scope="module")
def expected(saved, tmp_path_factory):
    """Returns the arrays of each saved step, and the losses of a run that was never stopped."""
    workdir = tmp_path_factory.mktemp("whole")
    go("1", workdir, LAST)
    return {name: restored("1", saved[name]) for name in MESHES}, losses(workdir)


@pytest.mark.parametrize("target", [name for name in MESHES if name != "2 processes"])
@pytest.mark.parametrize("source", MESHES)
def test_a_step_is_restored_on_another_mesh(saved, expected, source, target, tmp_path):
    workdir = shutil.copytree(saved[source], tmp_path / "on")
    go(target, workdir, LAST)
    arrays, whole = expected
    tiny.assert_equal(restored(target, saved[source]), arrays[source])
    np.testing.assert_allclose(losses(workdir), whole, atol=1e-4, rtol=0)


def test_a_step_of_any_mesh_is_restored_by_two_processes(saved, expected, tmp_path):
    """One start for all of them: each is restored, saved again as it is, and gone on with."""
    again = {name: tmp_path / name for name in MESHES}
    listed = [",".join(map(str, folders.values())) for folders in (saved, again)]
    words = [*flags_of("2 processes", LAST), f"--workdir={listed[0]}", f"--to={listed[1]}"]
    ended = running.ended(running.start([words] * 2, "tests.train.processes.resaving"), 500)
    assert [process.status for process in ended] == [0, 0], ended
    arrays, whole = expected
    for name in MESHES:
        tiny.assert_equal(restored("1", again[name]), arrays[name])
        found = json.loads((again[name] / "losses.json").read_text())
        np.testing.assert_allclose(found, whole[SAVED:], atol=1e-4, rtol=0)
