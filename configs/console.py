"""A console for commands that have more to do than to be read."""

from typing import Any, TextIO

from rich.console import Console

from configs import command
from configs.errors import UserError


def tell(line: str, stream: TextIO) -> None:
    """Prints a line; where nobody reads any more, this one and all further are lost."""
    try:
        print(f"{line}\n", end="", file=stream, flush=True)  # at once: others write lines too
    except OSError:
        command.silence(stream)


class SteadyConsole(Console):
    """A console whose reader may go away, or disk be full: what is shown ends, the run does not."""

    def __init__(self) -> None:
        super().__init__()
        self._failure: OSError | None = None

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints, or falls silent."""
        try:
            super().print(*objects, **options)
        except OSError as error:
            self._failure = error
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        """Falls silent."""
        self.quiet = True
        command.silence()

    def check(self) -> None:
        """Raises UserError where something could not be shown, though somebody was there."""
        if self._failure is not None:
            raise UserError(
                f"standard output could not be written ({self._failure.strerror}), so the rest was "
                "done in silence; free space or redirect it."
            )
