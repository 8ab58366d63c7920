"""Schedules against values worked out by hand, and what all of them have in common."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import base
from configs.errors import UserError
from configs.ranges import CHOICES, check_ranges
from train import schedules
from train.numbers import Numbers
from train.schedules import SCHEDULES


def numbers(steps, warmup, final=0.1, decay=0.2):
    config = base.get_config()
    config.steps = steps
    config.optim.update(warmup_steps=warmup, final_fraction=final, decay_fraction=decay)
    return Numbers.of(config)


@jax.jit
def _all(steps, n):
    return {
        name: jax.vmap(lambda step, name=name: schedules.multiplier(name, step, n))(steps)
        for name in SCHEDULES
    }


def curve(name, steps, warmup, final=0.1, decay=0.2):
    """Returns the multiplier of every step of a run, and of some steps past its end."""
    found = _all(jnp.arange(64), numbers(steps, warmup, final, decay))[name]
    return np.asarray(found)


# Runs of 11 steps, 0 to 10, with 4 of warm-up: at 1/4, 2/4, 3/4 and 1 of the schedule, which
# itself goes from step 4 to step 10.
EXPECTED = {
    "constant": [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1, 1],
    "linear": [0.25, 0.5, 0.75, 1, 1, 0.85, 0.7, 0.55, 0.4, 0.25, 0.1],
    "cosine": [
        *(0.25, 0.5, 0.75, 1, 1),
        *(0.1 + 0.9 * (0.5 + 0.5 * math.cos(math.pi * k / 6)) for k in range(1, 7)),
    ],
    # The last 5.5 steps decay: from step 5.5 to step 10.
    "warmup_stable_decay": [
        *(0.25, 0.5, 0.75, 1, 1, 1),
        *(1 - 0.9 * (step - 5.5) / 4.5 for step in range(6, 11)),
    ],
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_step_of_a_short_run_by_hand(name):
    found = curve(name, steps=11, warmup=4, final=0.1, decay=0.5)
    np.testing.assert_allclose(found[:11], EXPECTED[name], rtol=0, atol=1e-6)
    # A run that goes on past its schedule keeps the last value.
    np.testing.assert_allclose(found[11:], EXPECTED[name][-1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_without_warm_up_the_first_step_takes_the_peak(name):
    assert curve(name, steps=50, warmup=0)[0] == 1


@pytest.mark.parametrize("name", sorted(set(SCHEDULES) - {"constant"}))
@pytest.mark.parametrize("final", [0.0, 0.3, 1.0])
def test_the_last_step_takes_the_final_fraction(name, final):
    np.testing.assert_allclose(curve(name, steps=40, warmup=5, final=final)[39], final, atol=1e-6)


@given(
    steps=st.integers(1, 60),
    warmup=st.integers(0, 60),
    final=st.floats(0, 1, width=32),
    decay=st.floats(0, 1, width=32),
)
@settings(max_examples=60, deadline=None)
def test_multipliers_rise_once_to_at_most_1_and_fall_once(steps, warmup, final, decay):
    for name in SCHEDULES:
        found = curve(name, steps, warmup, final, decay)[:steps]
        assert (found > -1e-6).all()
        assert (found <= 1 + 1e-6).all()
        top = int(found.argmax())
        assert (np.diff(found[: top + 1]) >= -1e-6).all()
        assert (np.diff(found[top:]) <= 1e-6).all()


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_has_no_jumps(name):
    """Seen closely, no two neighbouring moments differ by more than the steepest slope."""
    moments = np.linspace(0, 39, 2000, dtype=np.float32)
    n = numbers(40, 10, 0.0, 0.5)
    found = np.asarray(jax.vmap(lambda at: SCHEDULES[name](at, n))(moments))
    steepest = math.pi / 2 / (39 - 20)
    assert np.abs(np.diff(found)).max() <= steepest * (moments[1] - moments[0]) * 1.01


def test_an_unknown_schedule_is_refused_with_the_nearest_name():
    assert set(CHOICES["optim.schedule"]) == set(SCHEDULES)
    with pytest.raises(UserError, match="optim.schedule cannot be 'cosin'.*did you mean 'cosine'"):
        check_ranges({"optim.schedule": "cosin"})
