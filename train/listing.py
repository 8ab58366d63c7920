"""The saved steps of a run as a table: which are whole, how large, by what code, what is kept."""

import dataclasses
from typing import Any

from configs import resolved
from configs.errors import UserError
from configs.files import read_text
from model.manifest import CONFIG, Manifest
from train.retention import kept
from train.saved_steps import Found, SavedStep


@dataclasses.dataclass(frozen=True)
class Keep:
    """How many of the newest steps stay, and which for good."""

    keep: int
    keep_every: int


def keep_of(found: Found, keep: int | None, keep_every: int | None) -> Keep | None:
    """Returns what is asked for, and what the run's own config says where nothing is.

    It is None for what is no run, and where the config cannot be read.
    """
    if not found.is_run:
        return None
    if keep is None or keep_every is None:
        paths = [step.path / CONFIG for step in reversed(found.saved) if not step.found.faults]
        try:
            path = paths[0] if paths else found.path / CONFIG
            config = resolved.from_json(read_text(path), str(path)).checkpoint
        except UserError:
            return None
        keep = config.keep if keep is None else keep
        keep_every = config.keep_every if keep_every is None else keep_every
    return Keep(keep, keep_every)


def rows(found: Found, keep: Keep | None) -> list[dict[str, Any]]:
    """Returns the figures of each step, oldest first; what is not known is None."""
    stay = kept(found.whole, keep.keep, keep.keep_every) if keep else set()
    return [_row(step, stay if keep else None) for step in found.saved]


def _row(step: SavedStep, stay: set[int] | None) -> dict[str, Any]:
    held = step.found.manifest or Manifest(0, None, {}, {}, {})
    code = held.made.get("code") or {}
    goes_on = not step.is_model and not step.found.faults
    is_known = stay is not None and step.number is not None and goes_on
    return dict(
        path=str(step.path),
        step=held.step if step.number is None else step.number,
        format=held.format or None,
        state="damaged" if step.found.faults else state(step),
        faults=step.found.faults,
        bytes=step.found.size,
        time=held.made.get("time"),
        code=code.get("revision"),
        changed=code.get("changed"),
        mesh=held.made.get("mesh"),
        processes=held.made.get("processes"),
        kept=step.number in stay if is_known and stay is not None else None,
    )


def state(step: SavedStep) -> str:
    """Returns what a step is that has no fault."""
    return "whole, a saved model" if step.is_model else "whole"


def revision(code: str | None, changed: bool | None) -> str:
    """Returns twelve digits of a code's revision, and whether it was changed; "" where unknown."""
    return (code or "")[:12] + ("+changed" if code and changed else "")


def mesh(sizes: dict[str, int] | None) -> str:
    """Returns the axes of a mesh that are split, as "fsdp=2 heads=4"; "" where unknown."""
    if sizes is None:
        return ""
    return " ".join(f"{n}={size}" for n, size in sizes.items() if size > 1) or "one device"
