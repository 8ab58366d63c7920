"""Whatever ends a run, what it had saved stays, and nothing that is no number is saved."""

import dataclasses
import io
import json
import signal
import time

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from configs.errors import UserError
from model import manifest, stored
from model.parameter import named_arrays, with_arrays
from tests.train import tiny
from train import checkpoints, loop
from train.loop import train
from train.metrics import read
from train.step import all_finite

QUIET = Console(quiet=True)
FIELDS = {"steps": 6, "steps_per_call": 1, "checkpoint.every": 2, "log.eval_batches": 1}


def altered(monkeypatch, step, change):
    """Has ``change`` alter the state and the metrics that the given step returns."""
    make = loop.make_step

    def made(config, optimizer):
        real = make(config, optimizer)

        def run(state, batches, count, numbers):
            state, values = real(state, batches, count, numbers)
            return change(state, values) if int(state.step) == step else (state, values)

        return run

    monkeypatch.setattr(loop, "make_step", made)


def bad_loss(state, values):
    return state, dict(values, loss=values["loss"] * jnp.nan)


def bad_gradient(state, values):
    return state, dict(values, grad_norm=values["grad_norm"] + jnp.inf)


def bad_parameter(state, values):
    arrays = named_arrays(state.model)
    gain = arrays["norm.gain"]
    model = with_arrays(state.model, arrays | {"norm.gain": gain.at[0].set(jnp.nan)})
    return dataclasses.replace(state, model=model), values


def bad_moment(state, values):
    optimizer = jax.tree.map(lambda leaf: leaf * jnp.inf, state.optimizer)
    return dataclasses.replace(state, optimizer=optimizer), values


