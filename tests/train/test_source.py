"""What a run begins from stays what it was, though that run trains on."""

import io
import json
import shutil

import pytest
from rich.console import Console

from configs.errors import UserError
from model import manifest
from tests.train import saved_runs, tiny
from train import run_file
from train.loop import train
from train.processes.group import Processes
from train.profile import Profile
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


def opened(source, before, ema=False):
    fields = {"checkpoint.restore_from": str(source), "checkpoint.restore_ema": ema}
    return open_source(tiny.config(SMALL | fields), before, Processes(), print)[1]


@pytest.mark.parametrize("ema", [False, True])
def test_it_is_the_same_step_again(source, tmp_path, ema):
    first = opened(source, None, ema)
    step = source / "checkpoints" / "4"
    assert (first["path"], first["step"]) == (str(step), 4)
    (tmp_path / "6").rename(source / "checkpoints" / "6")
    assert opened(source, first, ema) == first
    assert opened(source, None, ema)["step"] == opened(source, first, not ema)["step"] == 6
    moved = source.rename(tmp_path / "moved")
    source.symlink_to(moved)  # as a mounted disk may be elsewhere
    assert opened(source, first | dict(path="/nowhere"), ema)["step"] == 4
    shutil.rmtree(step / "optimizer")
    (step / "state.json").unlink()
    assert opened(source, first, ema)["digest"] == first["digest"]  # a saved model now
    saved_runs.flip(next(f for f in (step / ("ema" if ema else "model") / "d").iterdir()))
    with pytest.raises(UserError, match="4 does not hold what was written"):
        opened(source, first, ema)
    shutil.rmtree(step)
    gone = r"stood for .*/4 when this run began, which is not there any more.* delete run.json"
    with pytest.raises(UserError, match=gone):
        opened(source, first, ema)
    saved_runs.write(
        tmp_path / "other", {4: saved_runs.model(tiny.config(SMALL), 9)}, tiny.config()
    )
    (tmp_path / "other" / "checkpoints" / "4").rename(step)
    with pytest.raises(UserError, match=gone):
        opened(source, first, ema)


class Killed(BaseException):
    """What a run does not survive."""


@pytest.fixture
def killed(monkeypatch):
    """Returns a function that begins a run, and ends it after two steps, which saved nothing."""
    take = Profile.take

    def run(workdir, fields):
        def taken(self, call, *given):
            if call.start == 2:
                raise Killed
            return take(self, call, *given)

        with monkeypatch.context() as patch:
            patch.setattr(Profile, "take", taken)
            with pytest.raises(Killed):
                begin(workdir, fields)

    return run


def begin(workdir, fields):
    """Trains; returns what is said."""
    defaults = {"steps": 5, "steps_per_call": 1, "checkpoint.every": 0, "log.eval_batches": 1}
    console = Console(record=True, width=300, file=io.StringIO())
    train(tiny.config(SMALL | defaults | fields), workdir, console)
    return console.export_text()


@pytest.mark.parametrize("every", [1, 20])
def test_a_run_that_is_killed_before_its_first_save_begins_from_the_same(
    source, tmp_path, killed, every
):
    workdir, fields = tmp_path / "run", {"log.every": every}
    given = fields | {"checkpoint.restore_from": str(source)}
    killed(workdir, given)
    remembered = run_file.read(workdir)
    (tmp_path / "6").rename(source / "checkpoints" / "6")
    killed(workdir, given)  # once more, when its rows are taken back
    assert run_file.read(workdir) == remembered
    assert remembered["begun_from"]["step"] == 4
    assert f"parameters from {source}/checkpoints/4" in begin(workdir, given)
    made = json.loads((workdir / "checkpoints" / "5" / "manifest.json").read_text())["made"]
    assert made["begun_from"] == remembered["begun_from"]
    assert run_file.read(workdir) == remembered | dict(saved=5)
    (workdir / "run.json").write_bytes(b'{"saved": 5, \xff')  # a disk has lost it
    assert run_file.read(workdir) == {}
    begin(workdir, given | {"steps": 6})
    assert run_file.read(workdir) == remembered | dict(saved=6)


def test_a_run_that_began_from_nothing_says_so(source, tmp_path, killed):
    workdir, fields = tmp_path / "run", {"log.every": 20}
    killed(workdir, fields | {"checkpoint.restore_from": str(source)})
    assert "parameters from" not in begin(workdir, fields)
    assert "begun_from" not in manifest.read(workdir / "checkpoints" / "5").made
    assert run_file.read(workdir) == dict(saved=5, begun_from=None)
