"""What becomes of the figures of finished steps: rows, a line of progress, a rate."""

import math
import time

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from configs.chips import peak_flops
from model.config import ModelConfig
from model.tally import tally
from train import heartbeat
from train.calls import due
from train.metrics import Metrics
from train.policy import Accident, Policy, accidents_of
from train.processes.group import Processes
from train.processes.pace import Pace
from train.progress import RunProgress, clock
from train.step import METRICS


class Record:
    """Turns the values of finished calls into rows, a line of progress and a rate.

    Attributes:
      metrics: where rows are written.
      pending: a call and its values, still on the device.
      loss: of the last good step that was written, nats a token.
      began: when, as ``time.monotonic`` says it.
    """

    def __init__(
        self,
        config: ConfigDict,
        model_config: ModelConfig,
        metrics: Metrics,
        policy: Policy,
        progress: RunProgress,
        mesh: Mesh,
        start: int,
        processes: Processes | None = None,
    ):
        self.config, self.metrics, self.progress, self.start = config, metrics, progress, start
        self.policy = policy
        self.pending: tuple[range, dict] | None = None
        self.loss = math.nan
        self.began = time.monotonic()
        self._mark = (self.began, start)
        self._pace = Pace(processes or Processes())
        peak = peak_flops(mesh.devices.flat[0].device_kind)
        flops = tally(model_config, config.length).training_flops
        self._utilisation = flops / peak / mesh.size if peak else None

    def write(self) -> Accident | None:
        """Writes the rows of the pending call; those of steps that were skipped say so.

        Returns:
          The accident that the run is to roll back from, where there is one.

        Raises:
          UserError: the run ends at an accident.
        """
        if self.pending is None:
            return None
        (call, metrics), self.pending = self.pending, None
        began = time.monotonic()
        values = {n: np.asarray(array)[: len(call)] for n, array in jax.device_get(metrics).items()}
        self._pace.waited(time.monotonic() - began)
        heartbeat.finished(call.stop)
        now, (then, before) = time.monotonic(), self._mark
        self._mark = (now, call.stop)
        tokens = self.config.batch_size * self.config.length
        rate = (call.stop - before) * tokens / max(now - then, 1e-9)
        speed = dict(tokens_per_second=rate)
        speed |= self._pace.of_hosts(now - then, call.stop - before)
        if self._utilisation is not None:
            speed["utilisation"] = rate * self._utilisation
        everies = (self.config.log.every, self.config.log.eval_every, self.config.steps)
        found = accidents_of(call, values, self.policy.skipped)
        bad = {accident.step for accident in found}
        for i, step in enumerate(call):
            if step + 1 in bad or any(due(every, step + 1) for every in everies):
                row = {name: float(values[name][i]) for name in METRICS}
                skipped = dict(skipped=1.0) if self.policy.skips and step + 1 in bad else {}
                self.metrics.write(step + 1, row | speed | skipped)
        back, said = self.policy.meet(found)
        for line in said:
            self.progress.say(line)
        if back is not None:
            return back
        good = [i for i, step in enumerate(call) if step + 1 not in bad]
        self.loss = float(values["loss"][good[-1]]) if good else self.loss
        shown = [f"loss {self.loss:.4f}", f"{rate:,.0f} tokens/s"]
        if self._utilisation is not None:
            shown.append(f"{100 * speed['utilisation']:.1f}% MFU")
        if slowest := self._pace.slowest():
            shown.append(slowest)
        left = (self.config.steps - call.stop) * tokens / max(rate, 1e-9)
        self.progress.show(call.stop, "  ".join([*shown, f"{clock(left)} left"]))
        return None

    def close(self) -> None:
        """Ends the rows."""
        self.metrics.close()

    def skip_time(self, step: int) -> None:
        """Leaves what happened since the last write out of the rate."""
        self._mark = (time.monotonic(), step)
