"""Traces of the steps that ``log.profile`` names, for XProf and Perfetto."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from configs.files import copy, delete
from configs.folders import Folder


class Profile:
    """Takes steps, and traces those from the first to the last that are named."""

    def __init__(self, steps: tuple[int, ...], workdir: Folder):
        """Args: ``log.profile``; the run's folder, in which ``profile`` is written."""
        self._steps = range(steps[0], steps[1] + 1) if steps else range(0)
        self._folder = workdir / "profile"
        self._tracing: Path | None = None  # where; an object store gets a trace when it is whole

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *exception: object) -> None:
        """Writes what was traced, whatever ended the run.

        Raises:
          UserError: an object store does not take it.
        """
        if self._tracing is None:
            return
        written, self._tracing = self._tracing, None
        jax.profiler.stop_trace()
        if written != self._folder:
            copy(written, self._folder)
            delete(written)

    def take(self, call: range, step: Callable[..., tuple[Any, Any]], *arguments: Any) -> Any:
        """Returns ``step(*arguments)``, which takes the steps after those of ``call.start``."""
        if call.start + 1 in self._steps and self._tracing is None:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # what Python calls would drown what devices do
            is_here = isinstance(self._folder, Path)
            folder = self._folder if is_here else Path(tempfile.mkdtemp())
            jax.profiler.start_trace(folder, create_perfetto_trace=True, profiler_options=options)
            self._tracing = folder
        with jax.profiler.StepTraceAnnotation("train", step_num=call.start + 1):
            state, values = step(*arguments)
        if self._tracing is not None and call.stop + 1 not in self._steps:
            jax.block_until_ready(values)
            self.__exit__()
        return state, values


def edges(steps: tuple[int, ...]) -> list[int]:
    """Returns the steps after which a trace begins and ends, which no call may pass."""
    return [steps[0] - 1, steps[1]] if steps else []
