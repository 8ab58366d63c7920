"""From when all processes have come until JAX has joined them: one that ends, ends the others.

JAX would wait minutes for it, and then abort them without a name.
"""

import contextlib
import json
import socket

from train.processes.gathering import encoded


class Handover:
    """The connections over which the processes have found each other, while JAX joins them."""

    def __init__(self, connections: dict[str, socket.socket]):
        """Args: by how a sentence calls who is at the other end."""
        self._open = dict(connections)
        for connection in connections.values():
            connection.setblocking(False)

    def __enter__(self) -> "Handover":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Leaves; where there is no error, JAX has joined this process, and so the others too."""
        if kind is None:
            self._tell("")
        for connection in self._open.values():
            connection.close()

    def lost(self) -> str | None:
        """Returns which process has ended before JAX had joined it, in a sentence; else None."""
        for name, connection in list(self._open.items()):
            try:
                said = connection.recv(4096, socket.MSG_PEEK)
            except BlockingIOError:
                continue
            except OSError:
                said = b""
            if said and not said.endswith(b"\n"):
                continue
            ended = f"{name} ended before JAX had joined all processes; start all again."
            sentence = json.loads(said)["error"] if said else ended
            connection.close()
            del self._open[name]
            if sentence:
                self._tell(sentence)
                return sentence
        return None

    def _tell(self, sentence: str) -> None:
        for connection in self._open.values():
            with contextlib.suppress(OSError):
                connection.sendall(encoded(dict(error=sentence)))
