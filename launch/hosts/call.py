"""One conversation with a host: a program of ``remote`` is sent there and answers."""

import contextlib
import functools
import json
import queue
import secrets
import shlex
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from configs.errors import UserError
from launch.hosts.host import Host

T = TypeVar("T")

SHARED = ("wire", "places", "jobs")  # modules that the others import, in their order
_PACKAGE = "launch.hosts.remote"
_LAST = 5  # lines of a host's standard error that are kept


class Unreachable(Exception):
    """A host that cannot be reached, or is no longer: the reason, as ssh or the host says it."""

    def __init__(self, host: Host, reason: str):
        """Args: the host; why."""
        super().__init__(reason)
        self.host, self.reason = host, reason


class Stumbled(UserError):
    """A host refuses, for a reason that may pass."""


@functools.cache
def program(module: str) -> bytes:
    """Returns a module of ``remote``, with those it imports, as one text that python runs."""
    folder = Path(__file__).parent / "remote"
    names = [*SHARED, *([module] if module not in SHARED else [])]
    sources = {name: (folder / f"{name}.py").read_text(encoding="utf-8") for name in names}
    text = f"""
import sys, types
for name in ("launch", "launch.hosts", {_PACKAGE!r}):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = []
sources = {sources!r}
for name in sources:
    module = types.ModuleType("{_PACKAGE}." + name)
    sys.modules[module.__name__] = module
    setattr(sys.modules[{_PACKAGE!r}], name, module)
    exec(compile(sources[name], name + ".py", "exec"), module.__dict__)
sys.modules["{_PACKAGE}.{module}"].main()
"""
    return text.encode()


class Call:
    """A program that runs on a host, for a ``with``; it ends when this does."""

    def __init__(self, host: Host, module: str, **request: Any):
        """Args: the host; a module of ``remote``; what it is asked."""
        self.host = host
        self._said: queue.Queue[Any] = queue.Queue()
        self._errors: list[str] = []
        try:
            self._process = subprocess.Popen(
                host.words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C comes to the launcher alone
            )
        except FileNotFoundError as error:
            raise UserError(
                f"{host.words[0]} is not found; install it, or add its folder to PATH."
            ) from error
        # What a host's shell says by itself comes before this mark.
        self._mark, self._noise = secrets.token_hex(8).encode() + b"\n", b""
        begin = b"import sys\nsys.stdout.write('\\n%s\\n')\nsys.stdout.flush()\n"
        self._threads = [
            threading.Thread(target=act, daemon=True) for act in (self._read, self._hear)
        ]
        for thread in self._threads:
            thread.start()
        text = begin % self._mark.strip() + program(module)
        self._write(b"%d\n" % len(text) + text)
        if request:
            self.send(**request)

    def __enter__(self) -> "Call":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends the connection; the program on the host sees that and ends."""
        self.close()

    def close(self) -> None:
        """Ends the connection, from whatever thread."""
        with contextlib.suppress(OSError, ValueError):
            self._process.kill()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            with contextlib.suppress(OSError):
                assert stream is not None
                stream.close()

    def send(self, **message: Any) -> None:
        """Says a message to the host, which may have gone."""
        self._write(json.dumps(message).encode() + b"\n")

    def send_bytes(self, data: bytes) -> None:
        """Says how many bytes come, and then the bytes."""
        self.send(bytes=len(data))
        self._write(data)

    def messages(self, timeout: float | None = None) -> Iterator[dict[str, Any]]:
        """Yields what the host says; ends after the message that is the answer, ``done``.

        Bytes come as ``{"data": bytes}``.

        Args:
          timeout: seconds for each message; for ever where None.

        Raises:
          UserError: the host refuses, with its sentence.
          Unreachable: it is gone, or says nothing for so long.
        """
        while True:
            try:
                message = self._said.get(timeout=timeout)
            except queue.Empty:
                raise Unreachable(self.host, f"it says nothing for {timeout:g} s") from None
            if message is None:
                raise Unreachable(self.host, self._reason())
            if "refused" in message:
                kind = Stumbled if message.get("passing") else UserError
                raise kind(f"{self.host.name}: {message['refused']}")
            yield message
            if "done" in message:
                return

    def answer(
        self,
        timeout: float | None = None,
        heard: Callable[[dict[str, Any]], None] = lambda message: None,
    ) -> dict[str, Any]:
        """Returns the answer; see ``messages``.

        Args:
          timeout: seconds for each message.
          heard: is given each message before.
        """
        for message in self.messages(timeout):
            if "done" in message:
                found: dict[str, Any] = message["done"]
                return found
            heard(message)
        raise AssertionError

    def _write(self, data: bytes) -> None:
        # What is gone is noticed by who reads.
        with contextlib.suppress(OSError, ValueError):
            assert self._process.stdin is not None
            self._process.stdin.write(data)
            self._process.stdin.flush()

    def _read(self) -> None:
        stream = self._process.stdout
        assert stream is not None
        with contextlib.suppress(ValueError):
            while (line := stream.readline()) and line != self._mark:
                self._noise = line.strip() or self._noise
            while line := stream.readline():
                message = json.loads(line)
                if "bytes" in message:
                    message = dict(data=stream.read(message["bytes"]))
                self._said.put(message)
        self._said.put(None)

    def _hear(self) -> None:
        stream = self._process.stderr
        assert stream is not None
        with contextlib.suppress(ValueError):
            for line in stream:
                self._errors.append(line.decode(errors="replace").strip())
                del self._errors[:-_LAST]

    def _reason(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._threads[1].join(1)
        said = [line for line in self._errors if line]
        if said:
            return said[-1].rstrip(".\r")
        if self._noise:
            return self._noise.decode(errors="replace")[:200].rstrip(".\r")
        return f"the connection has ended with status {self._process.poll()}"


def shown(host: Host, module: str, **request: Any) -> str:
    """Returns what would be asked of a host, as a line of a dry run."""
    asked = f" to answer {json.dumps(request)}" if request else ""
    return f"on {host.name}, over: {shlex.join(host.words)}\n  runs remote/{module}.py{asked}"


def ask(host: Host, module: str, timeout: float | None = None, **request: Any) -> dict[str, Any]:
    """Returns a host's answer to one request; see ``Call.messages`` for what it raises."""
    with Call(host, module, **request) as call:
        return call.answer(timeout)
