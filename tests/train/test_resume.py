"""A run that is killed, stopped or changed goes on as if nothing had happened."""

import io
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from configs import induction, resolved
from configs.errors import UserError
from model.manifest import whole_steps
from model.parameter import named_arrays
from model.saved import open_saved
from tests.train import tiny
from train.loop import train
from train.metrics import read

ROOT = Path(__file__).parents[2]
COLUMNS = ("step", "loss", "grad_norm", "learning_rate")
FIELDS = {
    "steps": 120,
    "batch_size": 8,
    "length": 16,
    "steps_per_call": 7,
    "data.periods": (2, 6),
    "model.embed_dim": 16,
    "model.num_heads": 2,
    "model.head_dim": 8,
    "model.dropout": 0.1,
    "optim.schedule": "constant",
    "optim.warmup_steps": 10,
    "mesh.fsdp": 1,
    "checkpoint.every": 5,
    "checkpoint.keep": 3,
    "log.every": 1,
    "log.eval_every": 0,
    "log.tensorboard": False,
}


def config(**changes):
    found = induction.get_config()
    found.update_from_flattened_dict({**FIELDS, **changes})
    return found


def run(workdir, changes=None):
    """Trains in this process; returns the outcome and what the run said."""
    said = io.StringIO()
    outcome = train(config(**(changes or {})), workdir, Console(file=said, width=200))
    return outcome, said.getvalue()


def curve(workdir):
    return [tuple(row[name] for name in COLUMNS) for row in read(workdir)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Returns the folder of a run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("uninterrupted")
    outcome, _ = run(workdir)
    assert (outcome.step, outcome.signal) == (120, None)
    assert [row[0] for row in curve(workdir)] == list(range(1, 121))
    return workdir


def final_arrays(workdir):
    found = open_saved(workdir)
    assert found.step == 120
    model = found.load_model(tiny.mesh())
    return {name: np.asarray(array) for name, array in named_arrays(model).items()}


def start(workdir):
    """Starts the same run as a command."""
    overrides = [f"--config.{name}={value}" for name, value in FIELDS.items()]
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "train", "--config=configs/induction.py"),
            f"--workdir={workdir}",
            *overrides,
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def send(process, number, workdir, rows):
    """Sends a signal at some moment after the run has that many rows; returns how it ended."""
    limit = time.monotonic() + 180
    while process.poll() is None and len(read(workdir)) < rows and time.monotonic() < limit:
        time.sleep(0.005)
    time.sleep(random.random() / 50)
    process.send_signal(number)
    said, _ = process.communicate(timeout=120)
    return process.returncode, said


def test_a_killed_and_a_stopped_run_end_as_one_that_was_not(uninterrupted, tmp_path):
    first = random.randint(1, 40)
    status, said = send(start(tmp_path), signal.SIGKILL, tmp_path, first)
    assert status == -signal.SIGKILL, said
    assert whole_steps(tmp_path)[-1:] != [120], "the run was over before it was killed"

    second = random.randint(45, 80)
    status, said = send(start(tmp_path), signal.SIGTERM, tmp_path, second)
    assert status == 128 + signal.SIGTERM, said
    stopped = whole_steps(tmp_path)[-1]
    assert f"saved at step {stopped}" in said
    assert curve(tmp_path)[-1][0] == stopped >= second

    said, _ = start(tmp_path).communicate(timeout=300)
    assert f"resumed from step {stopped}" in said
    assert curve(tmp_path) == curve(uninterrupted), (first, second)
    tiny.assert_equal(final_arrays(tmp_path), final_arrays(uninterrupted))


