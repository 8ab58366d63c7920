"""Where a user's things are: folders of this machine, or of an object store."""

import contextlib
import os
from pathlib import Path
from typing import TypeAlias

from etils import epath

from configs import object_stores
from configs.errors import UserError, first_line

# Of this machine, or of an object store such as gs://bucket/run.
Folder: TypeAlias = Path | epath.Path


def folder(name: str, field: str) -> Path:
    """Returns the absolute path of a folder that may yet have to be made; ~ is the user's home.

    Args:
      name: as it was given.
      field: what gave it, for errors.

    Raises:
      UserError: no folder of this machine can have that name, or it may not be looked at.
    """
    if "://" in name:
        raise UserError(
            f"{field}={name} is not a folder of this machine; name one, such as a mounted disk."
        )
    try:
        path = Path(name).expanduser().absolute()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.stat(path)  # what is missing is found out, and said, by who makes it
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error).rstrip(".")
        raise UserError(f"{field}={name} cannot be used ({reason}); name another.") from error
    return path


def run_folder(name: str, field: str) -> Folder:
    """Returns the same, or a folder of an object store, as ``gs://bucket/run`` or ``s3://``.

    Raises:
      UserError: it cannot be used.
    """
    name = name.removeprefix("file://")
    if "://" not in name:
        return folder(name, field)
    object_stores.prepare(name, field)
    return epath.Path(name)


def as_folder(path: str) -> Folder:
    """Returns the path that ``str`` of a folder gave."""
    return epath.Path(path) if "://" in path else Path(path)


def in_store(path: Folder) -> bool:
    """Tells whether a folder is in an object store."""
    return not isinstance(path, Path)


def user_cache() -> Path:
    """Returns the folder of this project's caches.

    It is ``$XDG_CACHE_HOME/manyheads``, or ``~/.cache/manyheads``.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    return Path(home).expanduser() / "manyheads"


def user_state() -> Path:
    """Returns the folder of what this project remembers between commands.

    It is ``$XDG_STATE_HOME/manyheads``, or ``~/.local/state/manyheads``.
    """
    home = os.environ.get("XDG_STATE_HOME") or os.path.join("~", ".local", "state")
    return Path(home).expanduser() / "manyheads"
