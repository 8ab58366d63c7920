"""Resolved configs: JSON and back, digests, differences, and the checks."""

import json

import pytest

from configs import base, gpt3
from configs.errors import UserError
from configs.resolved import check, difference, digest, fields, from_json, to_json, values


def changed():
    config = base.get_config()
    config.model.window = (None, 256)
    config.optim.multipliers = (("*.gain", 2, 0.5),)
    config.model.head_dim = 48
    config.model.logit_cap = 30.0
    config.sample.prompts = ("one", "two\nlines")
    config.optim.learning_rate = 1
    return config


@pytest.mark.parametrize("config", [base.get_config(), changed(), gpt3.get_config("175b")])
def test_json_round_trip(config):
    read = from_json(to_json(config), "config.json")
    assert values(read) == values(config)
    assert {name: type(value) for name, value in values(read).items()} == {
        name: type(value) for name, value in values(config).items()
    }
    assert to_json(read) == to_json(config)
    check(read)


def test_json_is_plain_sorted_json():
    found = json.loads(to_json(changed()))
    assert found["model"]["window"] == [None, 256]
    assert found["model"]["num_kv_heads"] is None
    assert list(found) == sorted(found)


def test_fields_gained_since_take_their_defaults():
    old = json.loads(to_json(changed()))
    del old["model"]["norm_epsilon"]
    del old["log"]
    read = from_json(json.dumps(old), "config.json")
    assert read.model.norm_epsilon == base.get_config().model.norm_epsilon
    assert read.log.every == base.get_config().log.every
    assert read.model.head_dim == 48


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[1]",
        "3",
        '{"nope": 1}',
        '{"model": {"nope": 1}}',
        '{"nope": {"num_heads": 1}}',
        '{"seed": {"num_heads": 1}}',
        '{"model": 1}',
        '{"seed": "x"}',
    ],
)
def test_json_that_is_no_config(text: str):
    with pytest.raises(UserError, match="runs/a/config.json") as caught:
        from_json(text, "runs/a/config.json")
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_digest_depends_on_values_alone():
    assert digest(base.get_config()) == digest(base.get_config())
    assert digest(base.get_config()) == digest(from_json(to_json(base.get_config()), "x"))
    assert digest(changed()) != digest(base.get_config())
    assert len(digest(changed())) == 12
    assert int(digest(changed()), 16) >= 0


def test_difference_names_what_differs():
    assert difference(base.get_config(), base.get_config()) == {}
    found = difference(base.get_config(), changed())
    assert set(found) == {
        "model.window",
        "model.head_dim",
        "model.logit_cap",
        "sample.prompts",
        "optim.learning_rate",
        "optim.multipliers",
    }
    assert found["model.window"] == ((None,), (None, 256))
    assert found["model.head_dim"] == (None, 48)


def test_fields_know_the_kinds():
    kinds = fields(base.get_config())
    assert kinds["model.num_heads"] == "a whole number"
    assert kinds["model.head_dim"] == "a whole number"
    assert kinds["optim.learning_rate"] == "a number"
    assert kinds["model.scan_layers"] == "a switch (true or false)"
    assert kinds["data.path"] == "text"
    assert kinds["model.window"] == "a tuple"
    assert set(kinds) == set(values(base.get_config()))


def test_unknown_field_names_the_nearest():
    config = base.get_config()
    config.model.num_head = 3
    with pytest.raises(UserError, match=r"config\.model\.num_head .*'model\.num_heads'"):
        check(config)


def test_missing_field():
    config = base.get_config()
    del config.model["num_heads"]
    with pytest.raises(UserError, match=r"config\.model\.num_heads is missing"):
        check(config)


@pytest.mark.parametrize(
    ("value", "accepted"),
    [(8, True), (None, False), ("8", False), (8.0, False), (True, False)],
)
def test_types(value, accepted: bool):
    config = base.get_config()
    with config.ignore_type():
        config.model.num_heads = value
    if accepted:
        check(config)
    else:
        with pytest.raises(UserError, match=r"config\.model\.num_heads must be a whole number"):
            check(config)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model.window", (None, "x")),
        ("model.window", (1.5,)),
        ("optim.multipliers", (("*", 1.0),)),
        ("optim.multipliers", (("*", 1.0, True),)),
        ("optim.multipliers", ("*",)),
        ("log.profile", (1, 2.5)),
        ("data.periods", (True, 4)),
        ("sample.prompts", (1, 2)),
    ],
)
def test_elements_of_tuples_are_checked(name: str, value: tuple) -> None:
    config = base.get_config()
    config.update_from_flattened_dict({name: value})
    with pytest.raises(UserError, match=f"config.{name} holds"):
        check(config)
