"""Saved steps: what is kept, what is whole, what is refused."""

import dataclasses
import hashlib
import json
import shutil
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import resolved
from configs.errors import UserError
from model import manifest, stored
from model.parameter import named_arrays
from model.saved import open_saved
from tests.train import own_updates, tiny
from train import provenance
from train.checkpoints import Checkpoints, check_workdir, newest
from train.step import init_state, make_optimizer


@pytest.fixture(scope="module")
def run():
    """A run's config, mesh and first state."""
    stepper, state = tiny.on_one_device()
    return stepper.config, stepper.mesh, state


def save(run, workdir, steps, **changes):
    """Saves a state a step, told apart by its step and its final gain."""
    config, mesh, state = run
    config = config.copy_and_resolve_references()
    config.checkpoint.update(changes)
    checkpoints = Checkpoints(workdir, config, None)
    with jax.set_mesh(mesh):
        for step in steps:
            checkpoints.save(marked(state, step), step)
        checkpoints.wait()
    return checkpoints


def marked(state, step):
    model = jax.tree.map(lambda leaf: leaf + step, state.model)
    return dataclasses.replace(state, step=state.step + step, model=model)


def restore(run, workdir, changes=None):
    config, mesh, _ = run
    config = tiny.config(changes) if changes else config
    shape = tiny.model_config(config)
    optimizer = make_optimizer(config, shape)
    with jax.set_mesh(mesh):
        abstract = jax.eval_shape(lambda k: init_state(shape, optimizer, k), jax.random.key(0))
        checkpoints = Checkpoints(workdir, config, None)
        found = checkpoints.find()
        return found and checkpoints.restore(found, abstract, mesh)


def steps_of(workdir):
    return sorted(int(folder.name) for folder in (workdir / "checkpoints").iterdir())


def test_a_step_comes_back_with_the_same_bits(run, tmp_path):
    save(run, tmp_path, [3])
    found = restore(run, tmp_path)
    assert int(found.step) == 3
    tiny.assert_equal(tiny.arrays(found), tiny.arrays(marked(run[2], 3)))


def test_the_average_the_master_weights_and_a_key_of_one_s_own_are_saved(run, tmp_path):
    changes = {
        "optim.name": f"{own_updates.__name__}:noisy",
        "optim.ema": 0.9,
        "optim.master_weights": True,
        "model.param_dtype": "bfloat16",
        "model.num_layers": 1,
        "model.mlp": "none",
        "steps_per_call": 2,
    }
    stepper = tiny.Stepper(tiny.config(changes), tiny.mesh())
    state, _ = stepper.call(stepper.start())
    assert any((a != state.ema[n]).any() for n, a in state.master.items())
    checkpoints = Checkpoints(tmp_path, stepper.config, None)
    checkpoints.save(state, 2)
    checkpoints.wait()
    found = restore(run, tmp_path, changes)
    tiny.assert_equal(tiny.arrays(found), tiny.arrays(state))
    # Both go on to the same bits.
    again, expected = (stepper.call(s)[0] for s in (found, state))
    tiny.assert_equal(tiny.arrays(again), tiny.arrays(expected))

    saved_step = open_saved(tmp_path)
    assert "master.blocks.0.attention.query" in saved_step.shapes("optimizer")
    averaged = named_arrays(saved_step.load_model(stepper.mesh, ema=True))
    expected = {name: array.astype(jnp.bfloat16) for name, array in state.ema.items()}
    tiny.assert_equal(*({n: np.asarray(a) for n, a in t.items()} for t in (averaged, expected)))


def test_an_optimizer_without_a_state_is_saved_and_restored(run, tmp_path):
    changes = {"optim.name": f"{own_updates.__name__}:signs", "model.num_layers": 1}
    stepper = tiny.Stepper(tiny.config(changes), tiny.mesh())
    state, _ = stepper.call(stepper.start(), 1)
    checkpoints = Checkpoints(tmp_path, stepper.config, None)
    checkpoints.save(state, 1)
    checkpoints.wait()
    tiny.assert_equal(tiny.arrays(restore(run, tmp_path, changes)), tiny.arrays(state))


