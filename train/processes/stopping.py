"""Whether somebody asked a run to end, by SIGTERM or Ctrl-C."""

import signal

from jax.experimental import multihost_utils

from configs.keyboard import Interrupt


class Stop:
    """Of one process; while active, notes the first signal.

    Attributes:
      signal: that asked the run to end.
    """

    def __init__(self) -> None:
        self._interrupt = Interrupt()

    @property
    def signal(self) -> int | None:
        """Returns the signal that asked the run to end."""
        return self._interrupt.signal

    def __enter__(self) -> "Stop":
        self._interrupt.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._interrupt.__exit__(*exception)

    def asked(self) -> bool:
        """Tells whether the run is to end here."""
        return self.signal is not None


class SharedStop(Stop):
    """Of several processes: a signal to any of them stops all at the same point.

    JAX' preemption service takes SIGTERM; all processes then agree on the next point that none of
    them has passed. Ctrl-C is handed to it.
    """

    def __init__(self) -> None:
        self._interrupt = Interrupt((signal.SIGINT,), lambda: signal.raise_signal(signal.SIGTERM))
        self._points, self._reached = 0, False

    @property
    def signal(self) -> int | None:
        """Returns SIGTERM once all stop."""
        return signal.SIGTERM if self._reached else None

    def asked(self) -> bool:
        """Tells whether all processes end here; all must ask at the same points."""
        if not self._reached:
            self._points += 1
            self._reached = multihost_utils.reached_preemption_sync_point(self._points)
        return self._reached
