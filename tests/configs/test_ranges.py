"""Values out of range are refused by their field's name; those at its ends are taken."""

import pytest

from configs import base
from configs.errors import UserError
from configs.ranges import RANGES
from configs.resolved import check, values


def config(name, value):
    found = base.get_config()
    found.update_from_flattened_dict({name: value})
    return found


REFUSED = [
    ("steps", 0, "config.steps = 0 must be at least 1."),
    ("loss_chunk", 0, "config.loss_chunk = 0 must be at least 1, or None."),
    ("steps", 2**31, "config.steps = 2147483648 must be at most 2,147,483,647: a step's"),
    ("seed", -1, r"config.seed = -1 must be at least 0 and below 2\^32 - 1."),
    ("seed", 2**32 - 1, "config.seed = 4294967295 must be"),
    ("model.num_heads", 0, "model.num_heads = 0 must be at least 1."),
    ("model.dropout", 1.0, "model.dropout = 1.0 must be at least 0 and below 1."),
    ("model.logit_cap", 0.0, "model.logit_cap = 0.0 must be positive and finite in float32, or"),
    ("model.window", (), r"model.window = \(\) must hold None or sizes of at least 1 "),
    ("model.window", (None, 0), r"model.window = \(None, 0\) must hold"),
    ("checkpoint.every", -1, "checkpoint.every = -1 must be at least 0."),
    ("sample.temperature", float("inf"), "sample.temperature = inf must be at least 0, and"),
    ("optim.learning_rate", -1.0, "optim.learning_rate = -1.0 must be at least 0, and finite in"),
    ("optim.learning_rate", float("nan"), "optim.learning_rate = nan must"),
    ("optim.weight_decay", float("inf"), "optim.weight_decay = inf must"),
    ("optim.clip", -1.0, "optim.clip = -1.0 must"),
    ("optim.z_loss", -1e-4, "optim.z_loss = -0.0001 must"),
    ("optim.b1", 1.0, "optim.b1 = 1.0 must be at least 0 and below 1."),
    ("optim.b2", -0.1, "optim.b2 = -0.1 must"),
    ("optim.muon_momentum", 1.0, "optim.muon_momentum = 1.0 must"),
    ("optim.ema", 1.0, "optim.ema = 1.0 must"),
    # As float32, which the step computes in, these are 1, 0 and infinite.
    ("optim.b2", 1 - 1e-9, "optim.b2 = 0.999999999 must"),
    ("optim.eps", 1e-60, "optim.eps = 1e-60 must be positive and finite in float32."),
    ("optim.learning_rate", 1e39, r"optim.learning_rate = 1e\+39 must"),
    ("optim.multipliers", (("*", 1.0, 1e39),), "optim.multipliers = .* must multiply by"),
    ("optim.multipliers", (("*", -1, 1.0),), "optim.multipliers = .* must multiply by"),
    ("optim.warmup_steps", -1, "optim.warmup_steps = -1 must be at least 0."),
    ("optim.final_fraction", 1.5, "optim.final_fraction = 1.5 must lie between 0 and 1."),
    ("optim.decay_fraction", -0.5, "optim.decay_fraction = -0.5 must"),
    ("log.profile", (1_001, 1_002), "log.profile = .* begins after steps = 1000"),
    ("optim.accumulate", 3, "optim.accumulate = 3 does not divide batch_size = 32"),
    *(
        ("log.profile", steps, "log.profile = .* must be a first and a last step")
        for steps in ((3,), (0, 2), (5, 4), (1, 2, 3))
    ),
]


@pytest.mark.parametrize(("name", "value", "sentence"), REFUSED, ids=str)
def test_a_value_out_of_range_is_refused_by_name(name, value, sentence):
    with pytest.raises(UserError, match=f"^{sentence}"):
        check(config(name, value))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 1),
        ("steps", 2**31 - 1),
        ("seed", 0),
        ("seed", 2**32 - 2),
        ("optim.b1", 0.0),
        ("optim.final_fraction", 1.0),
        ("optim.clip", 0.0),
        ("model.logit_cap", 1e-3),
        ("model.window", (1,)),
        ("checkpoint.keep_every", 0),
        ("log.profile", (7, 7)),
        ("optim.accumulate", 32),
    ],
    ids=str,
)
def test_the_ends_of_a_range_are_taken(name, value):
    check(config(name, value))


def test_ranges_are_of_fields_that_there_are():
    assert {name for _, _, names in RANGES for name in names} <= values(base.get_config()).keys()
