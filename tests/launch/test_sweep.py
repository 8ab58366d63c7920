"""Sweeps: their settings, their folders, what is run again and what is not."""

import io
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from configs import base, induction, resolved
from configs import toy as toy_config
from configs.errors import UserError
from launch.sweep import Hyper, render, settings_of, sweep, trials
from tests.train.altering import rewrite
from train.loop import Outcome

ROOT = Path(__file__).parents[2]
HYPER = Hyper()


def quiet():
    return Console(file=io.StringIO(), width=200)


def test_choices_are_a_setting_each():
    assert HYPER.choices("seed", range(3)) == [{"seed": 0}, {"seed": 1}, {"seed": 2}]


def test_a_product_takes_every_combination_the_last_axis_fastest():
    found = HYPER.product(HYPER.choices("a", [1, 2]), HYPER.choices("b", ["x", "y"]))
    assert found == [dict(a=1, b="x"), dict(a=1, b="y"), dict(a=2, b="x"), dict(a=2, b="y")]


def test_a_zip_takes_the_axes_together():
    found = HYPER.zip(HYPER.choices("a", [1, 2]), HYPER.choices("b", ["x", "y"]))
    assert found == [dict(a=1, b="x"), dict(a=2, b="y")]
    nested = HYPER.product(found, HYPER.choices("c", [5, 6]))
    assert nested[1] == dict(a=1, b="x", c=6)


@given(st.lists(st.integers(0, 4), max_size=4))
def test_a_product_is_as_long_as_its_axes_multiplied(sizes):
    axes = [HYPER.choices(f"f{i}", range(size)) for i, size in enumerate(sizes)]
    found = HYPER.product(*axes)
    assert len(found) == math.prod(sizes)
    assert len({json.dumps(setting, sort_keys=True) for setting in found}) == len(found)


def test_axes_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="one length, not 2, 1"):
        HYPER.zip(HYPER.choices("a", [1, 2]), HYPER.choices("b", [1]))
    for combine in (HYPER.product, HYPER.zip):
        with pytest.raises(UserError, match=r"sets config\.seed twice"):
            combine(HYPER.choices("seed", [1]), HYPER.choices("seed", [2]))


def test_runs_are_named_by_their_resolved_configs():
    settings = [{"seed": 1}, {"model.num_heads": 2, "optim.clip": 2}]
    swept = base.get_config()
    found = trials(swept, settings)
    assert [setting for _, setting, _ in found] == settings
    assert found[1][2].model.num_heads == 2
    assert found[1][2].optim.clip == 2.0
    assert [name for name, _, _ in found] == [resolved.digest(own) for _, _, own in found]
    # The name depends neither on the order of the settings nor on the other runs.
    assert trials(base.get_config(), settings[::-1])[1][0] == found[0][0]
    # The config that was swept is as it was.
    assert resolved.difference(base.get_config(), swept) == {}


def test_equal_settings_are_one_run():
    settings = [{"seed": 0}, {"seed": 1}, {"seed": 0, "model.num_heads": 4}, {"seed": 1}]
    found = trials(base.get_config(), settings)
    assert [setting for _, setting, _ in found] == settings[:2]


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"seeed": 1}, "config.seeed.*did you mean 'seed'"),
        ({"model.num_head": 1}, "config.model.num_head.*did you mean 'model.num_heads'"),
        ({"model": 1}, r"config\.model\b"),
        ({1: 2}, r"config\.1, no field"),
        ({"seed": "one"}, "config.seed.*'one'"),
        ({"optim.clip": "x"}, "config.optim.clip.*'x'"),
    ],
    ids=str,
)
def test_settings_that_are_no_fields_are_refused(setting, sentence):
    with pytest.raises(UserError, match=sentence):
        trials(base.get_config(), [setting])


class Runs:
    """Stands in for training: notes each run, and fails or stops where it is told to."""

    def __init__(self, failing=(), stopped=()):
        self.seeds, self.failing, self.stopped = [], failing, stopped

    def __call__(self, config, folder, console):
        self.seeds.append(config.seed)
        if config.seed in self.failing:
            raise UserError(f"seed {config.seed} is unlucky; choose another.")
        folder.mkdir(parents=True, exist_ok=True)
        step = 5 if config.seed in self.stopped else 10
        row = json.dumps(dict(step=step, loss=2.0 - config.seed / 10))
        (folder / "metrics.jsonl").write_text(row + "\n")
        if config.seed in self.stopped:
            return Outcome(step, math.nan, {}, 15)
        return Outcome(step, math.nan, dict(loss=3.0 - config.seed), None)


def run(workdir, runs, seeds):
    config = base.get_config()
    return sweep(config, HYPER.choices("seed", seeds), workdir, quiet(), runs)


def test_every_setting_is_run_in_its_own_folder(tmp_path):
    runs = Runs()
    rows = run(tmp_path, runs, [2, 0, 1])
    assert runs.seeds == [2, 0, 1]
    assert [row["status"] for row in rows] == ["finished"] * 3
    assert [row["loss"] for row in rows] == [1.8, 2.0, 1.9]
    assert [row["evaluation"] for row in rows] == [{"loss": 1.0}, {"loss": 3.0}, {"loss": 2.0}]
    assert sorted(folder.name for folder in tmp_path.iterdir()) == sorted(r["name"] for r in rows)


