"""Ctrl-C, sent to commands at the moments that are hardest to get right."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Whoever runs the tests in the background has the signal ignored, and so would what they start.
HEEDS = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""

SWALLOWS = """
import time
from configs import command

def main():
    print("here", flush=True)
    try:
        time.sleep(60)
    except BaseException:
        pass

command.run(main, lambda: None)
"""


def interrupted(folder, *arguments):
    """Starts Python, sends SIGINT when it has printed a line, returns status and complaint."""
    process = subprocess.Popen(
        [sys.executable, "-c", HEEDS, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=50)
    return process.returncode, complaint


COMMANDS = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for room in ("configs", "text", "model", "lens", "train", "launch")
    for path in sorted((ROOT / room).rglob("*.py"))
    if "    command.run(main" in path.read_text(encoding="utf-8")
]


def test_all_commands_are_tried():
    assert {"train", "train.evaluate", "model.tally", "launch.tpu_vm"} < set(COMMANDS)


@pytest.mark.parametrize("module", COMMANDS)
def test_a_command_ends_while_it_imports(tmp_path, module):
    # Each imports absl sooner or later.
    (tmp_path / "absl").mkdir()
    slow = "import time\nprint('here', flush=True)\ntime.sleep(60)\n"
    (tmp_path / "absl" / "__init__.py").write_text(slow)
    assert interrupted(tmp_path, "-m", module) == (130, "stopped by the keyboard\n")


def test_nobody_can_swallow_it(tmp_path):
    program = tmp_path / "swallows.py"
    program.write_text(SWALLOWS)
    assert interrupted(ROOT, str(program)) == (130, "stopped by the keyboard\n")
