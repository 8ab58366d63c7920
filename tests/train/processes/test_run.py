"""Real runs of several processes on this machine: as one process, stopped and lost as one."""

import json
import re
import signal
import time

import jax
import numpy as np
import pytest

from model import manifest
from model.axes import MESH_AXES
from model.parameter import named_arrays
from model.saved import open_saved
from tests.train import tiny
from tests.train.processes import running
from train.metrics import read
from train.processes.watch import LOST


def losses(workdir):
    """Returns the loss of each step."""
    return {row["step"]: row["loss"] for row in read(workdir) if "loss" in row}


def arguments(workdir, *more):
    return [*running.TINY, f"--workdir={workdir}", *more]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of the same run by one process, on four forced host devices."""
    folder = tmp_path_factory.mktemp("alone")
    flags = ("--num_processes=1", "--config.host_devices=4", "--config.mesh.data=2")
    assert running.command(arguments(folder, *flags)).status == 0
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder of a run of two processes, and how they ended."""
    folder = tmp_path_factory.mktemp("two")
    both = [arguments(folder, "--config.mesh.data=2", "--config.checkpoint.every=20")] * 2
    return folder, running.ended(running.start(both), 120)


def test_two_processes_are_as_one(alone, two):
    folder, ended = two
    assert [process.status for process in ended] == [0, 0], ended
    expected, found = losses(alone), losses(folder)
    assert list(found) == list(expected) == list(range(1, 41))
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=0, atol=1e-5)
    assert manifest.whole_steps(folder) == [20, 40]


def test_process_0_alone_writes_and_shows(two):
    folder, ended = two
    assert "trained 40 steps" in ended[0].out
    assert "peer ranks" in ended[1].out or not ended[1].out  # gloo's own
    assert not ended[0].err
    assert not ended[1].err
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 41  # each step once, and the evaluation
    assert not list(folder.glob(".shared*"))


def test_two_processes_evaluate_and_sample_as_one(two):
    folder, _ = two
    flags = [f"--checkpoint={folder}", "--mesh=fsdp=2,heads=2", "--host_devices=2"]
    ended = running.ended(running.start([flags] * 2, "train.evaluate"), 60)
    loss = read(folder)[-1]["eval/loss"]
    assert [process.status for process in ended] == [0, 0], ended
    assert re.search(rf"loss +{loss:.4f} +nats a token", ended[0].out)
    assert "nats a token" not in ended[1].out
    ended = running.ended(running.start([flags, [*flags, "--batches=1"]], "train.evaluate"), 60)
    assert [process.status for process in ended] == [2, 2], ended
    assert "--batches is 1 here and 0 for process 0; start alike" in ended[0].err


# Microbatches, windows, packed documents, a tied embedding, grouped heads.
ALL = (
    *("--config.data.source=grammar", "--config.data.documents=200", "--config.length=48"),
    *("--config.data.validation_documents=8", "--config.data.rows=packed"),
    *("--config.model.num_layers=2", "--config.model.num_kv_heads=2"),
    *("--config.model.window=(None,5)", "--config.model.tie_embeddings=True"),
    "--config.model.vocab_size=352",
    *("--config.optim.accumulate=2", "--config.steps=50"),
)


def first_and_losses(folder, count, *words):
    """Returns the first parameters of a run of so many processes, and the loss of each step."""
    # A rate of nothing leaves the first parameters as they are.
    still, trained = folder / "still", folder / "trained"
    for workdir, more in (
        (still, ("--config.steps=2", "--config.optim.learning_rate=0.0")),
        (trained, ()),
    ):
        given = arguments(workdir, *ALL, *words, *more)
        ended = (
            running.ended(running.start([given] * count), 120)
            if count > 1
            else [running.command([*given, "--num_processes=1"])]
        )
        assert {process.status for process in ended} == {0}, ended
    with jax.set_mesh(tiny.mesh()):
        model = open_saved(still).load_model(tiny.mesh())
    return {n: np.asarray(a) for n, a in named_arrays(model).items()}, losses(trained)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Returns those of a run of one process on one device."""
    words = ("--config.host_devices=1", "--config.mesh.fsdp=1")
    return first_and_losses(tmp_path_factory.mktemp("one"), 1, *words)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "sizes", "residual"),
    [
        (2, (2, 2, 1, 1), "replicated"),
        (2, (1, 1, 2, 2), "sharded"),
        (4, (2, 2, 2, 1), "replicated"),
        (4, (1, 2, 2, 2), "sharded"),
    ],
)
def test_first_parameters_are_equal_to_the_bit_and_losses_to_rounding(
    tmp_path, one, count, sizes, residual
):
    mesh = [f"--config.mesh.{axis}={n}" for axis, n in zip(MESH_AXES, sizes, strict=True)]
    mesh.append(f"--config.mesh.residual={residual}")
    (first, expected), (found, loss) = one, first_and_losses(tmp_path, count, *mesh)
    tiny.assert_equal(found, first)
    np.testing.assert_allclose(list(loss.values()), list(expected.values()), rtol=0, atol=1e-4)


def test_the_step_time_of_each_host_is_recorded_and_the_slowest_named(two):
    folder, ended = two
    row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[30])
    for index in (0, 1):
        assert 0 < row[f"host_seconds/{index}"] < row[f"step_seconds/{index}"] < 10
    assert "slowest host: process " in ended[0].out


@pytest.mark.slow
def test_a_signal_to_any_process_stops_all_at_one_step_and_the_run_goes_on(tmp_path, alone):
    both = [arguments(tmp_path, "--config.mesh.data=2", "--config.steps_per_call=1")] * 2
    processes = running.start(both)
    running.wait_until(lambda: len(losses(tmp_path)) >= 2)
    processes[1].send_signal(signal.SIGTERM)
    ended = running.ended(processes, 30)
    assert [process.status for process in ended] == [143, 143], ended
    (step,) = manifest.whole_steps(tmp_path)
    assert f"stopped by a signal and saved at step {step}" in ended[0].out
    assert step < 40
    ended = running.ended(running.start(both), 120)
    assert [process.status for process in ended] == [0, 0], ended
    assert f"resumed from step {step}" in ended[0].out


SLOW = """
import os, pathlib, time

