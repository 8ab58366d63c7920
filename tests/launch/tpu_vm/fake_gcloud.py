"""A program that stands for gcloud: the test double's state is a file, and its hosts are folders.

``tpu-vm ssh NODE --worker=K --command=LINE`` runs the line here, by ``/bin/sh -c``, with standard
input passed through and HOME at a folder of that worker. When the TPU VM is
taken away or deleted, whatever still runs of it is killed, and ssh ends with status 255.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.launch.tpu_vm.cloud import Cloud, Faults
from tests.launch.tpu_vm.texts import parsed

ROOT = Path(__file__).parents[3]
MARK = "FAKE_TPU_VM"  # in the environment of what runs on a host
_LOOK = 0.1  # seconds


class Machine:
    """A cloud on disk, whose time goes some times as fast."""

    def __init__(self, folder: Path, speed: float = 1.0) -> None:
        self.folder = folder
        self._speed = folder / "speed"
        if not self._speed.exists():
            self._speed.write_text(f"{speed} {time.time()}")
        self.speed, self.began = map(float, self._speed.read_text().split())

    def now(self) -> float:
        """Returns seconds since 1970, as they are there."""
        return self.began + (time.time() - self.began) * self.speed

    @contextlib.contextmanager
    def cloud(self, seed: int = 0, faults: Faults | None = None) -> Iterator[Cloud]:
        """Gives the cloud, and keeps what it is then."""
        path = self.folder / "cloud.json"
        with open(self.folder / "lock", "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            cloud = Cloud(self.now, seed, faults)
            if path.exists():
                cloud.load(path.read_text(encoding="utf-8"))
            cloud.advance()
            yield cloud
            cloud.advance()
            part = path.with_suffix(".part")
            part.write_text(cloud.dump(), encoding="utf-8")
            part.replace(path)
            alive = {n["uid"] for n in cloud.nodes.values() if n["state"] in ("READY", "REPAIRING")}
            self._kill(alive)

    def _kill(self, alive: set[str]) -> None:
        """Kills what runs on hosts that are gone."""
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            with contextlib.suppress(OSError):
                for variable in (entry / "environ").read_bytes().split(b"\0"):
                    name, _, value = variable.decode(errors="replace").partition("=")
                    place, _, uid = value.rpartition(":")
                    if name == MARK and place == str(self.folder) and uid not in alive:
                        os.kill(int(entry.name), signal.SIGKILL)

    def install(self) -> str:
        """Writes the program; returns a PATH that begins with its folder."""
        program = self.folder / "bin" / "gcloud"
        program.parent.mkdir(exist_ok=True)
        program.write_text(
            f"#!{sys.executable}\n"
            "import sys\n"
            f"sys.path.insert(0, {str(ROOT)!r})\n"
            "from tests.launch.tpu_vm import fake_gcloud\n"
            f"fake_gcloud.main({str(self.folder)!r}, ['gcloud', *sys.argv[1:]])\n"
        )
        program.chmod(0o755)
        return f"{program.parent}:{os.environ['PATH']}"

    def home(self, node: str, worker: int, uid: str) -> Path:
        """Returns the folder of a worker, whose disk goes with its TPU VM."""
        home = self.folder / "hosts" / node / uid / str(worker)
        home.mkdir(parents=True, exist_ok=True)
        return home


def main(folder: str, argv: Sequence[str]) -> None:
    """Answers as gcloud does, and exits."""
    machine = Machine(Path(folder))
    if argv[3:5] == ["tpu-vm", "ssh"]:
        sys.exit(_on_hosts(machine, argv))
    with machine.cloud() as cloud:
        answer = cloud.call(argv)
    if answer.status is None:
        time.sleep(3600)  # until whoever waits has enough
    sys.stdout.write(answer.out)
    sys.stderr.write(answer.err)
    sys.exit(answer.status)


def _on_hosts(machine: Machine, argv: Sequence[str]) -> int:
    positional, flags = parsed(argv)
    name = positional[4]
    key = f"{flags['zone']}/{name}"
    with machine.cloud() as cloud:
        cloud.calls.append(cloud.shown(argv))
        node = cloud.nodes.get(key)
    if node is None or node["state"] != "READY":
        state = f"is {node['state']}" if node else "was not found"
        print(f"ERROR: (gcloud.compute.tpus.tpu-vm.ssh) {name} {state}", file=sys.stderr)
        return 1
    workers = range(2) if flags["worker"] == "all" else [int(flags["worker"])]
    running = [
        subprocess.Popen(
            ["/bin/sh", "-c", flags["command"]],
            cwd=machine.home(name, worker, node["uid"]),
            env={
                **os.environ,
                "HOME": str(machine.home(name, worker, node["uid"])),
                MARK: f"{machine.folder}:{node['uid']}",
            },
            stdin=None if len(workers) == 1 else subprocess.DEVNULL,
        )
        for worker in workers
    ]
    ended = False
    while not ended:
        time.sleep(_LOOK)
        ended = all(process.poll() is not None for process in running)
        with machine.cloud() as cloud:
            now = cloud.nodes.get(key)
        if now is None or now["uid"] != node["uid"] or now["state"] not in ("READY", "REPAIRING"):
            for process in running:
                process.kill()
                process.wait()
            print(f"Connection to {name} closed by remote host.", file=sys.stderr)
            return 255
    statuses = [process.returncode for process in running]
    return next((status for status in statuses if status), 0)
