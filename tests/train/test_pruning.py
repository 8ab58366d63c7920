"""Steps deleted by hand: which go, which stay whatever is asked."""

import shutil

import pytest

from configs.errors import UserError
from model import manifest
from tests.train import saved_runs, tiny
from train.checkpoint import prune
from train.holding import Holding
from train.processes.group import Processes


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run of six steps."""
    config = tiny.config({"model.num_layers": 1, "model.mlp": "none"})
    path = tmp_path_factory.mktemp("run")
    model = saved_runs.model(config, 1)
    saved_runs.write(path, dict.fromkeys(range(1, 7), model), config)
    return path


@pytest.fixture
def run(saved, tmp_path):
    """A copy of it."""
    return shutil.copytree(saved, tmp_path / "run")


def left(run):
    return sorted(int(folder.name) for folder in (run / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("keep", "keep_every", "stay"),
    [(1, 0, [6]), (2, 3, [3, 5, 6]), (1, 2, [2, 4, 6]), (9, 0, [1, 2, 3, 4, 5, 6])],
)
def test_the_newest_and_some_for_good_stay(run, console, keep, keep_every, stay):
    before = {f: f.stat().st_size for f in run.rglob("*") if f.is_file()}
    dry = prune(console, str(run), keep, keep_every, dry_run=True)
    assert {f: f.stat().st_size for f in run.rglob("*") if f.is_file()} == before
    figures = prune(console, str(run), keep, keep_every)
    assert left(run) == stay == manifest.whole_steps(run)
    gone = {f: size for f, size in before.items() if not f.exists()}
    assert figures["freed"] == dry["freed"] == sum(gone.values())
    assert [row["name"] for row in dry["steps"] if not row["goes"]] == [f"step {n}" for n in stay]
    words = console.export_text()
    assert "step 1: would be deleted, " in words or len(stay) == 6
    assert f"freed, by {6 - len(stay)} of 6" in words


def test_the_last_good_step_stays_when_newer_ones_are_damaged(run, console):
    for step in (5, 6):  # of the right sizes
        saved_runs.flip(saved_runs.largest(run / "checkpoints" / str(step)))
    (run / "checkpoints" / "2" / "state.json").unlink()
    shutil.rmtree(run / "checkpoints" / "1")
    (run / "checkpoints" / "8").mkdir()  # cut off
    (run / "checkpoints" / "mine").mkdir()
    prune(console, str(run), 1)
    assert sorted(f.name for f in (run / "checkpoints").iterdir()) == [
        "2",
        "4",
        "5",
        "6",
        "8",
        "mine",
    ]
    words = console.export_text()
    assert "does not hold what was written" in words
    assert "step 2: stays (state.json is missing)" in words
    assert "step 3: deleted, " in words
    prune(console, str(run), 1, damaged=True)
    assert sorted(f.name for f in (run / "checkpoints").iterdir()) == ["4", "mine"]


def test_what_is_no_damage_stays(run, console):
    shutil.copytree(run / "checkpoints" / "3", run / "checkpoints" / "0003")
    (run / "checkpoints" / "3" / "state.json").unlink()
    shutil.rmtree(run / "checkpoints" / "3" / "optimizer")  # a saved model
    prune(console, str(run), 1, damaged=True)
    assert sorted(f.name for f in (run / "checkpoints").iterdir()) == ["0003", "3", "6"]
    assert "step 3: stays (a saved model)" in console.export_text()


def test_what_is_all_damaged_stays(run, console):
    for step in range(1, 7):
        (run / "checkpoints" / str(step) / "state.json").write_text("")
    with pytest.raises(UserError, match="holds no step that is whole, so its damaged ones stay"):
        prune(console, str(run), 1, damaged=True)
    prune(console, str(run), 1)
    assert left(run) == [1, 2, 3, 4, 5, 6]
    for step in range(1, 7):
        (run / "checkpoints" / str(step) / "manifest.json").unlink()
    with pytest.raises(UserError, match="holds no step that is whole, so its damaged ones stay"):
        prune(console, str(run), 1, damaged=True)
    assert left(run) == [1, 2, 3, 4, 5, 6]


def test_a_run_that_trains_is_left_alone(run, console):
    sentence = r"--checkpoint=.*run is used by process .*; wait for its end"
    with Holding(run, Processes()), pytest.raises(UserError, match=sentence):
        prune(console, str(run), 1)
    assert len(left(run)) == 6
    prune(console, str(run), 1)
    assert left(run) == [6]
    assert not (run / "running.json").exists()
    with pytest.raises(UserError, match="is not a run; name the folder that holds checkpoints"):
        prune(console, str(run / "checkpoints" / "6"), 1)
