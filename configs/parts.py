"""Files that grow or change while they are looked at: what is new in a folder, parts of a file."""

import dataclasses
import os
import stat
from pathlib import Path

import fsspec

from configs.errors import UserError, disk_reason
from configs.folders import Folder


@dataclasses.dataclass(frozen=True)
class Version:
    """Of a file, as its folder lists it."""

    size: int  # bytes
    made: str  # another one where the file was made anew, rather than appended to
    changed: str  # another one whenever it was written


def versions(folder: Folder) -> dict[str, Version]:
    """Returns the plain files of a folder by their names; a folder that is not there has none.

    Raises:
      UserError: it cannot be looked at.
    """
    try:
        if isinstance(folder, Path):
            return _on_disk(folder)
        system, name = fsspec.core.url_to_fs(str(folder))
        found = {}
        for about in system.ls(name, detail=True):
            if about["type"] == "file":
                keys = ("generation", "etag", "ETag", "updated", "LastModified")
                changed = " ".join(str(about[key]) for key in keys if key in about)
                file = Version(int(about["size"]), changed, changed)
                found[about["name"].rstrip("/").rpartition("/")[2]] = file
        return found
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except Exception as error:  # of a store, whatever its client raises
        raise _unseen(folder, error) from error


def _on_disk(folder: Path) -> dict[str, Version]:
    found = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                about = os.stat(entry.path)  # a link counts as what it leads to
            except OSError:  # deleted meanwhile, or a link to nothing
                continue
            if stat.S_ISREG(about.st_mode):
                made = f"{about.st_dev}:{about.st_ino}"
                found[entry.name] = Version(about.st_size, made, f"{made}:{about.st_mtime_ns}")
    return found


def part(path: Folder, start: int, stop: int) -> bytes:
    """Returns the bytes of a file from ``start`` to ``stop``; fewer where it is shorter.

    Raises:
      UserError: it cannot be read.
    """
    if stop <= start:
        return b""
    try:
        if not isinstance(path, Path):
            system, name = fsspec.core.url_to_fs(str(path))
            return system.cat_file(name, start=start, end=stop)
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(stop - start)
    except Exception as error:
        raise _unseen(path, error) from error


def _unseen(path: Folder, error: Exception) -> UserError:
    return UserError(f"{path} cannot be read ({disk_reason(error)}); see that it can be reached.")
