"""Whether the files of a saved step hold what was written: SHA-256 of each, by the manifest.

Orbax does not look: most bytes of an array's file can be changed without its noticing.
"""

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from configs.errors import UserError, first_line
from configs.files import pieces
from configs.folders import Folder
from model.manifest import File, Manifest

_THREADS = min(8, os.cpu_count() or 1)


def sha256(path: Folder) -> str:
    """Returns the SHA-256 of a file, hexadecimal."""
    found = hashlib.sha256()
    for piece in pieces(path):
        found.update(piece)
    return found.hexdigest()


def hashed(folder: Folder, names: Iterable[str]) -> dict[str, str]:
    """Returns the SHA-256 of files of a folder by their names, several at a time."""
    listed = list(names)
    with ThreadPoolExecutor(_THREADS, "checksums") as threads:
        return dict(zip(listed, threads.map(lambda n: sha256(folder / n), listed), strict=True))


def share(files: dict[str, File], index: int, count: int) -> dict[str, File]:
    """Returns the files that one of several processes verifies, about as many bytes each."""
    loads = [0] * count
    mine = {}
    for name in sorted(files, key=lambda name: (-files[name].size, name)):
        least = loads.index(min(loads))
        loads[least] += files[name].size
        if least == index:
            mine[name] = files[name]
    return mine


def of_items(manifest: Manifest, items: Iterable[str]) -> dict[str, File]:
    """Returns the files of some items with the plain files, which are part of anything read."""
    others = set(manifest.arrays) - set(items)
    return {n: f for n, f in manifest.files.items() if n.split("/")[0] not in others}


def damaged(folder: Folder, files: dict[str, File]) -> list[str]:
    """Returns the names of files that do not hold what their checksums say, or cannot be read.

    Raises:
      UserError: an object store does not answer, which is no damage.
    """
    summed = [name for name, file in files.items() if file.sha256 is not None]

    def differs(name: str) -> bool:
        try:
            return sha256(folder / name) != files[name].sha256
        except Exception as error:
            if isinstance(error, FileNotFoundError) or isinstance(folder, Path):
                return True
            raise UserError(
                f"{folder / name} cannot be read ({first_line(error)}); see that it can be reached."
            ) from error

    with ThreadPoolExecutor(_THREADS, "checksums") as threads:
        return [name for name, bad in zip(summed, threads.map(differs, summed), strict=True) if bad]