def test_a_run_that_goes_on_from_any_step_takes_the_same_steps(uninterrupted, tmp_path):
    whole = curve(uninterrupted)
    for steps in (1, 13, 33):
        outcome, _ = run(tmp_path, {"steps": steps})
        assert outcome.step == steps
        assert curve(tmp_path) == whole[:steps]
    shutil.copytree(tmp_path, tmp_path / "damaged")
    # The newest save is not whole: its file lost its end, and the one before its manifest.
    steps = [tmp_path / "damaged" / "checkpoints" / str(n) for n in (33, 30)]
    largest = max((f for f in steps[0].rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    (steps[1] / "manifest.json").unlink()
    # A safe field changes: on two devices the same sums are taken in another order.
    changes = {"steps": 40, "mesh.fsdp": 2, "log.every": 3}
    outcome, said = run(tmp_path / "damaged", changes)
    assert "resumed from step 25" in said
    assert "config.mesh.fsdp: 1 -> 2" in said
    assert outcome.step == 40
    found = curve(tmp_path / "damaged")
    assert found[:25] == whole[:25]
    assert [row[0] for row in found[25:]] == [27, 30, 33, 36, 39, 40]
    expected = [whole[int(row[0]) - 1] for row in found[25:]]
    np.testing.assert_allclose(found[25:], expected, rtol=0, atol=1e-3)
    assert whole_steps(tmp_path / "damaged") == [30, 35, 40]


def test_a_run_that_is_over_stays_as_it_is(uninterrupted):
    before = contents(uninterrupted)
    outcome, said = run(uninterrupted)
    assert outcome.step == 120
    assert "already has 120 steps" in said
    assert contents(uninterrupted) == before
    evaluation = {n: v for n, v in read(uninterrupted)[-1].items() if n.startswith("eval/")}
    assert {f"eval/{name}": value for name, value in outcome.evaluation.items()} == evaluation != {}


def contents(workdir):
    return {
        str(file.relative_to(workdir)): file.read_bytes()
        for file in sorted(workdir.rglob("*"))
        if file.is_file()
    }


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"checkpoint.restore_from": "/nowhere"}, "checkpoint.restore_from: '' -> '/nowhere'"),
        ({"length": 32}, "length: 16 -> 32.*checkpoint.restore_from="),
        ({"model.num_layers": 1, "batch_size": 4}, "batch_size: 8 -> 4, .*num_layers: 2 -> 1"),
        ({"mesh.fsdp": 3}, "mesh.fsdp"),
        ({"mesh.fsdp": 16}, "needs 16 devices"),
        ({"optim.name": "sgd"}, "optim.name"),
        ({"steps": 0}, "config.steps = 0"),
        ({"steps": 2**31}, "config.steps = 2147483648 must be at most 2,147,483,647"),
        ({"optim.accumulate": 3}, "optim.accumulate = 3"),
        ({"checkpoint.keep": 0}, "checkpoint.keep = 0"),
        ({"data.periods": (2, 99)}, "data.periods"),
    ],
    ids=str,
)
def test_a_start_that_fails_takes_nothing_away(uninterrupted, changes, sentence):
    before = contents(uninterrupted)
    with pytest.raises(UserError, match=sentence):
        run(uninterrupted, changes)
    assert contents(uninterrupted) == before


def test_the_folder_of_a_run_holds_its_resolved_config(uninterrupted):
    text = (uninterrupted / "config.json").read_text()
    found = resolved.from_json(text, "config.json")
    changed = resolved.difference(config(), found)
    assert changed == {"model.max_length": (None, 16)}
    assert json.loads(text)["model"]["vocab_size"] == 64


def test_a_run_starts_from_the_parameters_of_another(uninterrupted, tmp_path):
    restore = {"checkpoint.restore_from": str(uninterrupted), "optim.learning_rate": 0.0}
    restore["optim.ema"] = 0.5
    outcome, said = run(tmp_path, {**restore, "steps": 5, "length": 32})
    assert f"parameters from {uninterrupted}/checkpoints/" in said
    assert outcome.step == 5
    expected = final_arrays(uninterrupted)
    for ema in (False, True):
        model = open_saved(tmp_path).load_model(tiny.mesh(), ema=ema)
        tiny.assert_equal({n: np.asarray(a) for n, a in named_arrays(model).items()}, expected)
