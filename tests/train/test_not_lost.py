"""Whatever ends a run, what it had saved stays, and nothing that is no number is saved."""

import dataclasses
import json
import time

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from configs.errors import UserError
from model import saved
from tests.train import tiny
from train import loop
from train.loop import train
from train.step import all_finite, named_arrays, with_arrays

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
    write = saved._write_manifest
    monkeypatch.setattr(saved, "_write_manifest", lambda path: (time.sleep(0.3), write(path)))
    altered(monkeypatch, step, change)
    with pytest.raises(UserError, match=sentence):
        train(tiny.config(FIELDS), tmp_path, QUIET)
    assert saved.whole_steps(tmp_path) == kept
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, step + 1))


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
    assert saved.whole_steps(tmp_path) == [4, 6]
