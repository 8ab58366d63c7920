"""What a run begins from stays what it was, though that run trains on."""

import json
import shutil

import pytest

from configs.errors import UserError
from tests.train import saved_runs, tiny
from train.metrics import NAME
from train.processes.group import Processes
from train.source import open_source

SMALL = {"model.num_layers": 1, "model.mlp": "none"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run of two steps."""
    config = tiny.config(SMALL)
    path = tmp_path_factory.mktemp("source")
    models = {step: saved_runs.model(config, step) for step in (4, 6)}
    saved_runs.write(path, models, config)
    return path


@pytest.fixture
def source(saved, tmp_path):
    """A copy of it that has come to step 4 alone, and where step 6 is."""
    path = shutil.copytree(saved, tmp_path / "source")
    (path / "checkpoints" / "6").rename(tmp_path / "6")
    return path


def opened(source, workdir, ema=False, **given):
    fields = {"checkpoint.restore_from": str(source), "checkpoint.restore_ema": ema}
    return open_source(workdir, tiny.config(SMALL | fields), Processes(), print, **given).step


def takes_a_step(workdir):
    (workdir / NAME).write_text('{"step": 1, "loss": 4.0}\n')


@pytest.mark.parametrize("ema", [False, True])
def test_a_run_that_took_steps_begins_from_the_same_again(source, tmp_path, ema):
    workdir = tmp_path / "run"
    workdir.mkdir()
    assert opened(source, workdir, ema) == 4
    remembered = json.loads((workdir / "run.json").read_text())["begun_from"]
    step = source / "checkpoints" / "4"
    assert (remembered["path"], remembered["step"]) == (str(step), 4)
    (tmp_path / "6").rename(source / "checkpoints" / "6")
    takes_a_step(workdir)
    assert opened(source, workdir, ema) == 4
    shutil.rmtree(step / "optimizer"), (step / "state.json").unlink()
    assert opened(source, workdir, ema) is None  # a saved model now, with the same parameters
    shutil.rmtree(step)
    with pytest.raises(
        UserError, match=r"has begun from .*/4, which cannot be opened now: .*bring"
    ):
        opened(source, workdir, ema)
    config = tiny.config(SMALL)
    shutil.rmtree(source / "checkpoints")
    saved_runs.write(source, {4: saved_runs.model(config, 9)}, config)
    with pytest.raises(UserError, match=r"has begun from .*/4, which holds something else now"):
        opened(source, workdir, ema)


def test_a_run_that_took_none_begins_from_the_newest(source, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    assert opened(source, workdir, writes=False) == 4
    assert not list(workdir.iterdir())
    assert opened(source, workdir) == 4
    (tmp_path / "6").rename(source / "checkpoints" / "6")
    assert opened(source, workdir) == 6
    # One of older code, which remembered nothing.
    (workdir / "run.json").unlink()
    takes_a_step(workdir)
    assert opened(source, workdir, writes=False) == 6
