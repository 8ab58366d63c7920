"""Figures that a command reports, written as JSON beside its text."""

import json
import math
from pathlib import Path
from typing import Any

from configs.errors import UserError


def write_json(path: str, figures: dict[str, Any]) -> None:
    """Writes figures to the file of ``--json``; one that is not finite becomes null.

    Raises:
      UserError: the file cannot be written.
    """
    try:
        Path(path).write_text(json.dumps(_plain(figures), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"--json={path} cannot be written ({error.strerror}); name a file in a folder "
            "that exists and that you may write."
        ) from error


def _plain(figures: Any) -> Any:
    if isinstance(figures, dict):
        return {name: _plain(value) for name, value in figures.items()}
    if isinstance(figures, list | tuple):
        return [_plain(value) for value in figures]
    if isinstance(figures, float) and not math.isfinite(figures):
        return None
    return figures
