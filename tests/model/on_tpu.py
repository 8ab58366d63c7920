"""Runs a module that compiles for TPUs which are not here."""

import subprocess
import sys

from tests.train.processes import running

# No chip is asked for; the names let the compiler begin.
DESCRIBED = dict(
    JAX_PLATFORMS="cpu",
    TPU_SKIP_MDS_QUERY="1",
    TPU_WORKER_HOSTNAMES="localhost",
    TPU_ACCELERATOR_TYPE="v5litepod-8",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
)


def run(module: str) -> str:
    """Returns the last line that a module prints."""
    ended = subprocess.run(
        [sys.executable, "-m", module],
        env={**running.environment(), **DESCRIBED},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout.splitlines()[-1]
