"""Object stores on this machine, behind a proxy that drops, delays or refuses what is asked."""

import contextlib
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

from launch.group import free_port


class Proxy:
    """Passes connections on to a server, not always.

    Attributes:
      gone: whether it refuses all connections.
      drops: the probability that a connection is closed without an answer.
      delay: seconds, the longest that a connection waits before it is passed on.
    """

    def __init__(self, port: int, seed: int):
        """Args: the server's port; of what is drawn."""
        self.port, self._server = free_port(), port
        self.gone, self.drops, self.delay = False, 0.0, 0.0
        self.passed = self.dropped = self.refused = 0
        self._draw = random.Random(seed)
        self._ended = threading.Event()
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while not self._ended.is_set():
            if self.gone:
                if self._listener is not None:
                    self._listener.close()
                    self._listener = None
                    for connection in list(self._open):
                        with contextlib.suppress(OSError):
                            connection.shutdown(socket.SHUT_RDWR)
                time.sleep(0.05)
                continue
            if self._listener is None:
                self._listener = socket.create_server(("localhost", self.port), backlog=128)
                self._listener.settimeout(0.1)
            try:
                client, _ = self._listener.accept()
            except OSError:
                continue
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()
        if self._listener is not None:
            self._listener.close()

    def _serve(self, client: socket.socket) -> None:
        with client:
            if self._draw.random() < self.drops:
                self.dropped += 1
                return
            time.sleep(self._draw.random() * self.delay)
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("localhost", self._server)) as server,
            ):
                self.passed += 1
                self._open |= {client, server}
                # The answer is what is lost, and all of it: these stores take half a request for a
                # whole one, and do not say how long their answers are, as real ones do.
                there = threading.Thread(target=self._pass, args=(client, server), daemon=True)
                there.start()
                self._pass(server, client, self._draw.random() < self.drops)
                there.join()
                self._open -= {client, server}

    def _pass(self, source: socket.socket, target: socket.socket, breaks: bool = False) -> None:
        """Passes bytes on; a connection that breaks does so before what comes first."""
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if breaks:
                    self.dropped += 1
                    break
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """Ends it."""
        self._ended.set()
        self._thread.join()


SERVERS = {
    "gs": "gcp_storage_emulator start --host=localhost --in-memory --port",
    "s3": "moto.server --port",
}


@contextlib.contextmanager
def emulated(scheme: str, seed: int = 0) -> Iterator[tuple[Proxy, dict[str, str]]]:
    """Starts a store with the bucket "runs".

    Args:
      scheme: "gs" or "s3".
      seed: of the proxy's faults.

    Yields:
      The proxy that stands before it, and the environment that leads to it.
    """
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", *SERVERS[scheme].split(), str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    proxy = Proxy(port, seed)
    try:
        _wait_for(port)
        _make_bucket(scheme, port)
        yield proxy, environment(scheme, proxy.port)
    finally:
        proxy.end()
        server.kill()
        server.wait()


def _wait_for(port: int) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("localhost", port)):
            return
        time.sleep(0.1)
    raise AssertionError("the store did not start")


def _make_bucket(scheme: str, port: int) -> None:
    import requests

    if scheme == "gs":
        url = f"http://localhost:{port}/storage/v1/b?project=p"
        requests.post(url, json=dict(name="runs"), timeout=30).raise_for_status()
    else:
        requests.put(f"http://localhost:{port}/runs", timeout=30).raise_for_status()


def environment(scheme: str, port: int) -> dict[str, str]:
    """Returns what leads the clients of a store to a port of this machine."""
    url = f"http://localhost:{port}"
    if scheme == "gs":
        return dict(
            TENSORSTORE_GCS_HTTP_URL=url, STORAGE_EMULATOR_HOST=url, GOOGLE_CLOUD_PROJECT="p"
        )
    return dict(
        AWS_ENDPOINT_URL=url,
        AWS_ACCESS_KEY_ID="key",
        AWS_SECRET_ACCESS_KEY="secret",
        AWS_REGION="us-east-1",
    )
