"""Where a saved step comes from: code, packages, devices and the command that wrote it."""

import datetime
import functools
import importlib.metadata
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

RECORD = "code.json"  # in a copy of this code without git: where it comes from
_ROOT = Path(__file__).parents[1]
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorstore", "numpy")


def provenance(mesh: Mesh, seed: int) -> dict[str, Any]:
    """Returns what a manifest says of how a step was made.

    Args:
      mesh: that it is saved from.
      seed: of the run.
    """
    now = datetime.datetime.now(datetime.UTC)
    return dict(
        time=now.isoformat(timespec="seconds"),
        command=command(),
        code=code(),
        python=platform.python_version(),
        packages={name: _version(name) for name in _PACKAGES},
        mesh={name: int(size) for name, size in mesh.shape.items()},
        devices=mesh.size,
        device_kind=mesh.devices.flat[0].device_kind,
        processes=jax.process_count(),
        seed=seed,
    )


def command() -> list[str]:
    """Returns the words that started this program, as they can be typed again."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is None:
        return list(sys.argv)
    return ["python", "-m", spec.name.removesuffix(".__main__"), *sys.argv[1:]]


@functools.cache
def code() -> dict[str, Any]:
    """Returns the revision of this code, and whether it was changed since; None where unknown."""
    try:
        ask = ["git", "-C", str(_ROOT)]
        top = _said([*ask, "rev-parse", "--show-toplevel"])
        if Path(top).resolve() != _ROOT.resolve():
            raise OSError("this code lies in another project")
        revision = _said([*ask, "rev-parse", "HEAD"])
        return dict(revision=revision, changed=bool(_said([*ask, "status", "--porcelain"])))
    except (OSError, subprocess.SubprocessError):
        return _recorded()


def _recorded() -> dict[str, Any]:
    """Returns what a launcher wrote beside the code that it sent."""
    try:
        found = json.loads((_ROOT / RECORD).read_text(encoding="utf-8"))
        return dict(revision=found["revision"], changed=found["changed"])
    except (OSError, ValueError, KeyError, TypeError):
        return dict(revision=None, changed=None)


def _said(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