@pytest.mark.parametrize(
    ("step", "change", "sentence", "kept"),
    [
        (5, bad_loss, "the loss of step 5 is not finite", [2, 4]),
        (5, bad_gradient, "the gradient of step 5 is not finite", [2, 4]),
        (6, bad_gradient, "the gradient of step 6 is not finite", [2, 4]),
        (4, bad_parameter, "the parameters after step 4 are not finite", [2]),
        (6, bad_parameter, "the parameters after step 6 are not finite", [2, 4]),
        (6, bad_moment, "the parameters after step 6 are not finite", [2, 4]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_not_finite_ends_the_run_and_is_not_saved(
    tmp_path, monkeypatch, step, change, sentence, kept
):
    # A slow disk: the save of the step before is still on its way when the run fails.
    write = manifest.write
    monkeypatch.setattr(manifest, "write", lambda *given: (time.sleep(0.3), write(*given)))
    altered(monkeypatch, step, change)
    with pytest.raises(UserError, match=sentence):
        train(tiny.config(FIELDS), tmp_path, QUIET)
    assert manifest.whole_steps(tmp_path) == kept
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, step + 1))


def evaluating(monkeypatch, act):
    """Has ``act`` do something before each evaluation."""
    real = loop.evaluate
    monkeypatch.setattr(loop, "evaluate", lambda *given: (act(), real(*given))[1])


def test_a_signal_during_an_evaluation_stops_the_run_with_its_state_saved(tmp_path, monkeypatch):
    evaluating(monkeypatch, lambda: signal.raise_signal(signal.SIGTERM))
    said = io.StringIO()
    fields = FIELDS | {"checkpoint.every": 0, "log.eval_every": 2}
    outcome = train(tiny.config(fields), tmp_path, Console(file=said, width=200))
    assert (outcome.step, outcome.signal, outcome.evaluation) == (2, signal.SIGTERM, {})
    assert "saved at step 2" in said.getvalue()
    assert manifest.whole_steps(tmp_path) == [2]


def test_a_signal_during_the_last_evaluation_ends_it_and_the_next_start_makes_up_for_it(
    tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        evaluating(patch, lambda: signal.raise_signal(signal.SIGTERM))
        outcome = train(tiny.config(FIELDS), tmp_path, QUIET)
    assert (outcome.step, outcome.signal, outcome.evaluation) == (6, signal.SIGTERM, {})
    assert manifest.whole_steps(tmp_path) == [4, 6]
    assert train(tiny.config(FIELDS), tmp_path, QUIET).evaluation


def test_a_run_that_its_evaluation_ends_is_saved_and_makes_up_for_it(tmp_path, monkeypatch):
    fields = FIELDS | {"log.eval_every": 4, "log.every": 3, "optim.schedule": "constant"}
    whole = tmp_path / "whole"
    train(tiny.config(fields), whole, QUIET)

    def fail():
        raise MemoryError

    for ended_at in (4, 6):
        with monkeypatch.context() as patch:
            evaluating(patch, fail)
            with pytest.raises(MemoryError):
                train(tiny.config(fields), tmp_path, QUIET)
        assert manifest.whole_steps(tmp_path)[-1] == ended_at
        outcome = train(tiny.config(fields | {"steps": max(ended_at, 5)}), tmp_path, QUIET)
    expected = {row["step"]: row for row in read(whole)}
    found = {row["step"]: row for row in read(tmp_path)}
    assert [*expected] == [3, 4, 6]
    for step in (4, 6):
        figures = {n: v for n, v in expected[step].items() if n != "tokens_per_second"}
        assert {n: found[step][n] for n in figures} == figures
    assert outcome.evaluation == {n[5:]: v for n, v in expected[6].items() if n[:5] == "eval/"}


def test_a_whole_state_is_finite():
    _, state = tiny.on_one_device()
    assert all_finite(state)


def test_a_damaged_step_is_named_when_it_is_passed_over(tmp_path, capsys):
    train(tiny.config(FIELDS), tmp_path, QUIET)
    (tmp_path / "checkpoints" / "6" / "state.json").write_text("")
    train(tiny.config(FIELDS), tmp_path, Console(width=200))
    said = capsys.readouterr().out
    assert "step 6 has files missing or cut off: passed over" in said
    assert "resumed from step 4" in said
    assert manifest.whole_steps(tmp_path) == [4, 6]


def losing_saves(monkeypatch, attempts):
    """Has the saves of so many numbers, from 1, fail in what writes arrays; returns their steps."""
    real, tried = stored.write, []

    def write(path, items):
        tried.append(int(path.name))
        if len(tried) in attempts:
            raise ValueError("ALREADY_EXISTS: the answer to a write was lost")
        return real(path, items)

    monkeypatch.setattr(stored, "write", write)
    return tried


def test_a_save_that_a_store_has_lost_is_made_up_for(tmp_path, monkeypatch):
    """The next save is whole, and the last one is tried again."""
    monkeypatch.setattr(checkpoints, "in_store", lambda path: True)
    tried = losing_saves(monkeypatch, (2, 3, 4))
    shown = io.StringIO()
    fields = FIELDS | {"steps": 8, "checkpoint.keep": 9}
    outcome = train(tiny.config(fields), tmp_path, Console(file=shown, width=200))
    assert outcome.step == 8
    assert tried == [2, 4, 6, 8, 8]
    assert manifest.whole_steps(tmp_path) == [2, 8]
    said = [line for line in shown.getvalue().splitlines() if "is not saved" in line]
    assert [line.split()[:2] for line in said] == [["step", step] for step in "468"]
    assert "(ALREADY_EXISTS: the answer to a write was lost)); the next save makes" in said[0]


def test_saves_that_fail_again_and_again_end_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "in_store", lambda path: True)
    tried = losing_saves(monkeypatch, range(2, 99))
    with pytest.raises(UserError, match="10 could not be written .* saved before is whole"):
        train(tiny.config(FIELDS | {"steps": 40}), tmp_path, QUIET)
    assert tried == [2, 4, 6, 8, 10]
    assert manifest.whole_steps(tmp_path) == [2]


def test_on_a_disk_the_first_save_that_fails_ends_the_run(tmp_path, monkeypatch):
    tried = losing_saves(monkeypatch, (2,))
    with pytest.raises(UserError, match="4 could not be written"):
        train(tiny.config(FIELDS | {"steps": 40}), tmp_path, QUIET)
    assert tried == [2, 4]
