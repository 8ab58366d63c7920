"""The check of annotations while tests run."""

from collections.abc import Callable
from typing import TypeVar

import beartype

F = TypeVar("F", bound=Callable)


def checked(function: F) -> F:
    """Checks what a function is given and returns.

    A function within another is left out: the check would be compiled anew at each call.
    """
    return function if "<locals>" in function.__qualname__ else beartype.beartype(function)
