"""Traces of the steps that ``log.profile`` names, for XProf and Perfetto."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax


class Profile:
    """Takes steps, and traces those from the first to the last that are named."""

    def __init__(self, steps: tuple[int, ...], workdir: Path):
        """Args: ``log.profile``; the run's folder, in which ``profile`` is written."""
        self._steps = range(steps[0], steps[1] + 1) if steps else range(0)
        self._folder = workdir / "profile"
        self._tracing = False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *exception: object) -> None:
        """Writes what was traced, whatever ended the run."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()

    def take(self, call: range, step: Callable[..., tuple[Any, Any]], *arguments: Any) -> Any:
        """Returns ``step(*arguments)``, which takes the steps after those of ``call.start``."""
        if call.start + 1 in self._steps and not self._tracing:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # what Python calls would drown what devices do
            jax.profiler.start_trace(
                self._folder, create_perfetto_trace=True, profiler_options=options
            )
            self._tracing = True
        with jax.profiler.StepTraceAnnotation("train", step_num=call.start + 1):
            state, values = step(*arguments)
        if self._tracing and call.stop + 1 not in self._steps:
            jax.block_until_ready(values)
            self.__exit__()
        return state, values


def edges(steps: tuple[int, ...]) -> list[int]:
    """Returns the steps after which a trace begins and ends, which no call may pass."""
    return [steps[0] - 1, steps[1]] if steps else []
