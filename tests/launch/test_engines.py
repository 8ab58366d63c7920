"""The commands that the launchers' own documentation shows, as a reader would try them."""

import importlib
import shlex
import subprocess
import sys

import pytest

from tests.train.processes import running


def shown(module):
    """Returns the commands of a module's documentation."""
    documentation = importlib.import_module(f"{module}.__main__").__doc__
    found = []
    for block in documentation.split("\n\n"):
        lines = [line.removeprefix("    ") for line in block.splitlines()]
        if block.startswith("    python -m "):
            found.append(shlex.split(" ".join(lines)))
    return found


@pytest.mark.parametrize(
    ("module", "needed"),
    [
        pytest.param("launch.slurm", "submitit", marks=pytest.mark.extras),
        pytest.param("launch.gke", "kubeflow_trainer_api", marks=pytest.mark.extras),
        ("launch.sky", None),
    ],
)
def test_each_runs(module, needed, extra, tmp_path):
    if needed:
        extra(needed)
    commands = shown(module)
    assert commands
    for words in commands:
        assert words[:3] == ["python", "-m", module]
        done = subprocess.run(
            [sys.executable, *words[1:], "--dry_run"],
            cwd=running.ROOT,
            env=running.environment() | {"PATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "configs/gpt3.py:125m" in done.stdout
