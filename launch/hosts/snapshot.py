"""The code as it is here: git's revision with what was changed since, as one archive."""

import dataclasses
import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
from pathlib import Path
from typing import Any

from configs.errors import UserError
from train.provenance import RECORD, code

ROOT = Path(__file__).parents[2]
LARGEST = 200e6  # bytes; what is larger is data, and would be sent to every host
# What no copy of the code needs, where git does not say what is ignored.
_LEFT = re.compile(r"\.git|\.venv.*|\.cache|\..*_cache|\.hypothesis|__pycache__|.*\.egg-info|runs")


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The files of this code, and where they come from."""

    root: Path
    digest: str  # of names, modes and contents
    files: tuple[str, ...]
    revision: str | None  # None: not known
    diff: str  # against the revision

    def about(self) -> dict[str, Any]:
        """Returns what a record says of it: JSON."""
        changed = bool(self.diff) if self.revision else None
        return dict(revision=self.revision, changed=changed, digest=self.digest)

    def archive(self) -> bytes:
        """Returns a tar of the files, with a record of where they come from."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=6) as tar:
            for name in self.files:
                tar.add(self.root / name, arcname=name, recursive=False, filter=_nobody)
            record = json.dumps(self.about() | dict(diff=self.diff), indent=1).encode()
            about = tarfile.TarInfo(RECORD)
            about.size = len(record)
            tar.addfile(about, io.BytesIO(record))
        return packed.getvalue()

    def inside(self, path: str, field: str) -> str:
        """Returns a path of this machine as one in the archive, from its root.

        Raises:
          UserError: the file is not in it.
        """
        full = Path(path).absolute()
        try:
            name = full.resolve().relative_to(self.root.resolve()).as_posix()
        except ValueError:
            name = ""
        if name not in self.files:
            where = "is ignored by git" if name else f"lies outside of {self.root}"
            raise UserError(
                f"{field}={path} {where}, so it does not come to the hosts; move it to a folder "
                "that does."
            )
        return name


def take(root: Path = ROOT) -> Snapshot:
    """Returns the code as it is now: all files that git knows or does not ignore.

    Raises:
      UserError: it is too large to be sent, or cannot be read.
    """
    names = _names(root)
    digest, size = hashlib.sha256(), 0
    for name in names:
        path = root / name
        try:
            about = path.lstat()
            content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
        except OSError as error:
            raise UserError(
                f"{path} cannot be read ({error.strerror}), and is sent to the hosts; make it "
                "readable, or add it to .gitignore."
            ) from error
        size += len(content)
        kind = "link" if path.is_symlink() else str(bool(about.st_mode & 0o100))
        digest.update(f"{name}\0{kind}\0{len(content)}\0".encode(errors="surrogateescape"))
        digest.update(content)
    if size > LARGEST:
        raise UserError(
            f"{root} holds {size / 1e6:,.0f} MB that git does not ignore, too much to be sent to "
            f"every host (at most {LARGEST / 1e6:,.0f} MB); add what is not code to .gitignore."
        )
    revision = code()["revision"] if root == ROOT else None
    return Snapshot(root, digest.hexdigest()[:16], tuple(names), revision, _diff(root))


def _names(root: Path) -> list[str]:
    known = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = _git(root, *known)
    if listed is not None:
        names = {name for name in listed.split("\0") if name}
        return sorted(name for name in names if os.path.lexists(root / name))
    found = []
    for place, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not _LEFT.fullmatch(name)]
        found += [(Path(place) / name).relative_to(root).as_posix() for name in files]
    return sorted(found)


def _diff(root: Path) -> str:
    """Returns what was changed since the revision; new files too, which git's diff leaves out."""
    diff = _git(root, "diff", "--binary", "HEAD") or ""
    others = _git(root, "ls-files", "-z", "--others", "--exclude-standard") or ""
    for name in filter(None, others.split("\0")):
        words = ("diff", "--binary", "--no-index", "--", "/dev/null", name)
        diff += _git(root, *words, status=1) or ""  # of files that differ, as these do
    return diff


def _git(root: Path, *words: str, status: int = 0) -> str | None:
    """Returns what git says of this folder; None where it is no clone."""
    try:
        ask = ["git", "-C", str(root)]
        top = subprocess.run(
            [*ask, "rev-parse", "--show-toplevel"], capture_output=True, text=True, check=False
        )
        if Path(top.stdout.strip() or "/").resolve() != root.resolve():
            return None
        done = subprocess.run(
            [*ask, *words], capture_output=True, text=True, check=False, errors="surrogateescape"
        )
    except FileNotFoundError:  # no git
        return None
    return done.stdout if done.returncode == status else None


def _nobody(about: tarfile.TarInfo) -> tarfile.TarInfo:
    """Leaves out whose a file is, and what only this machine's user may do."""
    about.uid = about.gid = 0
    about.uname = about.gname = ""
    about.mode = 0o755 if about.mode & 0o100 else 0o644
    return about
