"""Spikes in a run: found by the last losses, which are saved with the state."""

import numpy as np
import pytest

from configs.errors import UserError
from tests.train import poison

WINDOW = 4
HOT = {"loss": "tests.train.own_losses:hot", "steps": 10}
SPIKES = {"accidents.spike": 6.0, "accidents.window": WINDOW}
SKIP = {"accidents.policy": "skip"}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A text of which batch 6 gives a loss several times that of others."""
    return poison.written(tmp_path_factory.mktemp("texts"), 6)


@pytest.fixture(scope="module")
def whole(path, tmp_path_factory):
    """A run that passed the spike over."""
    workdir = tmp_path_factory.mktemp("whole")
    _, said = poison.run(workdir, path, HOT | SPIKES | SKIP)
    assert "the loss of step 7 is a spike: " in said
    return workdir


def test_a_spike_is_what_the_losses_on_record_say(whole):
    values = {step: loss for step, (loss, _) in poison.losses(whole).items()}
    good, spikes = [], []
    for step, loss in values.items():
        last = np.array(good[-WINDOW:])
        if len(last) == WINDOW and loss > last.mean() + 6 * last.std(ddof=1):
            spikes.append((step, last.mean(), last.std(ddof=1)))
        else:
            good.append(loss)
    ((step, mean, deviation),) = spikes
    (event,) = poison.events(whole)
    assert (event["step"], event["batch"], event["kind"]) == (7, 6, "loss spike")
    assert step == 7
    assert event["loss"] == values[7]
    np.testing.assert_allclose([event["mean"], event["deviation"]], [mean, deviation], rtol=1e-4)


def test_a_run_that_goes_on_knows_the_losses_before(path, whole, tmp_path):
    poison.run(tmp_path, path, HOT | SPIKES | SKIP | {"steps": 5})
    poison.run(tmp_path, path, HOT | SPIKES | SKIP)
    assert poison.losses(tmp_path) == poison.losses(whole)
    assert poison.events(tmp_path)[0] == poison.events(whole)[0] | {
        "config": poison.events(tmp_path)[0]["config"]
    }


@pytest.mark.slow
def test_spikes_are_looked_for_from_any_step_on_and_no_more(path, whole, tmp_path):
    poison.run(tmp_path, path, HOT | {"steps": 2})  # saved without a memory
    with pytest.raises(UserError, match="the loss of step 7 is a spike: .* its batch, 6, passed"):
        poison.run(tmp_path, path, HOT | SPIKES)
    poison.run(tmp_path, path, HOT | SPIKES | SKIP)
    assert [event["action"] for event in poison.events(tmp_path)] == ["stop", "skip"]
    found, expected = poison.losses(tmp_path), poison.losses(whole)
    np.testing.assert_allclose([*found.values()], [*expected.values()], rtol=1e-5)
    for steps, fields in (
        (12, {}),
        (14, SPIKES | SKIP),
        (16, SPIKES | SKIP | {"accidents.window": 3}),
    ):
        outcome, said = poison.run(tmp_path, path, HOT | fields | {"steps": steps})
        assert outcome.step == steps
        assert f"resumed from step {steps - 2}" in said


@pytest.mark.slow
def test_a_state_that_would_not_be_finite_is_never_taken_and_a_run_gives_up(path, tmp_path):
    changes = SKIP | {
        "loss": "cross_entropy",
        "optim.name": "tests.train.own_updates:bursting",
        "accidents.limit": 2,
        "checkpoint.every": 1,
    }
    sentence = "the state after the update of step 6 is not finite.*too many after 2 accidents"
    with pytest.raises(UserError, match=sentence):
        poison.run(tmp_path, path, changes)
    assert [(e["step"], e["kind"]) for e in poison.events(tmp_path)] == [
        (4, "state"),
        (5, "state"),
        (6, "state"),
    ]
    again = poison.losses(tmp_path)
    assert again[4][0] != again[3][0]
