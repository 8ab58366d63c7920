"""Figures that a command reports, written as JSON beside its text."""

import json
from pathlib import Path
from typing import Any

from configs.errors import UserError


def write_json(path: str, figures: dict[str, Any]) -> None:
    """Writes figures to the file of ``--json``.

    Raises:
      UserError: the file cannot be written.
    """
    try:
        Path(path).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"--json={path} cannot be written ({error.strerror}); name a file in a folder "
            "that exists and that you may write."
        ) from error
