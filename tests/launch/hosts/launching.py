"""Launchers that are started as a person would, on hosts of a network."""

import re
import subprocess
import sys
import time
from typing import ClassVar

from tests.train.processes import running

# For three hosts of two forced host devices each.
TINY = (*running.TINY, "--config.mesh.data=3", "--config.batch_size=12")


class Launch:
    """A launcher, and what it says."""

    started: ClassVar[list[subprocess.Popen]] = []

    def __init__(self, net, *words, module="launch.ssh", **options):
        """Args: the network; flags; the module; of the process."""
        own = [f"--hosts={net.names}", f"--ssh_config={net.config}"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *own, *words],
            cwd=running.ROOT,
            env=running.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,
        )
        self.lines = []
        self.started.append(self.process)

    @classmethod
    def end_all(cls):
        """Kills those that have not ended."""
        for process in cls.started:
            process.kill()
            process.wait()
            process.stdout.close()
        cls.started.clear()

    def until(self, pattern, seconds=200):
        """Returns the next line with a pattern."""
        end = time.monotonic() + seconds
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if re.search(pattern, line):
                return line.rstrip("\n")
            assert time.monotonic() < end, self.lines
        raise AssertionError(self.lines)

    def ended(self, seconds=300):
        """Returns the exit status."""
        out, _ = self.process.communicate(timeout=seconds)
        self.lines += out.splitlines()
        return self.process.returncode


def left(net):
    """Returns the processes of jobs on all hosts."""
    found = [host.enter("ps", "axo", "args").stdout for host in net.hosts.values()]
    return [line for said in found for line in said.splitlines() if re.search("launch|train", line)]
