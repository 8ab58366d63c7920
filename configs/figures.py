"""Figures that a command reports, written as JSON beside its text."""

import json
import math
import os
from pathlib import Path
from typing import Any

from absl import flags

from configs.errors import UserError

# --json belongs to the command that defines it, so that its --help lists it.
flags.disclaim_key_flags()


def define_json() -> None:
    """Defines ``--json``, and refuses at the start a file that cannot be written at the end."""
    flags.DEFINE_string("json", None, "Also write the figures to this file.")
    flags.register_validator("json", _check_writable)


def _check_writable(path: str | None) -> bool:
    if path is None:
        return True
    file = Path(path)
    if file.is_dir():
        raise _unwritable(path, "it is a folder")
    if not file.parent.is_dir():
        raise _unwritable(path, "there is no such folder")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise _unwritable(path, "permission denied")
    return True


def _unwritable(path: str, why: str) -> UserError:
    return UserError(
        f"--json={path} cannot be written ({why}); name a file in a folder "
        "that exists and that you may write."
    )


def write_json(path: str, figures: dict[str, Any]) -> None:
    """Writes figures to the file of ``--json``; one that is not finite becomes null.

    Raises:
      UserError: the file cannot be written.
    """
    try:
        Path(path).write_text(json.dumps(_plain(figures), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise _unwritable(path, error.strerror or type(error).__name__) from error


def _plain(figures: Any) -> Any:
    if isinstance(figures, dict):
        return {name: _plain(value) for name, value in figures.items()}
    if isinstance(figures, list | tuple):
        return [_plain(value) for value in figures]
    if isinstance(figures, float) and not math.isfinite(figures):
        return None
    return figures