def loss(logits, label):
    pathlib.Path(f"traced by {os.getpid()}").touch()
    time.sleep(60)
    return logits[label]
"""


@pytest.mark.parametrize(
    ("target", "number"),
    [
        pytest.param(0, signal.SIGINT, marks=pytest.mark.slow),
        (1, signal.SIGTERM),
    ],
)
def test_a_signal_before_the_first_step_ends_all_at_once(tmp_path, target, number):
    (tmp_path / "slow.py").write_text(SLOW)
    config = f"--config={running.ROOT}/configs/induction.py"
    words = [config, *arguments(tmp_path / "run")[1:], "--config.loss=slow:loss"]
    words += ["--config.batch_size=12", "--config.mesh.data=3"]
    processes = running.start([words] * 3, cwd=tmp_path)
    running.wait_until(lambda: len(list(tmp_path.glob("traced by *"))) == 3)
    processes[target].send_signal(number)
    ended = running.ended(processes, 20)
    assert [process.status for process in ended] == [128 + number] * 3, ended
    sentence = f"asked to end by {number.name}, with nothing new to save; run again.\n"
    assert ended.pop(target).err == f"error: {sentence}"
    for other in ended:
        assert re.fullmatch(f"error: process {target} on .* ended the run: {sentence}", other.err)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lost", "number"), [(0, signal.SIGKILL), (1, signal.SIGKILL), (0, signal.SIGSTOP)]
)
def test_a_lost_process_ends_the_other_with_a_sentence_that_names_it(tmp_path, lost, number):
    """Killed, or silent as one whose host is gone."""
    long = [arguments(tmp_path, "--config.mesh.data=2", "--config.steps=100000")] * 2
    processes = running.start(long)
    running.wait_until(lambda: len(losses(tmp_path)) >= 2)
    processes[lost].send_signal(number)
    try:
        (other,) = running.ended([processes[1 - lost]], 60)
    finally:
        running.kill(processes[lost])
    assert other.status == LOST
    said = other.err.splitlines()[-1]
    assert said.startswith(f"error: process {lost} on ")
    assert said.endswith("start all processes again.")


@pytest.mark.slow
def test_a_signal_ends_a_process_whose_coordinator_is_silent(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    config = f"--config={running.ROOT}/configs/induction.py"
    words = [config, *arguments(tmp_path / "run")[1:], "--config.loss=slow:loss"]
    processes = running.start([[*words, "--config.mesh.data=2"]] * 2, cwd=tmp_path)
    running.wait_until(lambda: len(list(tmp_path.glob("traced by *"))) == 2)
    processes[0].send_signal(signal.SIGSTOP)
    processes[1].send_signal(signal.SIGTERM)
    try:
        (ended,) = running.ended([processes[1]], 30)
    finally:
        running.kill(processes[0])
    assert ended.status == 128 + signal.SIGTERM
    assert "asked to end by SIGTERM" in ended.err


@pytest.mark.parametrize(
    ("second", "sentence"),
    [
        (("--config.seed=1",), "process 1 on .*: config.seed is 1 here and 0 for process 0"),
        (("--config.optim.learning_rate=-1.0",), "process 1 on .* ended the run: .*learning_rate"),
        pytest.param(
            ("--workdir={}/other",),
            "is not seen here; name a --workdir on a disk that all hosts share",
            marks=pytest.mark.slow,  # a network disk is given half a minute
        ),
    ],
    ids=["another config", "a mistake of one", "disks of their own"],
)
def test_what_one_process_cannot_do_ends_all_with_its_sentence(tmp_path, second, sentence):
    mesh = "--config.mesh.data=2"
    first = arguments(tmp_path / "run", mesh)
    other = [word.format(tmp_path) for word in second]
    began = time.monotonic()
    ended = running.ended(running.start([first, [*first, *other]]), 90)
    assert time.monotonic() - began < 60
    for process in ended:
        assert process.status == 2
        assert re.fullmatch("error: .*\n", process.err), process.err
    assert re.search(sentence, ended[0].err)
    assert not read(tmp_path / "run")
