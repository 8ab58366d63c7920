"""What can happen to the files of saved steps, drawn from a seed."""

import dataclasses
import random
import shutil
from pathlib import Path

KINDS = ("truncate", "flip", "delete", "swap", "zero", "lengthen")


@dataclasses.dataclass(frozen=True)
class Corruption:
    """One that changed something."""

    kind: str
    step: int  # whose file
    file: str  # its path in the step


def corrupt(steps: Path, draw: random.Random) -> Corruption:
    """Damages a file of a step.

    Args:
      steps: the folder that holds the steps.
      draw: says which, how and where.
    """
    while True:
        step = draw.choice(sorted(steps.iterdir()))
        file = draw.choice(sorted(f for f in step.rglob("*") if f.is_file()))
        kind = draw.choice(KINDS)
        before = file.read_bytes()
        _damage(file, kind, step, draw)
        if not file.exists() or file.read_bytes() != before:
            return Corruption(kind, int(step.name), str(file.relative_to(step)))


def _damage(file: Path, kind: str, step: Path, draw: random.Random) -> None:
    data = bytearray(file.read_bytes())
    if kind == "delete":
        file.unlink()
    elif kind == "swap":
        # With another of the step, or the same of another step: what it holds is whole.
        others = [other for other in step.rglob("*") if other.is_file() and other != file]
        others += [
            other / file.relative_to(step)
            for other in step.parent.iterdir()
            if other != step and (other / file.relative_to(step)).is_file()
        ]
        other = draw.choice(sorted(others))
        shutil.copyfile(other, file)
    elif kind == "lengthen":
        file.write_bytes(data + draw.randbytes(draw.randint(1, 100)))
    elif data:
        if kind == "truncate":
            del data[draw.randrange(len(data)) :]
        elif kind == "flip":
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        else:
            start = draw.randrange(len(data))
            stop = min(len(data), start + draw.choice((1, 64, 4096)))
            data[start:stop] = bytes(stop - start)
        file.write_bytes(data)