def test_finished_runs_are_read_and_new_ones_join(tmp_path):
    before = run(tmp_path, Runs(), [0, 1])
    runs = Runs()
    rows = run(tmp_path, runs, [0, 3, 1])
    assert runs.seeds == [3]
    assert [row["status"] for row in rows] == ["skipped", "finished", "skipped"]
    for old, new in zip(before, (rows[0], rows[2]), strict=True):
        assert {**old, "status": ""} == {**new, "status": ""}


def test_a_run_that_was_stopped_ends_the_sweep_and_goes_on_the_next_time(tmp_path):
    runs = Runs(stopped=[1])
    rows = run(tmp_path, runs, [0, 1, 2])
    assert runs.seeds == [0, 1]
    assert [row["status"] for row in rows] == ["finished", "stopped"]
    assert rows[1]["signal"] == 15
    runs = Runs()
    rows = run(tmp_path, runs, [0, 1, 2])
    assert runs.seeds == [1, 2]
    assert [row["status"] for row in rows] == ["skipped", "finished", "finished"]


def test_an_outcome_that_was_cut_off_counts_as_none(tmp_path):
    (row,) = run(tmp_path, Runs(), [0])
    (tmp_path / row["name"] / "outcome.json").write_text('{"step": 1')
    runs = Runs()
    run(tmp_path, runs, [0])
    assert runs.seeds == [0]


def test_a_run_that_fails_is_reported_and_the_others_go_on(tmp_path):
    runs = Runs(failing=[1])
    rows = run(tmp_path, runs, [0, 1, 2])
    assert runs.seeds == [0, 1, 2]
    assert [row["status"] for row in rows] == [
        "finished",
        "failed: seed 1 is unlucky; choose another.",
        "finished",
    ]
    runs = Runs()
    run(tmp_path, runs, [0, 1, 2])
    assert runs.seeds == [1]


def test_an_error_that_is_no_mistake_of_the_user_s_is_not_hidden(tmp_path):
    def broken(config, folder, console):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(tmp_path, broken, [0])


def test_the_table_has_the_best_run_first_and_failures_last(tmp_path):
    table = render(run(tmp_path, Runs(failing=[1]), [0, 1, 2]))
    columns = {column.header: list(column.cells) for column in table.columns}
    assert columns["seed"] == ["2", "0", "1"]
    assert columns["held-out loss"] == ["1.0000", "3.0000", ""]
    assert columns["loss"] == ["1.8000", "2.0000", ""]
    assert columns["status"][2].startswith("failed: ")


def test_settings_come_from_the_config_s_file(tmp_path):
    found = settings_of(str(ROOT / "configs" / "sweeps" / "toy.py"))
    assert len(found) == 4
    # The toy's matrices go by Muon's rate, and its own setting is one of those swept.
    toy = toy_config.get_config()
    rates = [(s["optim.muon_learning_rate"], s["optim.learning_rate"], s["seed"]) for s in found]
    assert len({muon for muon, _, _ in rates}) == 2
    assert (toy.optim.muon_learning_rate, toy.optim.learning_rate, toy.seed) in rates
    (tmp_path / "none.py").write_text("")
    with pytest.raises(UserError, match="has no get_hyper"):
        settings_of(str(tmp_path / "none.py"))
    (tmp_path / "empty.py").write_text("def get_hyper(hyper):\n    return []\n")
    for body, sentence in (
        ("return hyper.choise('seed', [1])", "AttributeError: .*choise"),
        ("return 5", "TypeError"),
    ):
        (tmp_path / "wrong.py").write_text(f"def get_hyper(hyper):\n    {body}\n")
        with pytest.raises(UserError, match=f"does not run .*{sentence}"):
            settings_of(str(tmp_path / "wrong.py"))
    with pytest.raises(UserError, match="returns no settings"):
        settings_of(str(tmp_path / "empty.py"))


def test_a_real_sweep_of_a_tiny_config(tmp_path):
    config = induction.get_config("1")
    config.update_from_flattened_dict(
        {
            "steps": 6,
            "batch_size": 4,
            "length": 8,
            "steps_per_call": 3,
            "data.periods": (2, 4),
            "model.embed_dim": 8,
            "model.num_heads": 2,
            "model.head_dim": 4,
            "mesh.fsdp": 1,
            "log.eval_every": 0,
            "log.tensorboard": False,
        }
    )
    settings = HYPER.choices("optim.learning_rate", [1e-3, -1.0, 0.1])
    rows = sweep(config, settings, tmp_path, quiet())
    assert [row["status"].split(":")[0] for row in rows] == ["finished", "failed", "finished"]
    assert "optim.learning_rate = -1.0" in rows[1]["status"]
    assert rows[0]["loss"] != rows[2]["loss"]
    again = sweep(config, settings, tmp_path, quiet())
    assert [row["status"].split(":")[0] for row in again] == ["skipped", "failed", "skipped"]
    assert [row.get("loss") for row in again] == [row.get("loss") for row in rows]

    # Its text changed: neither the old figures nor a run on another text.
    step = tmp_path / rows[0]["name"] / "checkpoints" / "6"
    text = (step / "state.json").read_text()
    rewrite(step, "state.json", text.replace("repeats", "another"))
    changed = sweep(config, settings, tmp_path, quiet())
    assert changed[0]["status"].startswith("failed: --workdir=")
    assert "was trained on another text" in changed[0]["status"]
    assert changed[2]["status"] == "skipped"
