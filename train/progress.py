"""What a run shows while it works: a bar on a terminal, plain lines elsewhere."""

import math
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


class RunProgress:
    """Shows how far a run is."""

    def __init__(self, steps: int, start: int, console: Console):
        """Args: steps of the run, steps taken before, where to show them."""
        self.steps, self.console = steps, console
        self._last_line = -math.inf
        self._bar = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=30),
                TextColumn("{task.description}"),
                console=console,
            )
            self._task = self._bar.add_task("", total=steps, completed=start)
            self._bar.start()

    def show(self, step: int, text: str) -> None:
        """Shows the steps taken and what is said of them; as lines, at most one in 5 seconds."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=text)
        elif step == self.steps or time.monotonic() - self._last_line >= 5:
            self._last_line = time.monotonic()
            self.say(f"step {step}/{self.steps}  {text}")

    def say(self, text: str) -> None:
        """Prints a line, above the bar where there is one."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.stop()


def clock(seconds: float) -> str:
    """Returns a duration as "2h03m", "4m05s" or "6s"."""
    whole = round(max(0.0, seconds))
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"
