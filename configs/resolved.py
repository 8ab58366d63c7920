"""A resolved config: checked against base.py, written as JSON, compared and hashed."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from configs import base
from configs.errors import UserError, nearest
from configs.ranges import check_ranges

_KINDS = {
    bool: "a switch (true or false)",
    int: "a whole number",
    float: "a number",
    str: "text",
    tuple: "a tuple",
}


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _multiplier(value: Any) -> bool:
    """Tells whether a value is (pattern, rate, decay)."""
    return (
        isinstance(value, tuple)
        and len(value) == 3
        and isinstance(value[0], str)
        and all(_whole(factor) or isinstance(factor, float) for factor in value[1:])
    )


_ELEMENTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model.window": (lambda value: value is None or _whole(value), "whole numbers or None"),
    "data.periods": (_whole, "whole numbers"),
    "optim.multipliers": (_multiplier, "(pattern, rate, decay): a text and two numbers"),
    "log.profile": (_whole, "whole numbers"),
    "checkpoint.restore_only": (lambda value: isinstance(value, str), "texts"),
    "sample.prompts": (lambda value: isinstance(value, str), "texts"),
}


# Fields of earlier versions that said how to compute, and not what.
RETIRED = ("join_projections",)


def fields(config: ConfigDict, prefix: str = "") -> dict[str, str]:
    """Returns the kind of each field by its dotted name (``"model.num_heads": "whole number"``)."""
    flat = {}
    for name in config:
        kind = config.get_type(name)
        if issubclass(kind, ConfigDict):
            flat.update(fields(config[name], f"{prefix}{name}."))
        else:
            flat[prefix + name] = _KINDS[kind]
    return flat


def values(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Returns the value of each field by its dotted name."""
    flat = {}
    for name in config:
        value = config[name]
        if isinstance(value, ConfigDict):
            flat.update(values(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def check(config: ConfigDict) -> None:
    """Checks a config's fields, and that their values can be run.

    Raises:
      UserError: see ``check_fields``; a value is out of its range or does not fit another.
    """
    check_fields(config)
    check_ranges(values(config))
    if config.batch_size % config.optim.accumulate:
        raise UserError(
            f"optim.accumulate = {config.optim.accumulate} does not divide batch_size = "
            f"{config.batch_size}; choose a divisor."
        )
    for name in ("restore_only", "restore_layers", "restore_ema"):
        if config.checkpoint[name] and not config.checkpoint.restore_from:
            raise UserError(
                f"checkpoint.{name} = {config.checkpoint[name]!r} says what to take of "
                "checkpoint.restore_from, which is empty; name a run, a step or a saved model."
            )
    if config.log.profile and config.log.profile[0] > config.steps:
        raise UserError(
            f"log.profile = {config.log.profile} begins after steps = {config.steps}; "
            "name steps of the run."
        )


def check_fields(config: ConfigDict) -> None:
    """Compares a config's fields with those of base.py.

    Raises:
      UserError: a field is unknown, missing or of another type; the sentence names it.
    """
    known = fields(base.get_config())
    given = values(config)
    defaults = values(base.get_config())
    optional = {name for name, value in defaults.items() if value is None}
    for name, value in given.items():
        if name not in known:
            raise UserError(
                f"config.{name} is not a field{nearest(name, known)}; see configs/base.py."
            )
        if value is None and name in optional:
            continue
        if not _is(value, known[name]):
            raise UserError(
                f"config.{name} must be {known[name]}, not {value!r}; see configs/base.py."
            )
    for name in known:
        if name not in given:
            raise UserError(
                f"config.{name} is missing; start the config from configs.base.get_config()."
            )

    for name, (fits, written) in _ELEMENTS.items():
        for element in given[name]:
            if not fits(element):
                raise UserError(f"config.{name} holds {element!r}; its elements are {written}.")


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == _KINDS[bool]
    if isinstance(value, int):
        return kind in (_KINDS[int], _KINDS[float])
    return kind == _KINDS.get(type(value))


def resolve(config: ConfigDict, vocab_size: int) -> ConfigDict:
    """Returns a copy in which the vocabulary and the longest sequence have their sizes."""
    config = config.copy_and_resolve_references()
    if config.model.vocab_size is None:
        config.model.vocab_size = vocab_size
    if config.model.max_length is None:
        config.model.max_length = config.length
    return config


def to_json(config: ConfigDict) -> str:
    """Writes a config as JSON text, sorted and indented; tuples become lists."""
    return json.dumps(config.to_dict(), sort_keys=True, indent=1) + "\n"


def from_json(text: str, source: str) -> ConfigDict:
    """Reads what ``to_json`` wrote.

    Fields that base.py has gained since then take their defaults.

    Args:
      text: the JSON text.
      source: where it comes from, named in errors.

    Raises:
      UserError: the text is not a config, or has a field that base.py does not.
    """
    try:
        saved = json.loads(text)
        if not isinstance(saved, dict):
            raise ValueError("it holds no fields")
    except ValueError as error:
        raise UserError(f"{source} is not a config ({error}); restore it or delete it.") from error
    config = base.get_config()
    try:
        _fill(config, saved)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        name = str(error.args[0]).splitlines()[0]
        raise UserError(
            f"{source} does not fit this version's configs/base.py ({name}); "
            "use the version that wrote it."
        ) from error
    return config


def _fill(config: ConfigDict, saved: dict[str, Any]) -> None:
    for name, value in saved.items():
        if name in RETIRED:
            continue
        if name not in config:
            raise KeyError(f"unknown field {name!r}")
        if isinstance(value, dict) != isinstance(config[name], ConfigDict):
            raise TypeError(f"ill-typed field {name!r}")
        if isinstance(value, dict):
            _fill(config[name], value)
        else:
            config[name] = _tupled(value)


def _tupled(value: Any) -> Any:
    return tuple(_tupled(part) for part in value) if isinstance(value, list) else value


def digest(config: ConfigDict) -> str:
    """Returns twelve hexadecimal digits that name this resolved config."""
    return hashlib.sha256(to_json(config).encode()).hexdigest()[:12]


def difference(old: ConfigDict, new: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """Returns (old, new) for each field that differs, by its dotted name."""
    before, after = values(old), values(new)
    return {
        name: (before.get(name), after.get(name))
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    }
