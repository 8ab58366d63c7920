"""What a config names as "module:name": an object of the user's own."""

import importlib
from typing import Any

from configs.errors import UserError


def imported(field: str, name: str) -> Any:
    """Returns what ``name`` names as "module:name".

    Args:
      field: of the config, for errors.
      name: a module on the Python path, a colon, a name in the module.

    Raises:
      UserError: it cannot be imported, or is not callable.
    """
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a user's module may raise anything
        raise UserError(
            f"{field} = {name!r} cannot be imported ({type(error).__name__}: {error}); "
            "name a module on the Python path and what to take from it, as 'module:name'."
        ) from error
    if not callable(found):
        raise UserError(f"{field} = {name!r} cannot be called; name a function.")
    return found
