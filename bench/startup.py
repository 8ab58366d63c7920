"""Seconds from a command to its first step, with what was compiled before kept."""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.rounds import ROOT, Contender
from bench.shapes import config

# Fields in which the shape differs from the defaults, as flags.
FIELDS = {
    "": ("batch_size", "length"),
    "model": (
        *("num_layers", "num_heads", "embed_dim", "positions"),
        *("norm", "mlp", "biases", "tie_embeddings"),
    ),
}


# A start is waited for most where a run is short.
SHAPE = "small"


def measure(rounds: int, peers: bool) -> list[dict]:
    """Returns a row a contender; the first start, which compiles, does not count.

    Args:
      rounds: starts that count.
      peers: whether transformers and PyTorch are there.
    """
    taken: dict[str, list[float]] = {"manyheads": []}
    if peers:
        taken["GPT-2 eager"] = []
    for number in range(rounds + 1):
        for name, measured in taken.items():
            seconds = _ours() if name == "manyheads" else _theirs()
            if number:
                measured.append(seconds)
    return [
        dict(
            measure="start-up",
            shape=SHAPE,
            precision="float32",
            contender=name,
            seconds=statistics.median(measured),
            lowest=min(measured),
            highest=max(measured),
        )
        for name, measured in taken.items()
    ]


def _ours() -> float:
    """Runs the training command on the King James text until it reports its first step."""
    wanted = config(SHAPE, "float32")
    flags = ["--config.data.source=kjv", "--config.data.tokenizer=char"]
    flags += ["--config.data.rows=stream", "--config.steps=100", "--config.log.every=1"]
    for section, names in FIELDS.items():
        values = wanted[section] if section else wanted
        prefix = f"{section}." if section else ""
        flags += [f"--config.{prefix}{name}={values[name]}" for name in names]
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, "-m", "train", "--config=configs/base.py", *flags]
        began = time.perf_counter()
        with subprocess.Popen(
            [*command, f"--workdir={Path(workdir) / 'run'}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
        ) as process:
            assert process.stdout is not None
            lines = []
            for line in process.stdout:
                lines.append(line)
                if line.startswith("step 1/"):
                    seconds = time.perf_counter() - began
                    process.kill()
                    return seconds
    raise RuntimeError("the training command reported no step:\n" + "".join(lines))


def _theirs() -> float:
    """Starts PyTorch and transformers, and takes one step."""
    began = time.perf_counter()
    peer = Contender("gpt2_torch:Training", shape=SHAPE, precision="float32", compiled=False)
    peer.run(1)
    seconds = time.perf_counter() - began
    peer.close()
    return seconds
