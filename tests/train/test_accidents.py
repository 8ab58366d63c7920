"""Accidents as the device finds them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train import tiny
from tests.train.own_losses import POISON
from train import accidents
from train.accidents import CODE, KINDS, fresh
from train.numbers import Numbers

LENGTH = 5
judge = jax.jit(accidents.judge)


def judged(losses, norms=None, spike=3.0, gradient_spike=0.0, finite=True):
    """Returns the kind and the figures of each step of a run."""
    numbers = Numbers.of(
        tiny.config({"accidents.spike": spike, "accidents.gradient_spike": gradient_spike})
    )
    recent, found = fresh(LENGTH), []
    for loss, norm in zip(losses, norms or [1.0] * len(losses), strict=True):
        recent, figures = judge(
            recent, jnp.float32(loss), jnp.float32(norm), jnp.bool_(finite), numbers
        )
        found.append((KINDS[int(figures[CODE])], {n: float(v) for n, v in figures.items()}))
    return found, recent


def test_a_spike_lies_far_above_the_last_good_losses():
    losses = [2.0, 2.2, 9.0, 2.1, 2.3, 2.1, 2.2, 2.0, 2.9, 2.1, np.nan, 2.2, 9.0, 2.9, 1.0]
    found, recent = judged(losses)
    kinds, good = [], []
    for loss, (_, figures) in zip(losses, found, strict=True):
        last = np.array(good[-LENGTH:])
        kind = "" if np.isfinite(loss) else "loss"
        if len(last) == LENGTH:
            mean, deviation = last.mean(), last.std(ddof=1)
            assert abs(figures["loss_mean"] - mean) < 1e-6
            assert abs(figures["loss_deviation"] - deviation) < 1e-6
            if loss > mean + 3 * deviation:
                kind = "loss spike"
        kinds.append(kind)
        if not kind:
            good.append(loss)
    # The first 9 comes before there are enough to compare with; the second changes no mean.
    assert kinds == [*[""] * 8, "loss spike", "", "loss", "", "loss spike", "loss spike", ""]
    assert [kind for kind, _ in found] == kinds
    assert int(recent["count"]) == len(good)
    assert sorted(np.asarray(recent["loss"])) == sorted(np.float32(good[-LENGTH:]))


@pytest.mark.parametrize(
    ("loss", "norm", "kind"),
    [
        (2.2, 1.1, ""),
        (2.9, 1.0, "loss spike"),
        (2.9, 5.0, "loss spike"),
        (2.1, 1.4, "gradient spike"),
        (0.0, 0.0, ""),
        (np.inf, 1.0, "loss"),
        (2.1, np.nan, "gradient"),
    ],
)
def test_the_kind_of_an_accident(loss, norm, kind):
    losses, norms = [2.0, 2.1, 2.0, 2.1, 2.0], [1.0, 1.1, 1.0, 1.1, 1.0]
    found, before = judged(losses, norms, gradient_spike=4.0)
    assert not any(kind for kind, _ in found)
    found, after = judged([*losses, loss], [*norms, norm], gradient_spike=4.0)
    assert found[-1][0] == kind
    if kind:
        tiny.assert_equal(after, before)


def test_a_run_that_looks_for_none_has_nothing_more_in_its_step_or_its_state():
    stepper, state = tiny.on_one_device()
    assert not accidents.watched(stepper.config)
    assert accidents.figures(stepper.config) == ()
    assert state.recent == {}
    assert Numbers.of(stepper.config).spikes is None


@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        ("tests.train.own_updates:noisy", {}),
        pytest.param("muon", dict(fsdp=2, heads=2), marks=pytest.mark.slow),
    ],
    ids=["noisy", "muon on a mesh"],
)
def test_a_bad_step_changes_nothing_but_its_number(name, mesh):
    changes = {
        "accidents.policy": "skip",
        "accidents.gradient_spike": 6.0,
        "loss": "tests.train.own_losses:steep",
        "model.param_dtype": "bfloat16",
        "model.num_layers": 1,
        "optim.name": name,
        "optim.ema": 0.5,
        "optim.master_weights": True,
        "steps_per_call": 2,
    }
    stepper = tiny.Stepper(tiny.config(changes), tiny.mesh(**mesh))
    start, rows = stepper.start(), stepper.batches(0)
    bad = rows._replace(labels=jnp.full_like(rows.labels, POISON))
    after, values = stepper.call(start, batches=bad)
    assert [KINDS[int(code)] for code in values[CODE]] == ["gradient"] * 2
    assert np.isfinite(values["loss"]).all()
    assert int(after.step) == 2
    tiny.assert_equal(tiny.arrays(after), tiny.arrays(start))
    tiny.assert_equal(after.recent, start.recent)
    # Where no batch has the poison, the same program takes its steps.
    good = rows._replace(labels=jnp.where(rows.labels == POISON, POISON + 1, rows.labels))
    after, values = stepper.call(start, batches=good)
    assert [KINDS[int(code)] for code in values[CODE]] == [""] * 2
    assert int(after.recent["count"]) == 2
    moved = tiny.arrays(after)
    assert any((moved[n] != array).any() for n, array in tiny.arrays(start).items())


def test_thresholds_of_0_and_no_memory_look_for_no_spikes():
    found, _ = judged([2.0, 2.1, 2.0, 2.1, 2.0, 99.0], spike=0.0, gradient_spike=1.0)
    assert found[-1][0] == ""
    numbers = Numbers.of(tiny.config())
    assert numbers.spikes is None
    recent, figures = judge({}, jnp.float32(1e9), jnp.float32(1), jnp.bool_(False), numbers)
    assert not recent
    assert KINDS[int(figures[CODE])] == "state"
