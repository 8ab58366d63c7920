"""Text files of a run: written whole or not at all, and read."""

import os
from pathlib import Path

from configs.errors import UserError, first_line


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all.

    Raises:
      UserError: it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); free space, or name another folder."
        ) from error


def read_text(path: Path) -> str:
    """Returns the text of a file that a run wrote.

    Raises:
      UserError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read ({first_line(error)}); use another step."
        ) from error
