"""What a saved step is made of, and whether all of it is there.

A saved step is one folder: Orbax items ``model``, ``optimizer`` and, where there is an average of
the parameters, ``ema``; plain ``config.json``, ``tokenizer.json`` and ``state.json``, and
``manifest.json``, written last: a folder without a manifest does not exist. A saved model is the
same without ``optimizer`` and ``state.json``, which may be deleted.
"""

import json
import os
import re
from pathlib import Path

from configs.errors import UserError

FORMAT = 1
MANIFEST = "manifest.json"
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
STATE = "state.json"
MODEL, OPTIMIZER, EMA = "model", "optimizer", "ema"  # the Orbax items
STEPS = "checkpoints"  # the folder of a workdir that holds its steps


def is_whole(path: Path) -> bool:
    """Tells whether a folder is a finished save whose files all have their sizes.

    A step that was reduced to a saved model is whole.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        sizes = manifest["files"]
        if manifest["format"] > FORMAT:
            raise UserError(
                f"{path} has format {manifest['format']}, newer than this code's {FORMAT}; "
                "use the version that wrote it."
            )
        reduced = not (path / STATE).exists() and not (path / OPTIMIZER).exists()
        of_step = (STATE, f"{OPTIMIZER}{os.sep}")
        return all(
            (path / name).stat().st_size == size
            for name, size in sizes.items()
            if not (reduced and name.startswith(of_step))
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def whole_steps(workdir: Path) -> list[int]:
    """Returns the whole steps of a workdir, oldest first."""
    return [step for step in _steps(workdir) if is_whole(workdir / STEPS / str(step))]


def damaged_steps(workdir: Path) -> list[int]:
    """Returns the steps of a workdir that were whole once, by their manifest, and are not now."""
    once = {step for step in _steps(workdir) if (workdir / STEPS / str(step) / MANIFEST).exists()}
    return sorted(once.difference(whole_steps(workdir)))


def _steps(workdir: Path) -> list[int]:
    names = (entry.name for entry in (workdir / STEPS).glob("*"))
    return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))
