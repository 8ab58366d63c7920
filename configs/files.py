"""Files of a run, here or in an object store: text written whole or not at all, and read."""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec

from configs.errors import UserError, disk_reason
from configs.folders import Folder

_PIECE = 1 << 20  # bytes read at once


def write_text(path: Folder, text: str) -> None:
    """Writes a text file whole or not at all.

    Raises:
      UserError: it cannot be written.
    """
    try:
        if isinstance(path, Path):
            _replace(path, text)
        else:
            path.write_text(text)  # an object is there whole or not at all
    except Exception as error:  # of a store, whatever its client raises
        raise UserError(
            f"{path} cannot be written ({disk_reason(error)}); free space, or name another folder."
        ) from error


def _replace(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    with open(part, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def read_text(path: Folder) -> str:
    """Returns the text of a file that a run wrote.

    Raises:
      UserError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except Exception as error:
        raise UserError(
            f"{path} cannot be read ({disk_reason(error)}); use another step."
        ) from error


def read_if_there(path: Folder) -> str:
    """Returns the text of a file; none where it is missing, or its disk has lost it.

    Raises:
      UserError: an object store does not answer, which has lost nothing.
    """
    if path.name not in names(path.parent):
        return ""
    try:
        return read_text(path)
    except UserError as error:
        lost = OSError if isinstance(path, Path) else FileNotFoundError
        if isinstance(error.__cause__, UnicodeDecodeError | lost):
            return ""
        raise


def pieces(path: Folder) -> Iterator[bytes]:
    """Yields the bytes of a file, a megabyte at once."""
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece


def sizes(folder: Folder) -> dict[str, int]:
    """Returns the size in bytes of each file under a folder, by its path in it, as "model/d/0".

    Raises:
      UserError: it cannot be looked at; a folder that is not there is empty.
    """
    try:
        if isinstance(folder, Path):
            found = {}
            for place, _, names in os.walk(folder):
                for file in (Path(place, name) for name in names):
                    with contextlib.suppress(FileNotFoundError):  # of another, renamed just now
                        found[file.relative_to(folder).as_posix()] = file.stat().st_size
            return found
        system, name = fsspec.core.url_to_fs(str(folder))
        start = len(name.rstrip("/")) + 1
        listed = system.find(name, detail=True)
        return {path[start:]: about["size"] for path, about in listed.items()}
    except Exception as error:
        raise UserError(
            f"{folder} cannot be looked at ({disk_reason(error)}); see that it can be reached."
        ) from error


def names(folder: Folder) -> list[str]:
    """Returns the names of what is in a folder; what is no folder, or a link to itself, is empty.

    Raises:
      UserError: it cannot be looked at.
    """
    try:
        return [entry.name for entry in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except Exception as error:
        if getattr(error, "errno", None) == errno.ELOOP:
            return []
        raise UserError(
            f"{folder} cannot be looked at ({disk_reason(error)}); see that it can be reached."
        ) from error


def is_file(path: Folder) -> bool:
    """Tells whether there is such a file.

    Raises:
      UserError: it cannot be looked at.
    """
    return _is(path, Path.is_file) if isinstance(path, Path) else path.name in names(path.parent)


def is_folder(path: Folder) -> bool:
    """Tells whether there is such a folder.

    Raises:
      UserError: it cannot be looked at.
    """
    # Of a store that does not answer, its client would say that there is none.
    return _is(path, Path.is_dir) if isinstance(path, Path) else bool(names(path))


def _is(path: Path, kind: Callable[[Path], bool]) -> bool:
    try:
        return kind(path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be looked at ({disk_reason(error)}); see that it can be reached."
        ) from error


def make_folder(path: Folder, field: str) -> None:
    """Makes a folder with those around it.

    Args:
      path: of the folder; may be there.
      field: what gave it, with its value, for errors.

    Raises:
      UserError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except Exception as error:
        raise UserError(
            f"{field} cannot be made ({disk_reason(error)}); name another folder."
        ) from error


def copy(source: Path, target: Folder) -> None:
    """Copies a folder of this machine with all that is in it, over what is there.

    Raises:
      UserError: it cannot be written.
    """
    try:
        for name in sizes(source):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes((source / name).read_bytes())
    except Exception as error:
        raise UserError(
            f"{target} cannot be written ({disk_reason(error)}); free space, or name another "
            "folder."
        ) from error


def delete(path: Folder) -> None:
    """Deletes a file, or a folder with all that is in it, as far as that goes."""
    try:
        if not isinstance(path, Path):
            path.rmtree() if path.is_dir() else path.unlink(missing_ok=True)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    except Exception:  # what stays is deleted another time
        return
