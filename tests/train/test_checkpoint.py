"""Saved steps listed, shown and verified, and the command as a person starts it."""

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from configs.errors import UserError
from model.parameter import named_arrays
from tests.train import saved_runs, tiny
from tests.train.processes import running
from train import checkpoint, listing
from train.checkpoint import export, show, show_list, verify
from train.saved_steps import find, open_one, written

ROOT = Path(__file__).parents[2]
OLD = Path(__file__).with_name("run_of_format_1.zip")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run of three steps that keeps two."""
    config = tiny.config({"model.num_layers": 1, "checkpoint.keep": 2})
    path = tmp_path_factory.mktemp("runs") / "a [run] %20"
    model = saved_runs.model(config, 1, fsdp=2)
    saved_runs.write(path, dict.fromkeys((2, 4, 6), model), config)
    return path


@pytest.fixture
def run(saved, tmp_path):
    """A copy of it."""
    return shutil.copytree(saved, tmp_path / saved.name)


@pytest.fixture
def old(tmp_path):
    """A run of format 1."""
    with zipfile.ZipFile(OLD) as file:
        file.extractall(tmp_path)
    return tmp_path / "run"


def sizes(folder):
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def test_a_list_says_of_each_step_whether_it_is_whole_and_whose_it_is(run, console):
    steps = run / "checkpoints"
    (steps / "4" / "state.json").unlink()
    (steps / "8" / "model").mkdir(parents=True)
    (steps / "8" / "model" / "half").write_bytes(b"12345")
    (steps / "9.orbax-checkpoint-tmp").mkdir()
    figures = show_list(console, find(str(run)))
    rows = {row["step"]: row for row in figures["steps"]}
    assert list(rows) == [2, 4, 6]
    assert [row["faults"] for row in rows.values()] == [[], ["state.json is missing"], []]
    assert [row["kept"] for row in rows.values()] == [True, None, True]
    for step, row in rows.items():
        made = json.loads((steps / str(step) / "manifest.json").read_text())["made"]
        assert row["bytes"] == sizes(steps / str(step))
        assert (row["time"], row["processes"]) == (made["time"], 1)
        assert dict(revision=row["code"], changed=row["changed"]) == made["code"]
        assert row["mesh"] == dict(data=1, fsdp=2, heads=1, context=1)
    assert figures["others"] == {"8": 5, "9.orbax-checkpoint-tmp": 0}
    words = console.export_text()
    assert "damaged: state.json is missing" in words
    assert "fsdp=2" in words
    assert "kept: the newest 2 whole steps" in words
    assert "also there: 8 (a save that was cut off or is on its way, 5 bytes)" in words

    (one,) = show_list(console, find(str(steps / "6")))["steps"]
    assert (one["step"], one["kept"]) == (6, None)
    kept = listing.rows(find(str(run)), listing.keep_of(find(str(run)), 1, 2))
    assert [row["kept"] for row in kept] == [True, None, True]
    assert listing.rows(find(str(run)), listing.Keep(1, 0))[0]["kept"] is False
    assert listing.revision("0123456789abcdef", True) == "0123456789ab+changed"
    assert [written(size) for size in (999, 1_234_567, 2e15)] == [
        "999 bytes", "1.2 MB", "2,000.0 TB"
    ]  # fmt: skip


def test_a_step_shows_where_it_comes_from_and_what_it_holds(run, console):
    figures = show(console, open_one(str(run)), every_array=True)
    assert figures["checkpoint"] == str(run / "checkpoints" / "6")
    made = json.loads((run / "checkpoints" / "6" / "manifest.json").read_text())["made"]
    shown = figures["provenance"]
    assert (shown["format"], shown["step"], shown["corpus"]) == (2, 6, "repeats")
    for name in ("time", "command", "device_kind", "seed", "python"):
        assert shown[name] == made[name]
    assert shown["packages.jax"] == made["packages"]["jax"]
    assert shown["mesh.fsdp"] == 2
    arrays = named_arrays(saved_runs.model(tiny.config({"model.num_layers": 1}), 1))
    elements = sum(math.prod(array.shape) for array in arrays.values())
    assert figures["items"]["model"] == dict(
        arrays=len(arrays), elements=elements, bytes=4 * elements, dtypes=["float32"]
    )
    assert figures["items"]["optimizer"] == dict(
        arrays=2, elements=3, bytes=12, dtypes=["int32", "uint32"]
    )
    assert set(figures["arrays"]["ema"]) == set(arrays)
    assert figures["config"]["model.embed_dim"] == 16
    assert "model.norm" not in figures["config"]
    words = console.export_text()
    assert "blocks.0.attention.query" in words
    assert "1 x 16 x 8 x 4" in words


def test_verify_reads_every_byte(run, console):
    steps = run / "checkpoints"
    assert verify(console, find(str(run)))["whole"]
    assert "step 4: whole, " in console.export_text()
    bad = saved_runs.largest(steps / "4")
    saved_runs.flip(bad)
    saved_runs.largest(steps / "6").write_bytes(b"x")
    figures = verify(console, find(str(run)))
    assert not figures["whole"]
    name = bad.relative_to(steps / "4")
    rows = {row["step"]: row for row in figures["steps"]}
    assert rows[4]["damage"] == [f"{name} does not hold what was written"]
    held = json.loads((steps / "4" / "manifest.json").read_text())["files"][str(name)]
    assert hashlib.sha256(bad.read_bytes()).hexdigest() != held["sha256"]
    assert "has 1 bytes and was written with" in rows[6]["damage"][0]
    assert rows[2]["damage"] == []
    assert verify(console, find(str(steps / "2")))["whole"]
    with pytest.raises(UserError, match=r"6 is damaged \(model/.* has 1 bytes and was written"):
        open_one(str(steps / "6"))


def test_a_run_of_format_1_is_looked_after_too(old, tmp_path, console):
    (row,) = show_list(console, find(str(old)))["steps"]
    assert (row["step"], row["format"], row["faults"], row["time"]) == (3, 1, [], None)
    figures = show(console, open_one(str(old)), every_array=True)
    query = dict(shape=[2, 8, 2, 4], dtype="float32")
    assert figures["arrays"]["model"]["blocks.0.attention.query"] == query
    assert verify(console, find(str(old)))["whole"]
    assert "step 3: whole by sizes alone, " in console.export_text()
    exported = export(console, str(old), str(tmp_path / "out"), kind="model")
    model = open_one(str(old)).load_model(tiny.mesh())
    again = open_one(str(exported["path"])).load_model(tiny.mesh())
    tiny.assert_equal(
        *({n: np.asarray(a) for n, a in named_arrays(m).items()} for m in (again, model))
    )


def test_what_is_no_checkpoint_is_refused(run, tmp_path, console):
    for path, sentence in (
        (tmp_path / "none", "none is no folder"),
        (run / "checkpoints" / "2" / "model", "is neither a run with saved steps, nor a step with"),
    ):
        with pytest.raises(UserError, match=sentence):
            find(str(path))
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="empty holds no saved step; name another run"):
        verify(console, find(str(tmp_path / "empty")))


def command(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "train.checkpoint", *map(str, arguments)],
        cwd=ROOT,
        # That a run has the accelerator is none of its concern.
        env=running.environment() | dict(JAX_PLATFORMS="tpu"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_command_ends_with_its_status(run, tmp_path):
    given, file = f"--checkpoint={run}", tmp_path / "figures.json"
    bad = shutil.copytree(run, tmp_path / "bad")
    saved_runs.flip(bad / "checkpoints" / "2" / "config.json")
    started = [
        (0, "equal bits", command("diff", given, f"--other={run}", "--values", f"--json={file}")),
        (1, "step 2: damaged: config.json", command("verify", f"--checkpoint={bad}")),
    ]
    for status, words, process in started:
        out, err = process.communicate(timeout=200)
        assert process.returncode == status, out + err
        assert words in out
        assert err == ""
    assert json.loads(file.read_text())["checkpoint"] == str(run / "checkpoints" / "6")


@pytest.fixture
def call():
    """Calls the command in this process, whose flags are as before afterwards."""
    before = set(flags.FLAGS)
    checkpoint._define_flags()

    def run(verb, *arguments):
        for name in set(flags.FLAGS) - before:
            flags.FLAGS[name].unparse()
        flags.FLAGS(["train.checkpoint", *map(str, arguments)])
        checkpoint.main(verb)

    yield run
    for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["list"], "--checkpoint is missing; name a run, a step or a saved model."),
        (["prune", "--checkpoint={}"], "--keep is missing; say how many of the newest steps stay."),
        (["diff", "--checkpoint={}"], "--other is missing; name a run, a step or a saved model."),
        (["diff", "--checkpoint={}", "--other={}/x"], "--other=.*x is no folder; name a run, a"),
        (["export", "--checkpoint={}"], "--to is missing; name a folder that is not there yet"),
        (["list", "--checkpoint={}", "--to=x"], "--to is for export, not for list; leave it out."),
        (["show", "--keep=2"], "--keep is for list and prune, not for show; leave it out."),
    ],
)
def test_a_flag_that_is_missing_or_of_another_verb_is_named(saved, call, words, sentence):
    with pytest.raises(UserError, match=sentence):
        call(*(word.format(saved) for word in words))


def test_every_verb_is_reached_by_its_word(run, tmp_path, call, capsys):
    given = f"--checkpoint={run}"
    call("list", given, "--keep=1", "--keep_every=4")
    call("show", given)
    call("prune", given, "--keep=1", "--keep_every=4", "--dry_run")
    call("export", given, f"--to={tmp_path / 'out'}", "--as=model", "--dtype=bfloat16")
    words = capsys.readouterr().out
    for expected in (
        "kept: the newest 1 whole steps and each that 4 divides",
        "device_kind",
        "step 2: would be deleted, ",
        "of bfloat16, from model of ",
    ):
        assert expected in words
    assert sorted(os.listdir(run / "checkpoints")) == ["2", "4", "6"]
    assert open_one(str(tmp_path / "out")).arrays("model")["norm.gain"]["dtype"] == "bfloat16"
