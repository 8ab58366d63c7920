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
) -> Any:
    """Returns the class or function that a field names as "module:name".

    Args:
      text: the field's value.
      field: its dotted name, for errors.
      builtin: the other values that the field takes, for errors.
      arguments: how many a function, or the constructor of a class, must take; None: any.
      kinds: what a class must be, by words for errors.

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
    except Exception as error:  # a user's module may raise anything
        raise UserError(
            f"{field} = {text!r} cannot be imported ({type(error).__name__}: {error}); "
            "name a module on the Python path and a name in it."
        ) from error
    if not callable(loaded):
        raise UserError(f"{field} = {text!r} cannot be called; name a class or a function.")
    for words, kind in (kinds or {}).items():
        if not (isinstance(loaded, type) and issubclass(loaded, kind)):
            raise UserError(f"{field} = {text!r} is no {words}; derive it from a class that is.")
    if arguments is not None:
        try:
            if isinstance(loaded, type):
                inspect.signature(loaded.__init__).bind(None, *range(arguments))  # type: ignore[misc]
            else:
                inspect.signature(loaded).bind(*range(arguments))
        except TypeError as error:
            raise UserError(
                f"{field} = {text!r} is called with {arguments} arguments ({error}); take them."
            ) from error
    return loaded
