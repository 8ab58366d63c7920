"""Whether somebody asked a run to end, by SIGTERM or Ctrl-C."""

import signal

import jax
from jax._src import distributed  # the service can be begun later by no public name
from jax.experimental import multihost_utils

from configs.keyboard import Interrupt
from train.processes.early_signals import EarlySignals


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

    def begun(self) -> None:
        """From here on there is something to save, when a signal comes."""

    def asked(self) -> bool:
        """Tells whether the run is to end here."""
        return self.signal is not None


class SharedStop(Stop):
    """Of several processes: a signal to any of them stops all at the same point.

    Once the run has begun, JAX' preemption service takes SIGTERM; all processes then agree on the
    next point that none of them has passed. Ctrl-C is handed to it. Before, a signal ends all.
    """

    def __init__(self, early: EarlySignals) -> None:
        """Args: what has the signals until the run has begun."""
        self._early, self._begun = early, False
        self._interrupt = Interrupt((signal.SIGINT,), lambda: signal.raise_signal(signal.SIGTERM))
        self._points, self._reached = 0, False

    @property
    def signal(self) -> int | None:
        """Returns SIGTERM once all stop."""
        return signal.SIGTERM if self._reached else None

    def begun(self) -> None:
        """Has JAX take SIGTERM."""
        if not self._begun:
            self._begun = True
            jax.config.update("jax_enable_preemption_service", True)
            distributed.global_state.initialize_preemption_sync_manager()
            self._early.close()

    def asked(self) -> bool:
        """Tells whether all processes end here; all must ask at the same points."""
        if self._begun and not self._reached:
            self._points += 1
            self._reached = multihost_utils.reached_preemption_sync_point(self._points)
        return self._reached