def test_a_step_without_an_average_begins_one_and_says_that_it_has_none(run, tmp_path):
    save(run, tmp_path, [3])
    with pytest.raises(UserError, match="holds no average of the parameters for --ema"):
        open_saved(tmp_path).load_model(run[1], ema=True)
    found = restore(run, tmp_path, {"optim.ema": 0.5})
    expected = {n: np.asarray(a) for n, a in named_arrays(found.model).items()}
    tiny.assert_equal({n: np.asarray(a) for n, a in found.ema.items()}, expected)
    (tmp_path / "config.json").write_text(resolved.to_json(run[0]))
    changed = check_workdir(tmp_path, tiny.config({"optim.ema": 0.5}), newest(tmp_path))
    assert changed == {"optim.ema": (0.0, 0.5)}


def test_an_average_begins_at_the_master_weights(run, tmp_path):
    changes = {
        "optim.master_weights": True,
        "model.param_dtype": "bfloat16",
        "model.num_layers": 1,
        "model.mlp": "none",
    }
    stepper = tiny.Stepper(tiny.config(changes), tiny.mesh())
    state, _ = stepper.call(stepper.start(), 1)
    checkpoints = Checkpoints(tmp_path, stepper.config, None)
    checkpoints.save(state, 1)
    checkpoints.wait()
    found = restore(run, tmp_path, changes | {"optim.ema": 0.5})
    tiny.assert_equal(
        *({n: np.asarray(a) for n, a in t.items()} for t in (found.ema, state.master))
    )


def test_a_run_without_steps_starts_anew(run, tmp_path):
    assert restore(run, tmp_path) is None


