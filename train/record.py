"""What becomes of the figures of finished steps: rows, a line of progress, a rate."""

import math
import time

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from configs.errors import UserError
from model.config import ModelConfig
from model.tally import tally
from train.metrics import Metrics
from train.peaks import peak_flops
from train.progress import RunProgress


class Record:
    """Turns the values of finished calls into rows, a line of progress and a rate."""

    def __init__(
        self,
        config: ConfigDict,
        model_config: ModelConfig,
        metrics: Metrics,
        progress: RunProgress,
        mesh: Mesh,
        start: int,
    ):
        self.config, self.metrics, self.progress, self.start = config, metrics, progress, start
        self.pending: tuple[range, dict] | None = None  # a call, and its values on the device
        self.loss = math.nan
        self.began = time.monotonic()
        self.rate = 0.0
        self._mark = (self.began, start)
        device = mesh.devices.flat[0]
        peak = peak_flops(device.device_kind)
        flops = tally(model_config, config.length).training_flops
        self._utilisation = flops / peak / mesh.size if peak else None

    def write(self) -> None:
        """Writes the rows of the pending call.

        Raises:
          UserError: a loss or a gradient is not finite.
        """
        if self.pending is None:
            return
        (call, values), self.pending = self.pending, None
        values = jax.device_get(values)
        self._measure(call.stop)
        for i, step in enumerate(call):
            log = self.config.log
            everies = (log.every, log.eval_every, self.config.steps)
            if not any(due(every, step + 1) for every in everies):
                continue
            names = ("loss", "grad_norm", "learning_rate")
            row: dict[str, float | None] = {name: float(values[name][i]) for name in names}
            row["tokens_per_second"] = self.rate
            if self._utilisation is not None:
                row["utilisation"] = self.rate * self._utilisation
            self.metrics.write(step + 1, row)
        self.loss = float(values["loss"][len(call) - 1])
        for name, meant in (("loss", "loss"), ("grad_norm", "gradient")):
            finite = np.isfinite(values[name][: len(call)])
            if not finite.all():
                raise UserError(
                    f"the {meant} of step {call[int(finite.argmin())] + 1} is not finite, and "
                    "nothing is saved from there on; lower optim.learning_rate, or set optim.clip."
                )
        self._show(call.stop)

    def skip_time(self, step: int) -> None:
        """Leaves what happened since the last write out of the rate."""
        self._mark = (time.monotonic(), step)

    def _measure(self, step: int) -> None:
        now, (then, before) = time.monotonic(), self._mark
        if step > before:
            self.rate = (step - before) * self._tokens / max(now - then, 1e-9)
            self._mark = (now, step)

    def _show(self, step: int) -> None:
        rate = self.rate or (step - self.start) * self._tokens / (time.monotonic() - self.began)
        used = rate * self._utilisation if self._utilisation is not None else None
        left = (self.config.steps - step) * self._tokens / max(rate, 1e-9)
        self.progress.show(step, self.loss, rate, used, left)

    @property
    def _tokens(self) -> int:
        return self.config.batch_size * self.config.length


def due(every: int, step: int) -> bool:
    """Tells whether what happens every so many steps happens after this one; 0: never."""
    return every > 0 and step % every == 0
