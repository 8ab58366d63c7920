"""A step of a run taken once more: the same to the bit, with its batch and its gradients."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
from rich.console import Console

from configs import resolved
from configs.errors import UserError
from model.config import ModelConfig
from tests.train import poison, saved_runs, tiny
from tests.train.processes import running
from tests.train.test_resume import contents
from text.reading import open_sources
from train import replay as command
from train.processes.group import Processes
from train.replayed import begin, plan, replay

QUIET = Console(quiet=True)
FIELDS = {
    "accidents.policy": "rollback",
    "accidents.skip_after": 1,
    "checkpoint.every": 5,
    "optim.accumulate": 2,
    "model.dropout": 0.1,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run that went back from step 7 to step 5, without batches 5 to 7."""
    folder = tmp_path_factory.mktemp("replayed")
    path = poison.written(folder, 6)
    workdir = folder / "run"
    poison.run(workdir, path, FIELDS)
    return workdir


def replayed(workdir, step, batch=None):
    """Returns the plan, what it gave, and the command's report."""
    config = resolved.from_json((workdir / "config.json").read_text(), "config.json")
    sources = open_sources(config)
    shape = ModelConfig.from_config(config.model, sources.vocab_size, config.length)
    planned, mesh = plan(workdir, step, batch), tiny.mesh()
    saved = begin(planned, workdir, Processes(), print)
    with jax.set_mesh(mesh):
        found = replay(config, shape, sources, mesh, workdir, planned, saved, Processes(), QUIET)
    return planned, found, command._report(config, sources, planned, saved, found)


def test_an_accident_is_the_same_to_the_bit_and_its_row_is_named(run):
    before = contents(run)
    planned, found, report = replayed(run, 7)
    assert (planned.batch, report["start"], found.kind) == (6, 5, "loss")
    assert report["same"] is True
    assert (report["loss"], report["grad_norm"]) == ("nan", "nan")
    assert report["steps_before"] == dict(compared=0, differ=[])
    poisoned = [row for row in report["rows"] if "!" in row["text"]]
    assert [row["row"] for row in poisoned] == [1]
    assert [row["loss"] == "nan" for row in report["rows"]] == [False, True, False, False]
    by_name = {one.name: one for one in found.parameters}
    assert by_name["norm.gain"].not_finite == by_name["norm.gain"].size == 16
    assert contents(run) == before


def test_the_figures_of_a_step_add_up_to_those_on_record(run):
    planned, found, report = replayed(run, 8)
    assert (planned.batch, report["start"], found.kind) == (10, 5, "")
    loss, norm = poison.losses(run)[8]
    assert (found.figures["loss"], found.figures["grad_norm"]) == (loss, norm)
    assert report["same"] is True
    assert report["steps_before"] == dict(compared=2, differ=[])
    assert abs(found.nats.mean() - loss) < 1e-6
    of_rows = [row["loss"] for row in report["rows"]]
    np.testing.assert_allclose(of_rows, found.nats.mean(1), rtol=1e-6)
    norms = np.array([one.norm for one in found.parameters])
    assert abs(np.sqrt((norms**2).sum()) - norm) < 1e-5 * norm
    assert all(one.not_finite == 0 for one in found.parameters)


def test_what_is_not_as_on_record_is_said(run, tmp_path):
    rows = (run / "metrics.jsonl").read_text()
    changed = tmp_path / "changed"
    changed.mkdir()
    for name in ("checkpoints", "config.json", "events.jsonl"):
        (changed / name).symlink_to(run / name)
    loss = poison.losses(run)[6][0]
    (changed / "metrics.jsonl").write_text(rows.replace(str(loss), str(np.float32(loss * 1.001))))
    _, found, report = replayed(changed, 8)
    assert found.differ == report["steps_before"]["differ"] == [6]
    assert report["same"] is True
    (changed / "metrics.jsonl").write_text("")
    assert plan(changed, 8, None).recorded == {}


def test_which_batch_a_step_took(run, tmp_path):
    assert [plan(run, step, None).batch for step in (5, 6, 7, 8)] == [4, 8, 6, 10]
    assert plan(run, 6, 5).starts == plan(run, 7, 9).starts == [5]
    assert plan(run, 7, 9).event is None
    assert plan(run, 7, 6).event["kind"] == "loss"
    assert plan(run, 5, None).starts == []  # what is kept comes after it
    with pytest.raises(UserError, match="step 7 of .* never took --batch=3; it took 6, 9"):
        plan(run, 7, 3)


def test_what_is_damaged_is_not_believed(run, tmp_path):
    changed = shutil.copytree(run, tmp_path / "run")
    path = changed / "config.json"
    text = path.read_text()
    path.write_text(text.replace('"rotary_base": 10000', '"rotary_base": 90000'))
    with pytest.raises(UserError, match=r"config.json is not the config of .*, in model.rotary"):
        command._config(changed)
    path.write_text(text.replace('"steps": 8', '"steps": 9'))  # as a run may
    assert '"steps": 9' in command._config(changed)
    path.unlink()
    assert json.loads(command._config(changed)) == json.loads(text)
    said = []
    saved_runs.flip(saved_runs.largest(changed / "checkpoints" / "5"))
    assert begin(plan(changed, 8, None), changed, Processes(), said.append) is None
    assert re.match("step 5 does not hold what was written .*: passed over", said[0])
    (changed / "checkpoints" / "5" / "state.json").write_text("{")
    assert plan(changed, 6, None).starts == []
    shutil.rmtree(changed / "checkpoints")
    before = contents(changed)
    with pytest.raises(UserError, match="holds no run"):
        command._config(changed)
    path.write_text(text)
    replayed(changed, 1)
    assert contents(changed) == before | {"config.json": text.encode()}


@pytest.mark.slow
def test_the_command_shows_and_writes_what_it_found(tmp_path):
    path = poison.written(tmp_path, 6)
    mesh = {"mesh.fsdp": 2, "mesh.heads": 2, "host_devices": 4}
    words = poison.words(tmp_path / "run", path, FIELDS | mesh)
    assert running.command(words).status == 0
    out = tmp_path / "out.json"
    flags = [f"--workdir={tmp_path}/run", "--step=7", f"--json={out}"]
    alone = running.command(flags, "train.replay")
    assert alone.status == 0, alone.err
    assert "step 7 is the same to the bit" in alone.out
    assert re.search(r"row 1, loss nan: .*!", alone.out)
    report = json.loads(out.read_text())
    assert (report["same"], report["kind"], report["batch"]) == (True, "loss", 6)
    # Two processes are as one; from the run's beginning, and a step that was a good one.
    flags = [f"--workdir={tmp_path}/run", "--step=3", f"--json={out}", "--host_devices=2"]
    ended = running.ended(running.start([flags] * 2, "train.replay"), 240)
    assert [process.status for process in ended] == [0, 0], ended
    assert "from the run's beginning" in ended[0].out
    loss, _ = poison.losses(tmp_path / "run")[3]
    assert abs(json.loads(out.read_text())["loss"] - loss) < 1e-5
    mistake = running.command(["--workdir=/nowhere", "--step=1"], "train.replay")
    assert mistake.status == 2
    assert "--workdir=/nowhere holds no run" in mistake.err