@pytest.mark.parametrize(
    ("keep", "keep_every", "kept"),
    [
        (1, 0, [6]),
        (2, 0, [5, 6]),
        (1, 2, [2, 4, 6]),
        (2, 3, [3, 5, 6]),
        (9, 0, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_the_newest_steps_and_some_for_good_are_kept(run, tmp_path, keep, keep_every, kept):
    save(run, tmp_path, range(1, 7), keep=keep, keep_every=keep_every)
    assert steps_of(tmp_path) == kept == manifest.whole_steps(tmp_path)


@pytest.mark.parametrize(
    ("every", "steps", "due"), [(4, 10, [4, 8, 10]), (0, 10, [10]), (5, 10, [5, 10])]
)
def test_steps_are_due_at_their_turn_and_at_the_end(tmp_path, every, steps, due):
    config = tiny.config({"checkpoint.every": every, "steps": steps})
    checkpoints = Checkpoints(tmp_path, config, None)
    assert [step for step in range(1, 12) if checkpoints.due(step)] == due


def test_steps_are_due_by_the_clock_too(run, tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("train.checkpoints.time.monotonic", lambda: now[0])
    config = tiny.config({"checkpoint.minutes": 0.5, "steps": 99})
    checkpoints = Checkpoints(tmp_path, config, None)
    due = []
    for step in range(1, 9):
        now[0] += 12
        if checkpoints.due(step):
            due.append(step)
            checkpoints.save(marked(run[2], step), step)
    checkpoints.wait()
    assert due == [3, 6]


def test_a_step_has_the_files_that_its_manifest_names(run, tmp_path):
    save(run, tmp_path, [1])
    folder = tmp_path / "checkpoints" / "1"
    assert {"model", "optimizer", "config.json", "state.json", "manifest.json"} <= {
        entry.name for entry in folder.iterdir()
    }
    held = json.loads((folder / "manifest.json").read_text())
    there = {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    there.pop("manifest.json")
    expected = {
        name: dict(size=len(data), sha256=hashlib.sha256(data).hexdigest())
        for name, data in there.items()
    }
    assert held["files"] == expected
    assert (held["format"], held["step"]) == (2, 1)
    query = named_arrays(run[2].model)["blocks.0.attention.query"]
    expected = dict(shape=list(query.shape), dtype="float32")
    assert held["arrays"]["model"]["blocks.0.attention.query"] == expected
    made = held["made"]
    assert (made["mesh"]["fsdp"], made["processes"], made["device_kind"]) == (1, 1, "cpu")
    assert made["packages"]["jax"] == jax.__version__
    assert made["seed"] == 0
    assert made["command"] == provenance.command()
    assert all(isinstance(word, str) for word in made["command"])
    assert resolved.difference(open_saved(folder).config, run[0]) == {}


def largest(folder):
    return max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


DAMAGES = {
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "half a manifest": lambda folder: (folder / "manifest.json").write_text('{"format": 1, "fi'),
    "a truncated file": lambda folder: largest(folder).write_bytes(b"x"),
    "a missing file": lambda folder: largest(folder).unlink(),
    "an empty folder": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_step_that_is_not_whole_is_passed_over_and_written_again(run, tmp_path, damage):
    save(run, tmp_path, [1, 2])
    damage(tmp_path / "checkpoints" / "2")
    found = restore(run, tmp_path)
    tiny.assert_equal(tiny.arrays(found), tiny.arrays(marked(run[2], 1)))
    assert open_saved(tmp_path).step == 1
    save(run, tmp_path, [2])
    assert int(restore(run, tmp_path).step) == 2


def test_steps_of_which_none_is_whole_any_more_are_not_begun_anew(run, tmp_path):
    save(run, tmp_path, [1, 2])
    for step in (1, 2):
        (tmp_path / "checkpoints" / str(step) / "state.json").write_text("")
    assert manifest.damaged_steps(tmp_path) == [1, 2]
    with pytest.raises(UserError, match=r"checkpoints holds step 1, 2, with files missing"):
        restore(run, tmp_path)


def test_a_first_save_that_was_cut_off_is_no_step(run, tmp_path):
    save(run, tmp_path, [1])
    (tmp_path / "checkpoints" / "1" / "manifest.json").unlink()
    (tmp_path / "run.json").unlink()  # written after it
    assert restore(run, tmp_path) is None


@pytest.mark.parametrize("lost", ["checkpoints/*/manifest.json", "checkpoints/*", "checkpoints"])
def test_a_run_whose_steps_are_all_lost_is_not_begun_anew(run, tmp_path, lost):
    save(run, tmp_path, [1, 2])
    for path in tmp_path.glob(lost):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    left = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="holds no saved step any more, and step 2 was there"):
        restore(run, tmp_path)
    assert set(left) <= set(tmp_path.rglob("*"))
    (tmp_path / "run.json").unlink()
    assert restore(run, tmp_path) is None


def test_what_kills_left_behind_goes_though_older_steps_stay_for_good(run, tmp_path):
    save(run, tmp_path, [10, 20], keep_every=10)
    for name in ("15", "17.orbax-checkpoint-tmp", "25"):
        (tmp_path / "checkpoints" / name / "model").mkdir(parents=True)
    restore(run, tmp_path)
    assert {f.name for f in (tmp_path / "checkpoints").iterdir()} == {"10", "20", "25"}
    save(run, tmp_path, [30], keep_every=10)
    assert {f.name for f in (tmp_path / "checkpoints").iterdir()} == {"10", "20", "30"}


def test_a_name_that_Orbax_cannot_write_is_saved_wherever_temporary_files_go(
    run, tmp_path, monkeypatch
):
    odd = tmp_path / "t[1]"
    odd.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(odd))
    workdir = tmp_path / "x[1]"
    save(run, workdir, [1])
    tiny.assert_equal(tiny.arrays(restore(run, workdir)), tiny.arrays(marked(run[2], 1)))
    # Without a way around the name, Orbax joins nothing, and only warns of it.
    monkeypatch.setattr(stored, "written_as", lambda path: path)
    with pytest.raises(UserError, match=r"could not be written \(the arrays of .* not joined\)"):
        save(run, workdir, [2])
    assert manifest.whole_steps(workdir) == [1]


def test_without_its_config_json_a_run_is_known_by_its_newest_step(run, tmp_path):
    save(run, tmp_path, [1])
    assert check_workdir(tmp_path, run[0], newest(tmp_path)) == {}
    with pytest.raises(UserError, match="holds a run of another config .*seed: 0 -> 7"):
        check_workdir(tmp_path, tiny.config({"seed": 7}), newest(tmp_path))


def test_a_save_that_fails_says_so_and_leaves_the_one_before(run, tmp_path, monkeypatch):
    save(run, tmp_path, [1], keep=1)

    def full(path, held):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(manifest, "write", full)
    with pytest.raises(UserError, match=r"2 could not be written .*No space left on device"):
        save(run, tmp_path, [2], keep=1)
    assert manifest.whole_steps(tmp_path) == [1]


def test_a_workdir_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    config = tiny.config()
    with pytest.raises(UserError, match=r"--workdir=.*file.* cannot be made"):
        Checkpoints(tmp_path / "file" / "run", config, None).find()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model.biases": True}, "has no array blocks.0.attention.*bias"),
        ({"model.value_dim": 2}, r"holds blocks.0.attention.value_down as \(2, 16, 8, 3\) and"),
        ({"optim.name": "lion"}, "has no array lion"),
    ],
)
def test_a_step_of_another_shape_is_refused_by_name(run, tmp_path, changes, sentence):
    save(run, tmp_path, [1])
    with pytest.raises(UserError, match=sentence):
        restore(run, tmp_path, changes)


def test_a_saved_model_is_a_step_without_optimizer_and_state(run, tmp_path):
    save(run, tmp_path, [1])
    _, mesh, state = run
    folder = (tmp_path / "checkpoints" / "1").rename(tmp_path / "model")
    shutil.rmtree(folder / "optimizer")
    assert manifest.whole(folder) is None  # half of it is gone
    (folder / "state.json").unlink()
    found = open_saved(folder)
    assert found.step is None
    model = found.load_model(mesh)
    expected = named_arrays(marked(state, 1).model)
    tiny.assert_equal(
        *({n: np.asarray(a) for n, a in t.items()} for t in (named_arrays(model), expected))
    )
    with pytest.raises(UserError, match="optimizer is missing"):
        found.load("optimizer", state.optimizer, mesh)
    folder.rename(tmp_path / "checkpoints" / "1")
    with pytest.raises(UserError, match="a saved model, without the state of a run"):
        restore(run, tmp_path)


def test_a_workdir_a_step_and_a_model_open_alike(run, tmp_path):
    save(run, tmp_path, [1, 2])
    newest, older = open_saved(tmp_path), open_saved(tmp_path / "checkpoints" / "1")
    assert (newest.step, older.step) == (2, 1)
    assert newest.path == tmp_path / "checkpoints" / "2"
    assert newest.model_config == tiny.model_config(run[0])
    assert newest.tokenizer is None


def test_what_is_no_checkpoint_is_refused(run, tmp_path):
    with pytest.raises(UserError, match="none is no folder"):
        open_saved(tmp_path / "none")
    with pytest.raises(UserError, match="File name too long"):
        open_saved(tmp_path / ("a" * 300))
    (tmp_path / "checkpoints" / "\N{SUPERSCRIPT TWO}").mkdir(parents=True)
    with pytest.raises(UserError, match="neither a run with a finished save, nor a step"):
        open_saved(tmp_path)
    save(run, tmp_path, [1])
    folder = tmp_path / "checkpoints" / "1"
    text = (folder / "config.json").read_text()
    for damaged in ("x" * len(text), text.replace('"seed"', '"sead"')):
        (folder / "config.json").write_text(damaged)
        with pytest.raises(UserError, match=r"config\.json"):
            open_saved(folder)
    (folder / "config.json").write_text(text)
    newer = json.loads((folder / "manifest.json").read_text()) | {"format": 99}
    newer["digest"] = manifest.digest_of({n: v for n, v in newer.items() if n != "digest"})
    (folder / "manifest.json").write_text(json.dumps(newer))
    with pytest.raises(UserError, match="format 99, newer"):
        open_saved(folder)


def test_contents_that_are_damaged_behind_a_right_size_are_refused(run, tmp_path):
    save(run, tmp_path, [1])
    folder = tmp_path / "checkpoints" / "1"
    for file in (folder / "model").rglob("*"):
        if file.is_file():
            file.write_bytes(b"\xff" * file.stat().st_size)
    with pytest.raises(
        UserError, match="model/.* does not hold what was written; use another step"
    ):
        open_saved(folder).load_model(run[1])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", 3),
        ("batch_size", 8),
        ("model.num_layers", 4),
        ("data.periods", (2, 5)),
        ("optim.name", "lion"),
        ("optim.accumulate", 2),
        ("model.dropout", 0.5),
    ],
)
def test_a_field_that_makes_another_run_is_refused_by_name(tmp_path, field, value):
    other = tiny.config({field: value})
    (tmp_path / "config.json").write_text(resolved.to_json(tiny.config()))
    # A run that failed before its first step is none to keep.
    assert check_workdir(tmp_path, other, None)[field][1] == value
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    with pytest.raises(UserError, match=f"holds a run of another config.*{field}: "):
        check_workdir(tmp_path, other, None)


def test_fields_that_a_run_may_change_are_told(tmp_path):
    changes = {
        "mesh.fsdp": 4,
        "log.every": 7,
        "checkpoint.keep": 5,
        "steps": 99,
        "steps_per_call": 2,
        "optim.learning_rate": 0.5,
        "model.remat": "block",
    }
    assert check_workdir(tmp_path, tiny.config(changes), None) == {}
    (tmp_path / "config.json").write_text(resolved.to_json(tiny.config()))
    found = check_workdir(tmp_path, tiny.config(changes), None)
    assert {name: new for name, (_, new) in found.items()} == changes
