"""What one process of several cannot write, none waits for, and the next save makes up for it."""

import subprocess
import sys

import pytest

from launch.group import free_port
from model import manifest
from tests.train.processes import running

# Training, in which process 1 cannot write arrays of one step: its files may have no length then.
COMMAND = """
import resource, runpy, sys
from model import stored
from train import checkpoints
real = stored.write

def write(path, items):
    if path.name != "4" or "--process_id=0" in sys.argv:
        return real(path, items)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    written = real(path, items)

    def end():
        try:
            written()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return end

stored.write, checkpoints.in_store = write, lambda path: True
runpy.run_module("train", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
def test_what_one_process_cannot_write_is_waited_for_by_none(tmp_path):
    fields = ("--config.steps=8", "--config.checkpoint.every=2", "--config.checkpoint.keep=9")
    words = [*running.TINY, *fields, "--config.mesh.data=2", f"--workdir={tmp_path}"]
    place = [f"--coordinator=localhost:{free_port()}", "--num_processes=2"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", COMMAND, *words, *place, f"--process_id={index}"],
            cwd=running.ROOT,
            env=running.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in (0, 1)
    ]
    ended = running.ended(processes, 120)
    assert [process.status for process in ended] == [0, 0], ended
    assert "step 4 is not saved" in ended[0].out
    assert "; the next save makes up for it" in ended[0].out
    assert manifest.whole_steps(tmp_path) == [2, 6, 8]


@pytest.mark.slow
def test_a_full_disk_ends_all_processes_with_a_sentence(disk):
    folder, mount = disk
    assert mount("remount,size=400k").returncode == 0
    fields = ("--config.checkpoint.every=2", "--config.checkpoint.keep=99")
    words = [*running.TINY, *fields, "--config.mesh.data=2", f"--workdir={folder}/run"]
    ended = running.ended(running.start([words] * 2), 120)
    assert [process.status for process in ended] == [2, 2], ended
    for process in ended:
        (said,) = (line for line in process.err.splitlines() if line)
        assert "could not be written (No space left on device); what was saved before" in said
    assert manifest.whole_steps(folder / "run")
