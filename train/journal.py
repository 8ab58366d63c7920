"""Lines that are appended to a file of a run, here or in an object store."""

import os
import time
from io import FileIO
from pathlib import Path

from configs.errors import UserError
from configs.files import is_file, write_text
from configs.folders import Folder

PUT_EVERY = 60.0  # seconds; an object cannot be appended to, and is written anew


class Appended:
    """Of this machine; a file that is deleted meanwhile comes back."""

    def __init__(self, path: Path):
        """Args: the file.

        Raises:
          OSError: it cannot be opened.
        """
        self._path = path
        self._file = self._open()

    def _open(self) -> FileIO:
        # Unbuffered: what a full disk has not taken is not tried again when it is closed.
        return FileIO(self._path, "a+")

    def append(self, line: str) -> None:
        """Appends a line.

        Raises:
          UserError: it cannot be written.
        """
        try:
            left = memoryview(line.encode())
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise _unwritable(self._path, error) from error

    def sync(self) -> None:
        """Returns when the lines are on the disk.

        Raises:
          UserError: they cannot be written.
        """
        try:
            if not self._is_there():
                self._write_again()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _unwritable(self._path, error) from error

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno()))
        except OSError:
            return False

    def _write_again(self) -> None:
        self._file.seek(0)  # what is deleted can be read as long as it is open
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self._path, self._file.read().decode(errors="replace"))
        again = self._open()
        self._file.close()
        self._file = again

    def close(self) -> None:
        """Ends it."""
        try:
            self.sync()
        finally:
            self._file.close()


class Put:
    """Of an object store: written as a whole from time to time."""

    def __init__(self, path: Folder, text: str):
        """Args: the object, the lines that it has."""
        self._path, self._lines, self._put = path, [text], time.monotonic()
        self._is_new = False

    def append(self, line: str) -> None:
        """Appends a line."""
        self._lines.append(line)
        self._is_new = True
        if time.monotonic() > self._put + PUT_EVERY:
            self.sync()

    def sync(self) -> None:
        """Returns when the lines are stored.

        Raises:
          UserError: they cannot be written.
        """
        if self._is_new:
            write_text(self._path, "".join(self._lines))
            self._put, self._is_new = time.monotonic(), False

    def close(self) -> None:
        """Ends it."""
        self.sync()


def journal(path: Folder, text: str) -> Appended | Put:
    """Returns a file to append lines to.

    Args:
      path: of the file.
      text: the lines that it is to begin with.

    Raises:
      OSError: it cannot be opened.
      UserError: it cannot be written.
    """
    if text or is_file(path):
        write_text(path, text)
    return Appended(path) if isinstance(path, Path) else Put(path, text)


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path} cannot be written ({error.strerror}); what was saved before is whole: free space "
        "and start again."
    )
