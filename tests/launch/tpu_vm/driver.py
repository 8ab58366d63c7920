"""The command, with a job that writes what it is told, and a clock that goes as its cloud's does.

``python driver.py FOLDER MODE watch --name=...``: FOLDER holds the fake gcloud's state; MODE is how
long the job takes, in seconds of that clock, or "crash" or "bug".
"""

import functools
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from configs import command
from launch.tpu_vm import __main__ as tpu_vm
from launch.tpu_vm.reconciler import Ended, JobState, Lost, Running
from launch.tpu_vm.replies import Node
from tests.launch.tpu_vm.fake_gcloud import Machine


class Clock:
    """The time of the fake cloud."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def now(self) -> float:
        return self._machine.now()

    def sleep(self, seconds: float, asked: Sequence[int]) -> None:
        until = self.now() + seconds
        while self.now() < until and not asked:
            time.sleep(0.02)


class Writes:
    """A job that takes a while, and notes in a file what it is told; it saves each minute."""

    def __init__(self, machine: Machine, mode: str, job: object) -> None:
        self._machine, self._mode = machine, mode
        self._notes, self._saved = machine.folder / "notes", machine.folder / "saved"
        self._began, self._nodes = 0.0, {}
        self.job = job

    def _note(self, text: str) -> None:
        with open(self._notes, "a", encoding="utf-8") as notes:
            notes.write(text + "\n")

    def _save(self) -> int:
        before = int(self._saved.read_text()) if self._saved.exists() else 0
        return before + int((self._machine.now() - self._began) // 60)

    def start(self, nodes: Sequence[Node]) -> None:
        self._note("start " + " ".join(node.name for node in nodes))
        self._began = self._machine.now()
        self._nodes = {f"{node.zone}/{node.name}": node.created for node in nodes}
        if self._mode == "bug":
            raise RuntimeError("a bug")

    def poll(self) -> JobState:
        with self._machine.cloud() as cloud:
            for key, created in self._nodes.items():
                node = cloud.nodes.get(key)
                if node is None or node["created"] != created or node["state"] != "READY":
                    self._saved.write_text(str(self._save()))
                    return Lost("connection closed")
        if self._mode == "crash":
            return Ended(7, "the job fell over")
        if self._save() * 60 >= float(self._mode):
            self._note("ended")
            return Ended(0)
        return Running(self._save())

    def stop(self) -> None:
        self._note("stop")

    def abandon(self) -> None:
        self._note("abandon")


if __name__ == "__main__":
    machine = Machine(Path(sys.argv[1]))
    mode = sys.argv[2]
    del sys.argv[1:3]
    main = functools.partial(
        tpu_vm.main,
        make=lambda job, place, request: Writes(machine, mode, job),
        clock=Clock(machine),
    )
    command.run(main, tpu_vm.define_flags, verbs=tpu_vm.VERBS)
