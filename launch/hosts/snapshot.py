"""The code as it is here: git's revision with what was changed since, as one archive."""

import dataclasses
import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.errors import UserError
from train.provenance import RECORD, code

ROOT = Path(__file__).parents[2]
LARGEST = 200e6  # bytes; what is larger is data, and would be sent to every host
_PLAIN = ("--binary", "--no-color", "--no-ext-diff", "--no-textconv")  # whatever git's config says
_LINK, _PROGRAM, _FILE = "link", "program", "file"
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
    digests: Mapping[str, str] = dataclasses.field(default_factory=dict)  # of each file, no links
    packed: bytes = dataclasses.field(default=b"", repr=False)  # a tar of them

    def about(self) -> dict[str, Any]:
        """Returns what a record says of it: JSON."""
        changed = bool(self.diff) if self.revision else None
        return dict(revision=self.revision, changed=changed, digest=self.digest)

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


NONE = Snapshot(ROOT, "", (), None, "")  # where no code is sent


def take(root: Path = ROOT) -> Snapshot:
    """Returns the code as it is now: all files that git knows or does not ignore.

    Raises:
      UserError: it is too large to be sent, or cannot be read.
    """
    names = _names(root)
    contents, size = dict[str, tuple[str, bytes]](), 0
    for name in names:
        contents[name] = _content(root / name)
        size += len(contents[name][1])
        if size > LARGEST:
            raise UserError(
                f"{root} holds more than {LARGEST / 1e6:,.0f} MB that git does not ignore, too "
                "much to be sent to every host; add what is not code to .gitignore."
            )
    digest = hashlib.sha256()
    for name, (kind, content) in contents.items():
        digest.update(f"{name}\0{kind}\0{len(content)}\0".encode(errors="surrogateescape"))
        digest.update(content)
    found = Snapshot(
        root,
        digest.hexdigest()[:16],
        tuple(names),
        code()["revision"] if root == ROOT else None,
        _diff(root),
        {
            name: hashlib.sha256(content).hexdigest()
            for name, (kind, content) in contents.items()
            if kind != _LINK
        },
    )
    return dataclasses.replace(found, packed=_packed(found, contents))


def _content(path: Path) -> tuple[str, bytes]:
    """Returns what kind of file it is, and what it holds: of a link, where it leads."""
    try:
        if path.is_symlink():
            return _LINK, os.readlink(path).encode(errors="surrogateescape")
        return (_PROGRAM if path.lstat().st_mode & 0o100 else _FILE), path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}), and is sent to the hosts; make it "
            "readable, or add it to .gitignore."
        ) from error


def _packed(found: Snapshot, contents: Mapping[str, tuple[str, bytes]]) -> bytes:
    """Returns a tar of what was read, with a record of where it comes from; it is nobody's."""
    packed = io.BytesIO()
    record = json.dumps(found.about() | dict(diff=found.diff), indent=1).encode()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=6) as tar:
        for name, (kind, content) in (*contents.items(), (RECORD, (_FILE, record))):
            about = tarfile.TarInfo(name)
            about.mode = 0o755 if kind == _PROGRAM else 0o644
            if kind == _LINK:
                about.type = tarfile.SYMTYPE
                about.linkname = content.decode(errors="surrogateescape")
                tar.addfile(about)
            else:
                about.size = len(content)
                tar.addfile(about, io.BytesIO(content))
    return packed.getvalue()


def _names(root: Path) -> list[str]:
    known = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = _git(root, *known)
    if listed is not None:
        names = {name for name in listed.split("\0") if name}
        # Deleted files are listed too, and folders that are repositories of their own.
        return sorted(name for name in names if _is_file(root / name))
    found = []
    for place, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not _LEFT.fullmatch(name)]
        found += [(Path(place) / name).relative_to(root).as_posix() for name in files]
    return sorted(found)


def _is_file(path: Path) -> bool:
    return path.is_symlink() or path.is_file()


def _diff(root: Path) -> str:
    """Returns what was changed since the revision; new files too, which git's diff leaves out."""
    diff = _git(root, "diff", *_PLAIN, "HEAD") or ""
    others = _git(root, "ls-files", "-z", "--others", "--exclude-standard") or ""
    for name in filter(None, others.split("\0")):
        words = ("diff", *_PLAIN, "--no-index", "--", "/dev/null", name)
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
