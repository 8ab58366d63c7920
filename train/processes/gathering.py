"""How the processes of a run find each other, before JAX joins them.

Process 0 listens at the coordinator's port and the others come to it; when all have, JAX takes the
port over. JAX' own service shares a port that another run has, and ends that run; here the port is
refused. Who is missing has a name, and a process that ends before all have come ends the others.
"""

import contextlib
import json
import os
import selectors
import socket
import time
from collections.abc import Callable
from typing import cast

from configs.errors import UserError
from train.processes.environment import Place

PATIENCE = 60.0  # seconds in which an earlier run may leave the port
EVERY = 30.0  # seconds between two lines on who is waited for
_HELLO = b"manyheads\n"

Say = Callable[[str], None]


def gather(
    here: Place, timeout: float, patience: float = PATIENCE, say: Say = print
) -> dict[str, socket.socket]:
    """Returns when all processes of the run have come to the coordinator's port.

    Args:
      here: this process.
      timeout: seconds to wait for all.
      patience: seconds in which the port may become free.
      say: shows a line.

    Returns:
      The connections, of process 0 to each of the others, of these to process 0, by how a sentence
      calls who is at the other end. They leave the port free.

    Raises:
      UserError: not all came in time, one has ended, or another program has the port.
    """
    if here.index == 0:
        with _listening(here, patience) as server:
            return _Guests(here, server).receive(timeout, say)
    return {f"process 0 (the coordinator, {here.coordinator})": _come(here, timeout, patience, say)}


def _listening(here: Place, patience: float) -> socket.socket:
    port = int(here.coordinator.rpartition(":")[2])
    both = socket.has_dualstack_ipv6()
    until = time.monotonic() + patience
    while True:
        try:
            family = socket.AF_INET6 if both else socket.AF_INET
            return socket.create_server(("", port), family=family, dualstack_ipv6=both)
        except OSError as error:
            if time.monotonic() > until:
                raise UserError(
                    f"port {port} of {socket.gethostname()}, the coordinator's, is taken "
                    f"({error.strerror}), perhaps by another run; end that, or give all processes "
                    "another one by --coordinator_port."
                ) from error
        time.sleep(1)


class _Guests:
    """Those who have come to process 0."""

    def __init__(self, here: Place, server: socket.socket):
        self.here, self.server = here, server
        self.came: dict[int, tuple[socket.socket, str]] = {}  # their connection and host
        self.heard: dict[socket.socket, bytes] = {}  # what each connection has said so far

    def receive(self, timeout: float, say: Say) -> dict[str, socket.socket]:
        """Returns the connections when all have come and have been told so."""
        until, lines = time.monotonic() + timeout, _Lines(say)
        with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
            selector.register(self.server, selectors.EVENT_READ)
            try:
                while len(self.came) < self.here.count - 1:
                    for key, _ in selector.select(timeout=1):
                        if key.fileobj is self.server:
                            with contextlib.suppress(OSError):  # gone already
                                guest = stack.enter_context(self.server.accept()[0])
                                guest.sendall(_HELLO)
                                selector.register(guest, selectors.EVENT_READ)
                        elif not self._listen(guest := cast(socket.socket, key.fileobj)):
                            selector.unregister(guest)
                            guest.close()
                    lines.say(f"process 0 waits for {self._missing()} at {self.here.coordinator}")
                    if time.monotonic() > until:
                        raise UserError(
                            f"{self._missing()} did not come to {self.here.coordinator} in "
                            f"{timeout:.0f} s; see that all {self.here.count} processes run, that "
                            "this is the host of that name, and that no firewall closes its port."
                        )
            except BaseException as error:
                said = str(error) if isinstance(error, UserError) else "process 0 was stopped."
                self._tell(dict(error=said))
                raise
            self._tell(dict(error=""))
            known = [guest for guest, _ in self.came.values()]
            stack.pop_all()
            for key in selector.get_map().values():
                if key.fileobj not in known:
                    cast(socket.socket, key.fileobj).close()  # the server, and strangers
        return {f"process {i} on {host}": guest for i, (guest, host) in self.came.items()}

    def _listen(self, guest: socket.socket) -> bool:
        """Reads what a connection says; returns whether it goes on.

        Raises:
          UserError: it was that of a process that had come.
        """
        try:
            data = guest.recv(4096)
        except OSError:
            data = b""
        if not data:
            for index, (connection, host) in self.came.items():
                if connection is guest:
                    raise UserError(
                        f"process {index} on {host} ended before all processes had come; start all "
                        "again."
                    )
            return False
        self.heard[guest] = self.heard.get(guest, b"") + data
        line, end, _ = self.heard[guest].partition(b"\n")
        return self._introduced(guest, line) if end else len(line) < 4096

    def _introduced(self, guest: socket.socket, line: bytes) -> bool:
        """Takes in who has come; returns whether it was one of this run."""
        try:
            who = json.loads(line)
            index, host, same = who["index"], who["host"], who["run"] == _run(self.here)
        except (ValueError, KeyError, TypeError):
            return False
        refusal = ""
        if not same:
            refusal = f"{self.here.coordinator} is the coordinator of another run"
        elif index in self.came or not 0 < index < self.here.count:
            has = f", from {self.came[index][1]}" if index in self.came else ""
            refusal = f"process {index} of {self.here.count} has come already{has}"
        if refusal:
            with contextlib.suppress(OSError):
                guest.sendall(encoded(dict(error=f"{refusal}; number them, or name another port.")))
            return False
        self.came[index] = guest, host
        return True

    def _tell(self, message: dict[str, str]) -> None:
        for guest, _ in self.came.values():
            with contextlib.suppress(OSError):
                guest.sendall(encoded(message))

    def _missing(self) -> str:
        missing = [str(i) for i in range(1, self.here.count) if i not in self.came]
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        return f"process{'es' if len(missing) > 1 else ''} {', '.join(missing[:8])}{more}"


