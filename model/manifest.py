"""What a saved step is made of, and whether all of it is there.

A saved step is one folder: Orbax items ``model``, ``optimizer`` and, where there is an average of
the parameters, ``ema``; plain ``config.json``, ``tokenizer.json`` and ``state.json``, and
``manifest.json``, written last: a folder without a manifest does not exist. A saved model is the
same without ``optimizer`` and ``state.json``, which may be deleted. docs/checkpoints.md has it all.
"""

import dataclasses
import hashlib
import json
import re
from typing import Any

from configs import files
from configs.errors import UserError
from configs.files import read_if_there, write_text
from configs.folders import Folder

FORMAT = 2
MANIFEST = "manifest.json"
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
STATE = "state.json"
MODEL, OPTIMIZER, EMA = "model", "optimizer", "ema"  # the Orbax items
RECENT = "recent"  # another: what spikes are known by
STEPS = "checkpoints"  # the folder of a workdir that holds its steps


@dataclasses.dataclass(frozen=True)
class File:
    """What a manifest says of a file."""

    size: int  # bytes
    sha256: str | None  # hexadecimal; None in format 1, which had none


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a step or a model is made of."""

    format: int
    step: int | None  # None in format 1
    files: dict[str, File]  # by path in the folder, as "model/d/0123"
    arrays: dict[str, dict[str, dict[str, Any]]]  # shape and dtype by item and name; format 2
    made: dict[str, Any]  # how: versions, mesh, command line and the like

    def reduced(self) -> "Manifest":
        """Returns the same of a step that has become a saved model."""
        of_step = (STATE, f"{OPTIMIZER}/")
        kept = {name: file for name, file in self.files.items() if not name.startswith(of_step)}
        arrays = {item: held for item, held in self.arrays.items() if item != OPTIMIZER}
        return dataclasses.replace(self, files=kept, arrays=arrays)


def write(path: Folder, manifest: Manifest) -> None:
    """Writes the manifest of a folder, which exists as a step from then on."""
    held = dataclasses.asdict(manifest)
    held["digest"] = digest_of(held)
    write_text(path / MANIFEST, json.dumps(held, indent=1, sort_keys=True) + "\n")


def read(path: Folder) -> Manifest | None:
    """Returns the manifest of a step or a model; None where it is missing or damaged.

    Raises:
      UserError: it is of a newer format, or cannot be reached.
    """
    try:
        held = json.loads(read_if_there(path / MANIFEST))
        if held["format"] == 1 and "digest" not in held:
            sizes = {name: File(int(size), None) for name, size in held["files"].items()}
            return Manifest(1, None, sizes, {}, dict(jax=held.get("jax")))
        if held.pop("digest") != digest_of(held):
            return None
        if held["format"] != FORMAT:
            raise UserError(
                f"{path} has format {held['format']}, newer than this code's {FORMAT}; "
                "use the version that wrote it."
            )
        held["files"] = {name: File(**about) for name, about in held["files"].items()}
        return Manifest(**held)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def is_written(path: Folder) -> bool:
    """Tells whether a folder has a manifest, whole or damaged: without one it is no step."""
    return MANIFEST in files.names(path)


def digest_of(held: dict[str, Any]) -> str:
    """Returns the SHA-256 of what a manifest holds, or a line of JSON."""
    return hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Examined:
    """A folder beside its manifest: names and sizes, not what files hold."""

    manifest: Manifest | None  # None where it is missing or damaged
    faults: list[str]  # a phrase for each, as "state.json is missing"; none where it is whole
    size: int  # bytes of all files there


def examine(path: Folder) -> Examined:
    """Compares a folder's files with its manifest, by their sizes.

    A step that was reduced to a saved model is whole. A step in a run's folder has its number.

    Raises:
      UserError: it is of a newer format, or cannot be reached.
    """
    found, there = read(path), files.sizes(path)
    size = sum(there.values())
    if found is None:
        how = "is damaged" if MANIFEST in there else "is missing"
        return Examined(None, [f"{MANIFEST} {how}"], size)
    if STATE not in there and not any(name.startswith(f"{OPTIMIZER}/") for name in there):
        found = found.reduced()
    faults = []
    for name, file in found.files.items():
        if name not in there:
            faults.append(f"{name} is missing")
        elif there[name] != file.size:
            faults.append(f"{name} has {there[name]:,} bytes and was written with {file.size:,}")
    if misnamed(path, found.step):
        faults.append(f"it holds step {found.step}")
    return Examined(found, faults, size)


def misnamed(path: Folder, step: int | None) -> bool:
    """Tells whether a folder among the steps of a run has the number of another step."""
    is_step = path.parent.name == STEPS and path.name.isdigit()
    return is_step and step is not None and path.name != str(step)


def whole(path: Folder) -> Manifest | None:
    """Returns the manifest of a folder whose files are all there with their sizes, else None."""
    if not is_written(path):
        return None
    found = examine(path)
    return None if found.faults else found.manifest


def whole_steps(workdir: Folder) -> list[int]:
    """Returns the whole steps of a workdir, oldest first; one reduced to a saved model is none."""

    def is_whole(step: int) -> bool:
        found = whole(workdir / STEPS / str(step))
        return found is not None and STATE in found.files

    return [step for step in steps(workdir) if is_whole(step)]


def damaged_steps(workdir: Folder) -> list[int]:
    """Returns the steps of a workdir that were whole once, by their manifest, and are not now."""
    once = {step for step in steps(workdir) if is_written(workdir / STEPS / str(step))}
    return sorted(once.difference(whole_steps(workdir)))


def steps(workdir: Folder) -> list[int]:
    """Returns the steps that a workdir has folders of, whole or not, oldest first."""
    names = files.names(workdir / STEPS)
    return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))
