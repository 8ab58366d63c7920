"""What several tests of this room ask for."""

import io
import subprocess

import pytest
from rich.console import Console


@pytest.fixture
def console():
    """A console whose words a test reads with ``export_text``."""
    return Console(file=io.StringIO(), record=True, width=200, highlight=False, markup=False)


@pytest.fixture
def disk(tmp_path):
    """Mounts a disk of 2 MB; yields its folder and a function that mounts it otherwise."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = mount("size=2m")
    if done.returncode:
        pytest.skip(f"needs the right to mount a disk ({done.stderr.strip()})")
    yield folder, mount
    while subprocess.run(["umount", str(folder)], capture_output=True, check=False).returncode == 0:
        pass
