"""What a run does after an accident, on a text of which some batches are poison."""

import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from configs.errors import UserError
from model import manifest
from model.parameter import named_arrays
from model.saved import open_saved
from tests.train import poison, tiny
from tests.train.processes import running
from train import loop, policy
from train.metrics import read
from train.start import Start

SKIP = {"accidents.policy": "skip"}
ROLLBACK = {"accidents.policy": "rollback"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("texts")


@pytest.fixture(scope="module")
def one(folder):
    """A text of which batch 6 is poison: it is taken by step 7."""
    return poison.written(folder, 6)


def arrays(workdir, step):
    """Returns the saved parameters, by name."""
    model = open_saved(workdir / "checkpoints" / str(step)).load_model(tiny.mesh())
    return {name: np.asarray(array) for name, array in named_arrays(model).items()}


def test_stop_ends_the_run_and_records_it(one, tmp_path):
    for _ in range(2):  # the same on every try, and recorded once
        with pytest.raises(UserError, match="loss of step 7 is not finite.* its batch, 6, passed"):
            poison.run(tmp_path, one)
        assert manifest.whole_steps(tmp_path) == [2, 4, 6]
        (event,) = poison.events(tmp_path)
        assert {name: event[name] for name in ("step", "batch", "kind", "loss", "action")} == dict(
            step=7, batch=6, kind="loss", loss="nan", action="stop"
        )


def test_a_rollback_to_the_beginning_comes_to_the_same_parameters(folder, tmp_path, monkeypatch):
    """Though the run that they are from has trained on meanwhile."""
    source = tmp_path / "source"
    poison.run(source, poison.written(folder), {"steps": 4})
    later = (source / "checkpoints" / "4").rename(tmp_path / "4")
    back = policy.Policy.back

    def trained_on(self, accident):
        later.rename(source / "checkpoints" / "4")
        return back(self, accident)

    monkeypatch.setattr(policy.Policy, "back", trained_on)
    given = ROLLBACK | {"checkpoint.restore_from": str(source), "checkpoint.every": 5}
    _, said = poison.run(tmp_path / "run", poison.written(folder, 2), given)
    assert "back to step 0, without batches 0 to 2" in said
    assert said.count(f"parameters from {source}/checkpoints/2") == 2
    step = tmp_path / "run" / "checkpoints" / "5"
    assert manifest.read(step).made["begun_from"]["step"] == 2


@pytest.fixture(scope="module")
def skipped(one, tmp_path_factory):
    """A run that passed batch 6 over, and what it said."""
    workdir = tmp_path_factory.mktemp("skipped")
    return workdir, poison.run(workdir, one, SKIP | {"steps": 9})[1]


def test_skip_is_as_if_the_batch_were_not_there(one, skipped, tmp_path):
    workdir, said = skipped
    assert "the loss of step 7 is not finite: batch 6 is passed over" in said
    poison.leave_out(tmp_path, (6, 6))
    poison.run(tmp_path, one, SKIP | {"steps": 8})
    expected = poison.losses(tmp_path)
    found = poison.losses(workdir)
    assert [*found] == [*range(1, 10)]
    assert found.pop(7) == (None, None)
    assert [*found.values()] == [*expected.values()]
    tiny.assert_equal(arrays(workdir, 9), arrays(tmp_path, 8))
    flagged = [row["step"] for row in read(workdir) if "skipped" in row]
    assert flagged == [7]
    (event,) = poison.events(workdir)
    assert (event["step"], event["batch"], event["action"]) == (7, 6, "skip")


@pytest.mark.slow
def test_a_run_set_back_before_a_skipped_step_meets_it_again(one, skipped, tmp_path):
    workdir, _ = skipped
    again = tmp_path / "again"
    shutil.copytree(workdir, again)
    for step in (6, 8, 9):
        shutil.rmtree(again / "checkpoints" / str(step))
    poison.run(again, one, SKIP | {"steps": 9})
    assert poison.losses(again) == poison.losses(workdir)
    assert poison.events(again) == poison.events(workdir)
    tiny.assert_equal(arrays(again, 9), arrays(workdir, 9))


@pytest.fixture(scope="module")
def told(one, tmp_path_factory):
    """A run that was told from the start to leave out what the next one comes to leave out."""
    workdir = tmp_path_factory.mktemp("told")
    poison.leave_out(workdir, (5, 7))
    assert "back to" not in poison.run(workdir, one, ROLLBACK | AFTER)[1]
    return workdir


# The last call, of steps 6 to 8, has the accident in its middle.
AFTER = {"accidents.skip_after": 1, "checkpoint.every": 5}


@pytest.fixture(scope="module")
def rolled_back(one, tmp_path_factory):
    """A run that went back to step 5, and what it said."""
    workdir = tmp_path_factory.mktemp("rolled_back")
    return workdir, poison.run(workdir, one, ROLLBACK | AFTER)[1]


def check_same(workdir, told):
    """Checks that a run took the steps of the one that was told, each once, and saved the same."""
    assert poison.losses(workdir) == poison.losses(told)
    tiny.assert_equal(arrays(workdir, 8), arrays(told, 8))
    assert manifest.whole_steps(workdir) == manifest.whole_steps(told)
    for name in ("checkpoints/5/state.json", "checkpoints/8/state.json"):
        about = json.loads((workdir / name).read_text())
        assert about.get("skipped", [[5, 7]]) == [[5, 7]]


def test_rollback_is_as_if_the_batches_had_never_been_there(rolled_back, told):
    workdir, said = rolled_back
    assert "the loss of step 7 is not finite: back to step 5, without batches 5 to 7" in said
    check_same(workdir, told)
    (event,) = poison.events(workdir)
    assert (event["step"], event["batch"], event["to"]) == (7, 6, 5)
    assert event["skipped"] == [5, 7]
    assert "skipped" in json.loads((workdir / "checkpoints/8/state.json").read_text())


def test_a_run_that_ends_right_after_a_rollback_goes_on_as_one_that_did_not(
    one, told, tmp_path, monkeypatch
):
    begins, times = Start.at, []

    def killed(*given):
        times.append(given)
        if len(times) > 1:  # the first is the start of the run
            raise KeyboardInterrupt
        return begins(*given)

    with monkeypatch.context() as patch:
        patch.setattr(Start, "at", killed)
        with pytest.raises(KeyboardInterrupt):
            poison.run(tmp_path, one, ROLLBACK | AFTER)
    assert 7 in poison.losses(tmp_path)
    poison.run(tmp_path, one, ROLLBACK | AFTER)
    assert len(poison.events(tmp_path)) == 1
    check_same(tmp_path, told)


@pytest.mark.slow
def test_a_signal_in_the_call_of_an_accident_saves_nothing_of_it(one, told, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        real = loop.make_step

        def make_step(config, optimizer):
            step = real(config, optimizer)

            def run(state, *rest):
                if int(state.step) == 5:
                    signal.raise_signal(signal.SIGTERM)
                return step(state, *rest)

            return run

        patch.setattr(loop, "make_step", make_step)
        outcome, said = poison.run(tmp_path, one, ROLLBACK | AFTER)
    assert (outcome.step, outcome.signal) == (5, signal.SIGTERM)
    assert "stopped by a signal; run again to go on from step 5" in said
    assert manifest.whole_steps(tmp_path) == [5]
    poison.run(tmp_path, one, ROLLBACK | AFTER)
    check_same(tmp_path, told)


@pytest.mark.slow
def test_whatever_is_lost_the_same_batches_are_left_out(one, rolled_back, told, tmp_path):
    # The step that the run went back to is damaged: it begins again, and meets no accident.
    older, newer = tmp_path / "older", tmp_path / "newer"
    shutil.copytree(rolled_back[0], older)
    shutil.copytree(rolled_back[0], newer)
    for step in (5, 8):
        shutil.rmtree(older / "checkpoints" / str(step))
    (older / "run.json").unlink()  # else it is refused
    _, said = poison.run(older, one, ROLLBACK | AFTER)
    assert "back to" not in said
    check_same(older, told)
    # The record of events is lost: the saved step has what is left out.
    (newer / "events.jsonl").unlink()
    poison.run(newer, one, ROLLBACK | AFTER | {"steps": 10})
    further = tmp_path / "further"
    shutil.copytree(told, further)
    poison.run(further, one, ROLLBACK | AFTER | {"steps": 10})
    tiny.assert_equal(arrays(newer, 10), arrays(further, 10))


@pytest.mark.slow
def test_accidents_in_the_first_steps_and_after_rollbacks_until_they_are_too_many(folder, tmp_path):
    path = poison.written(folder, 1, 3, 4)
    changes = ROLLBACK | {"checkpoint.every": 0, "accidents.skip_before": 0, "steps": 6}
    few, workdir = tmp_path / "few", tmp_path / "run"
    sentence = "step 3 is not finite.*batch 4 is one too many after 2 accidents within 128 steps"
    with pytest.raises(UserError, match=sentence):
        poison.run(few, path, changes | {"accidents.limit": 2})
    assert [event["action"] for event in poison.events(few)] == ["rollback", "rollback", "stop"]
    # It goes on where more are allowed.
    poison.run(few, path, changes)
    poison.run(workdir, path, changes)
    found = [(e["step"], e["batch"], e["to"], e["skipped"]) for e in poison.events(workdir)]
    assert found == [(2, 1, 0, [1, 1]), (3, 3, 0, [3, 3]), (3, 4, 0, [4, 4])]
    told = tmp_path / "told"
    poison.leave_out(told, (1, 1), (3, 3), (4, 4))
    poison.run(told, path, changes)
    for other in (few, workdir):
        assert poison.losses(other) == poison.losses(told)
        tiny.assert_equal(arrays(other, 6), arrays(told, 6))


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_is_an_accident_on_a_mesh_with_microbatches(one, tmp_path):
    changes = SKIP | {
        "loss": "tests.train.own_losses:steep",
        "mesh.fsdp": 2,
        "mesh.heads": 2,
        "optim.accumulate": 2,
    }
    poison.run(tmp_path, one, changes)
    (event,) = poison.events(tmp_path)
    assert (event["step"], event["kind"], event["action"]) == (7, "gradient", "skip")
    assert isinstance(event["loss"], float)
    assert manifest.whole_steps(tmp_path) == [2, 4, 6, 8]


@pytest.mark.slow
def test_a_run_that_is_killed_right_after_a_rollback_ends_as_one_that_was_not(one, told, tmp_path):
    # Calls of one step and many steps before the next save, so that the signal finds it running.
    changes = ROLLBACK | {"checkpoint.every": 5, "steps": 20, "steps_per_call": 1}
    words = poison.words(tmp_path / "run", one, changes)
    process = subprocess.Popen(
        [sys.executable, "-m", "train", *words],
        cwd=running.ROOT,
        env=running.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        running.wait_until((tmp_path / "run" / "events.jsonl").exists, 120)
    finally:
        running.kill(process)
    assert process.returncode == -signal.SIGKILL
    assert running.command(words).status == 0
    expected = tmp_path / "expected"
    assert running.command(poison.words(expected, one, changes)).status == 0
    assert poison.losses(tmp_path / "run") == poison.losses(expected)
    assert poison.events(tmp_path / "run") == poison.events(expected)
    tiny.assert_equal(arrays(tmp_path / "run", 20), arrays(expected, 20))


@pytest.mark.slow
@pytest.mark.parametrize("changes", [ROLLBACK | AFTER, SKIP], ids=["rollback", "skip"])
def test_two_processes_decide_alike(one, tmp_path, changes):
    mesh = {"mesh.fsdp": 2, "mesh.heads": 2, "host_devices": 2}
    both = [poison.words(tmp_path / "two", one, changes | mesh)] * 2
    ended = running.ended(running.start(both), 240)
    assert [process.status for process in ended] == [0, 0], ended
    alone = poison.words(tmp_path / "one", one, changes | mesh | {"host_devices": 4})
    assert running.command(alone).status == 0
    (found,), (expected,) = poison.events(tmp_path / "two"), poison.events(tmp_path / "one")
    names = ("step", "batch", "kind", "action", "to", "skipped")
    assert [found.get(name) for name in names] == [expected.get(name) for name in names]
    one_, two = poison.losses(tmp_path / "one"), poison.losses(tmp_path / "two")
    assert [*one_] == [*two] == [*range(1, 9)]
    for step, (loss, _) in one_.items():
        assert loss is None or abs(loss - two[step][0]) < 1e-5
        assert (loss is None) == (two[step][0] is None)
