"""A disk that is full, read-only or gone: one sentence, and nothing saved before is lost."""

import errno
import gc
import os

import jax
import pytest
from rich.console import Console
from tensorboardX import SummaryWriter

from configs.errors import UserError
from model import manifest
from model.saved import open_saved
from tests.train import tiny
from train.checkpoints import Checkpoints
from train.loop import train
from train.metrics import read
from train.profile import Profile

QUIET = Console(quiet=True)
FIELDS = {"steps": 6, "steps_per_call": 1, "checkpoint.every": 2, "log.eval_batches": 1}


def fill(folder, leave):
    """Fills a disk but for so many bytes; returns the file that does."""
    filler = folder / "filler"
    about = os.statvfs(folder)
    with open(filler, "wb") as file:
        file.truncate(0)
        os.posix_fallocate(file.fileno(), 0, max(4096, about.f_bavail * about.f_bsize - leave))
    return filler


def test_a_disk_that_is_full_at_any_moment_of_a_save_loses_nothing(disk, capfd, caplog):
    folder, _ = disk
    stepper, state = tiny.on_one_device()
    checkpoints = Checkpoints(folder / "run", stepper.config, None)

    def save(step):
        with jax.set_mesh(stepper.mesh):
            checkpoints.save(state, step)
            checkpoints.wait()

    save(1)
    fitted = []
    for step, leave in enumerate(range(0, 200_000, 8192), 2):
        filler = fill(folder, leave)
        mistake = None
        try:
            save(step)
        except UserError as error:
            mistake = str(error)
        whole = manifest.whole_steps(folder / "run")
        filler.unlink()
        fitted.append(mistake is None)
        if mistake is None:
            assert whole == [1, step]
            break
        assert "(No space left on device); what was saved before is whole: free space" in mistake
        assert "\n" not in mistake
        assert whole == [1]
    assert len(fitted) > 5
    assert fitted[-1]
    assert steps_that_open(folder / "run") == [1, step]
    gc.collect()  # what was left to an exception that nobody fetched would be told now
    said = capfd.readouterr().err + caplog.text
    assert "Traceback" not in said, said


def steps_that_open(workdir):
    steps = manifest.whole_steps(workdir)
    for step in steps:
        open_saved(workdir / "checkpoints" / str(step)).load_model(tiny.mesh())
    return steps


def test_a_run_whose_disk_fills_ends_with_a_sentence_and_goes_on_when_there_is_room(disk):
    folder, mount = disk
    fields = FIELDS | {"steps": 24, "checkpoint.keep": 99}
    assert mount("remount,size=1m").returncode == 0
    with pytest.raises(UserError, match="No space left on device"):
        train(tiny.config(fields), folder / "run", QUIET)
    saved = steps_that_open(folder / "run")
    assert saved == [*range(2, saved[-1] + 1, 2)]
    assert mount("remount,size=20m").returncode == 0
    assert train(tiny.config(fields), folder / "run", QUIET).step == 24
    assert steps_that_open(folder / "run") == [*range(2, 25, 2)]
    assert [row["step"] for row in read(folder / "run")] == [*range(1, 25)]


def test_rows_that_fill_a_disk_end_a_run_with_a_sentence(disk):
    folder, _ = disk
    filler = fill(folder, 24_576)
    fields = FIELDS | {"steps": 400, "steps_per_call": 50, "checkpoint.every": 0}
    with pytest.raises(UserError, match=r"metrics.jsonl cannot be written \(No space left"):
        train(tiny.config(fields), folder / "run", QUIET)
    filler.unlink()
    assert train(tiny.config(fields), folder / "run", QUIET).step == 400
    assert [row["step"] for row in read(folder / "run")] == [*range(1, 401)]


def test_a_read_only_folder_is_refused_and_can_still_be_opened(disk):
    folder, mount = disk
    train(tiny.config(FIELDS), folder / "run", QUIET)
    assert mount("remount,ro").returncode == 0
    for fields in (FIELDS, FIELDS | {"steps": 9}):
        with pytest.raises(UserError, match=r"run cannot be written \(Read-only file system\)"):
            train(tiny.config(fields), folder / "run", QUIET)
    assert steps_that_open(folder / "run") == [4, 6]


def losing(monkeypatch, after, lose):
    """Has something happen to the run's folder when the step after so many begins."""
    take = Profile.take

    def taken(self, call, *given):
        if call.start == after:
            lose()
        return take(self, call, *given)

    monkeypatch.setattr(Profile, "take", taken)


@pytest.mark.parametrize("what", ["", "metrics.jsonl", "checkpoints", ".lock", "config.json"])
def test_what_is_deleted_under_a_run_comes_back(tmp_path, monkeypatch, what):
    workdir = tmp_path / "run"
    losing(monkeypatch, 3, lambda: (workdir / what).rename(tmp_path / "lost"))
    train(tiny.config(FIELDS), workdir, QUIET)
    assert steps_that_open(workdir) == [4, 6]
    assert [row["step"] for row in read(workdir)] == [1, 2, 3, 4, 5, 6]
    assert (workdir / "config.json").exists()


def test_figures_for_tensorboard_that_cannot_be_written_are_a_sentence(tmp_path, monkeypatch):
    def fail(board):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(SummaryWriter, "close", fail)
    fields = FIELDS | {"log.tensorboard": True}
    with pytest.raises(UserError, match="tensorboard cannot be written .*No space left"):
        train(tiny.config(fields), tmp_path, QUIET)
    assert steps_that_open(tmp_path) == [4, 6]


def test_a_folder_that_cannot_be_made_again_ends_the_run(tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    losing(monkeypatch, 3, lambda: (workdir.rename(tmp_path / "lost"), workdir.touch()))
    with pytest.raises(UserError, match="cannot be|could not be"):
        train(tiny.config(FIELDS), workdir, QUIET)