def _come(here: Place, timeout: float, patience: float, say: Say) -> socket.socket:
    host, _, port = here.coordinator.rpartition(":")
    address, lines = (host.strip("[]"), int(port)), _Lines(say)
    until = time.monotonic() + timeout
    strange_until: float | None = None
    who = dict(index=here.index, host=socket.gethostname(), run=_run(here))
    while True:
        try:
            with contextlib.ExitStack() as stack:
                process_0 = stack.enter_context(socket.create_connection(address, timeout=10))
                if _hello(process_0):
                    process_0.sendall(encoded(who))
                    _wait(process_0, here, until, lines)
                    stack.pop_all()
                    return process_0
            reason = "another program, or another run, answers there"
            strange_until = strange_until or time.monotonic() + patience
        except OSError as error:
            reason = error.strerror or str(error)
        now = time.monotonic()
        if now > until or (strange_until is not None and now > strange_until):
            raise UserError(
                f"process {here.index} of {here.count} could not join at {here.coordinator} "
                f"({reason}); see that process 0 runs on that host, and that its port is free "
                "there and closed by no firewall; --coordinator_port names another one."
            )
        lines.say(f"process {here.index} waits for process 0 at {here.coordinator} ({reason})")
        time.sleep(1)


def _hello(process_0: socket.socket) -> bool:
    """Returns whether it speaks as process 0 does."""
    try:
        return process_0.recv(len(_HELLO), socket.MSG_WAITALL) == _HELLO
    except TimeoutError:
        return False


def _wait(process_0: socket.socket, here: Place, until: float, lines: "_Lines") -> None:
    """Returns when process 0 says that all have come.

    Raises:
      UserError: it says otherwise, or nothing.
    """
    said = b""
    process_0.settimeout(1)
    while not said.endswith(b"\n"):
        try:
            part = process_0.recv(1)  # what comes after this line is for the handover
        except TimeoutError:
            lines.say(f"process {here.index} waits at {here.coordinator} for others to come")
            if time.monotonic() < until + EVERY:
                continue
            part = b""
        except OSError:
            part = b""
        if not part:
            raise UserError(
                f"process 0 at {here.coordinator} ended before all processes had come; start all "
                "again."
            )
        said += part
    if error := json.loads(said)["error"]:
        raise UserError(error)


class _Lines:
    """Lines on who is waited for, not too many."""

    def __init__(self, say: Say):
        self._say, self._began = say, time.monotonic()
        self._next = self._began + EVERY

    def say(self, line: str) -> None:
        """Shows a line with the time it has taken, when one is due."""
        if (now := time.monotonic()) > self._next:
            self._next = now + EVERY
            self._say(f"{line}, since {now - self._began:.0f} s")


def _run(here: Place) -> str:
    """Returns what tells this run from others that are started likewise."""
    job = [os.environ.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID")]
    return "/".join([here.found, str(here.count), *(job if here.found == "SLURM" else ())])


def encoded(message: dict) -> bytes:
    """Returns a message as the processes send it to each other."""
    return json.dumps(message).encode() + b"\n"
