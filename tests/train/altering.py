"""Saved steps with another text in a file, whole as if they had been written so."""

import dataclasses
import hashlib
from pathlib import Path

from model import manifest


def rewrite(step: Path, name: str, text: str) -> None:
    """Writes a plain file of a step anew, and its manifest to match."""
    held = manifest.read(step)
    assert held is not None
    (step / name).write_text(text)
    file = manifest.File(len(text.encode()), hashlib.sha256(text.encode()).hexdigest())
    manifest.write(step, dataclasses.replace(held, files={**held.files, name: file}))
