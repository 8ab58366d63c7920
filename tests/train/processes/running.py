"""Starts runs of several processes, as a person or a cluster would, and waits for their end."""

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launch.group import free_port

ROOT = Path(__file__).parents[3]

# A start takes seconds, most of them for imports; the rest is kept small.
TINY = (
    "--config=configs/induction.py",
    "--config.steps=40",
    "--config.steps_per_call=2",
    "--config.batch_size=8",
    "--config.length=16",
    "--config.data.periods=(2, 6)",
    "--config.model.embed_dim=16",
    "--config.model.num_heads=4",
    "--config.model.num_layers=1",
    "--config.host_devices=2",
    "--config.mesh.fsdp=2",
    "--config.mesh.heads=1",
    "--config.log.every=1",
    "--config.log.eval_every=0",
    "--config.log.tensorboard=False",
    "--config.checkpoint.every=0",
)


@dataclasses.dataclass
class Ended:
    """A process that has ended."""

    status: int
    out: str
    err: str


def environment() -> dict[str, str]:
    """Returns a user's environment: no forced host devices, and all optimizations."""
    ours = ("XLA_FLAGS", "NPROC", "JAX_NUMPY_RANK_PROMOTION", "JAX_DISABLE_MOST_OPTIMIZATIONS")
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return kept | {"TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONUNBUFFERED": "1"}


def start(
    arguments: Sequence[list[str] | None],
    module: str = "train",
    port: int = 0,
    cwd: Path = ROOT,
) -> list[subprocess.Popen]:
    """Starts a process for each list of arguments, as one run; None for one that is not started."""
    port, count = port or free_port(), len(arguments)
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-m", module, *words),
                f"--coordinator=localhost:{port}",
                f"--num_processes={count}",
                f"--process_id={index}",
            ],
            cwd=cwd,
            env=environment() | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index, words in enumerate(arguments)
        if words is not None
    ]


def alone(words: list[str]) -> subprocess.Popen:
    """Starts a run of one process."""
    return subprocess.Popen(
        [sys.executable, "-m", "train", *words],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def command(arguments: list[str], module: str = "train") -> Ended:
    """Runs a command to its end."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def ended(processes: list[subprocess.Popen], seconds: float) -> list[Ended]:
    """Returns how the processes ended; kills those that have not in time, and fails."""
    until, found = time.monotonic() + seconds, []
    try:
        for process in processes:
            out, err = process.communicate(timeout=max(0.1, until - time.monotonic()))
            found.append(Ended(process.returncode, out, err))
    finally:
        for process in processes:
            process.kill()
    return found


def kill(process: subprocess.Popen) -> None:
    """Ends a process, and what it says."""
    process.kill()
    process.communicate()


def wait_until(condition, seconds: float = 60) -> None:
    """Returns when a condition holds."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come in time"
        time.sleep(0.05)
