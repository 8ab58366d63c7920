"""Classes and functions of the reader's own, named in a config as "module:name"."""

import importlib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from configs.errors import UserError, nearest


def load(
    text: str,
    field: str,
    builtin: Iterable[str] = (),
    arguments: int | None = None,
    kinds: Mapping[str, type] | None = None,
    methods: Mapping[str, int] | None = None,
) -> Any:
    """Returns the class or function that a field names as "module:name".

    Args:
      text: the field's value.
      field: its dotted name, for errors.
      builtin: the other values that the field takes, for errors.
      arguments: how many a function, or the constructor of a class, must take; None: any.
      kinds: what a class must be, by words for errors.
      methods: what it must have, by name, and with how many arguments each is called.

    Raises:
      UserError: there is no such module, or nothing of that name in it that can be used.
    """
    module, _, name = text.partition(":")
    known = list(builtin)
    if not module or not name:
        raise UserError(
            f"{field} = {text!r} is unknown{nearest(text, known)}; choose one of "
            f"{', '.join(known)}, or write 'module:name' for one of your own."
        )
    try:
        loaded = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise UserError(
            f"{field} = {text!r} cannot be imported ({type(error).__name__}: {error}); "
            "name a module and a name in it, and run from its folder or set PYTHONPATH."
        ) from error
    if not callable(loaded):
        raise UserError(f"{field} = {text!r} cannot be called; name a class or a function.")
    for words, kind in (kinds or {}).items():
        if not (isinstance(loaded, type) and issubclass(loaded, kind)):
            raise UserError(f"{field} = {text!r} is no {words}; derive it from a class that is.")
    for method, count in (methods or {}).items():
        if not any(method in vars(kind) for kind in loaded.__mro__):
            raise UserError(f"{field} = {text!r} has no {method}; write it, of {count} arguments.")
        if reason := refusal(getattr(loaded, method), 1 + count):
            raise UserError(
                f"{field} = {text!r}: {method} is called with {count} arguments ({reason}); "
                "take them."
            )
    if arguments is not None and (reason := refusal(loaded, arguments)):
        raise UserError(
            f"{field} = {text!r} is called with {arguments} arguments ({reason}); take them."
        )
    return loaded


def refusal(loaded: Any, arguments: int) -> str | None:
    """Returns why a class or function cannot be called with so many arguments; None if it can."""
    try:
        if isinstance(loaded, type):
            inspect.signature(loaded.__init__).bind(None, *range(arguments))  # type: ignore[misc]
        else:
            inspect.signature(loaded).bind(*range(arguments))
    except (TypeError, ValueError) as error:  # ValueError: it does not say what it takes
        return str(error)
    return None


def check_type(result: Any, kind: type, what: str) -> None:
    """Checks that a function of the reader's own, named by ``what``, returned an instance.

    Raises:
      UserError: it returned something else.
    """
    if not isinstance(result, kind):
        raise UserError(f"{what} returns {type(result).__name__}; return {kind.__name__}.")


def check_result(result: Any, shapes: Any, what: str, remedy: str) -> None:
    """Checks what a function of the reader's own returned.

    Args:
      result: an array, or a tuple of several.
      shapes: of the floating-point array that it should be, or a list of those of several.
      what: begins the sentence of an error.
      remedy: ends it.

    Raises:
      UserError: it is something else.
    """

    def shape(x: Any) -> Any:
        dtype = str(getattr(x, "dtype", type(x).__name__))
        return tuple(x.shape) if "float" in dtype and hasattr(x, "shape") else dtype

    shown = [shape(x) for x in result] if isinstance(result, tuple) else shape(result)
    if shown != shapes:
        raise UserError(f"{what} {shown}; {remedy}.")
