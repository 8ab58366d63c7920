"""A process ends with its sentence, where anybody reads it or not."""

import os
import subprocess
import sys

import pytest

CODE = "from train.processes.abort import end; end('it was lost.', 75)"
ABORTS = """
import os
from train.processes.abort import on_abort
on_abort(lambda: ('it was lost.', 75))
os.abort()
"""


@pytest.mark.parametrize("code", [CODE, ABORTS])
def test_it_ends_with_its_sentence_and_status(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (75, "error: it was lost.\n")


@pytest.mark.parametrize("code", [CODE, ABORTS])
def test_it_ends_when_nobody_reads_any_more(code):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", code], stderr=write, check=False, timeout=60)
    os.close(write)
    assert done.returncode == 75
