"""The one exception for a user's mistake."""

import difflib
import errno
import os
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that its reader can put right.

    The message is one sentence that names the field or the file and the remedy.
    Every command prints it without a traceback and exits with status 2.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns ``" (did you mean 'x'?)"`` for the known name nearest to ``name``, else ``""``."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def first_line(error: BaseException) -> str:
    """Returns the first line of what a library says, for a sentence of ours."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


_OF_DISKS = ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EIO", "ESTALE", "ENODEV", "ENOENT")


def disk_reason(error: BaseException) -> str:
    """Returns why a disk or a store failed: the system's words where a library quotes them."""
    cause: BaseException | None = error
    while cause is not None:
        for name in _OF_DISKS:
            words = os.strerror(getattr(errno, name))
            if getattr(cause, "errno", None) == getattr(errno, name) or words in str(cause):
                return words
        cause = cause.__cause__ or cause.__context__
    return getattr(error, "strerror", None) or first_line(error).rstrip(".")
