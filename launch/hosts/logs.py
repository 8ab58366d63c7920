"""What hosts say: each line on the terminal with its host, and all of it in a file for each."""

import codecs
import re
import sys
import threading
from pathlib import Path

from configs.console import tell
from configs.errors import UserError
from configs.files import make_folder
from launch.hosts.host import Host


class Logs:
    """The files of one launch on this machine; each is a copy of a host's, byte for byte."""

    def __init__(self, folder: Path):
        """Args: the folder of the files; made when something is said.

        Raises:
          UserError: it cannot be made.
        """
        self.folder = folder
        make_folder(folder, f"--logs={folder}")
        self._lock = threading.Lock()
        self._rest: dict[Path, str] = {}  # of a line that has not ended, by file
        self._decoders: dict[Path, codecs.IncrementalDecoder] = {}

    def path(self, host: Host, attempt: str) -> Path:
        """Returns the file of what a host says in an attempt."""
        return self.folder / f"{re.sub('[^A-Za-z0-9._-]', '_', host.name)}.{attempt}.log"

    def known(self, host: Host, attempt: str) -> int:
        """Returns how many bytes of a host's log are here."""
        try:
            return self.path(host, attempt).stat().st_size
        except OSError:
            return 0

    def add(self, host: Host, attempt: str, data: bytes) -> None:
        """Writes what a host has said, and shows its whole lines."""
        path = self.path(host, attempt)
        decoder = self._decoders.setdefault(path, codecs.getincrementaldecoder("utf-8")("replace"))
        try:
            with open(path, "ab") as file:
                file.write(data)
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({error.strerror}); free space, or name another folder "
                "by --logs. The job goes on: the same command comes back to it."
            ) from error
        *lines, self._rest[path] = (self._rest.get(path, "") + decoder.decode(data)).split("\n")
        for line in lines:
            self.show(host, line)

    def end(self, host: Host, attempt: str) -> None:
        """Shows what a host has said last, though its line has no end."""
        if rest := self._rest.pop(self.path(host, attempt), ""):
            self.show(host, rest)

    def show(self, host: Host, line: str) -> None:
        """Shows a line with its host."""
        with self._lock:
            tell(f"[{host.name}] {line}", sys.stdout)
