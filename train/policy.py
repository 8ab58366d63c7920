"""What a run does after an accident: ``accidents.policy``, and the record of it."""

import dataclasses
import math

import numpy as np
from ml_collections import ConfigDict

from configs import resolved
from configs.errors import UserError
from configs.folders import Folder
from model.saved import Saved
from train import events
from train.accidents import CODE, KINDS, WATCHED
from train.checkpoints import Checkpoints
from train.events import Event, plain
from train.processes.group import Processes
from train.skipped import Skipped

Values = dict[str, np.ndarray]  # the figures of the steps of a call, on the host

_MEANT = {"loss": "loss", "gradient": "gradient", "state": "state after the update"}


@dataclasses.dataclass(frozen=True)
class Accident:
    """A step that went wrong."""

    step: int  # that it would have ended
    batch: int  # its number in the endless order, from 0
    kind: str  # one of ``KINDS``
    figures: dict[str, float]  # loss, grad_norm, learning_rate and, of a spike, mean and deviation

    def __str__(self) -> str:
        """Says what happened."""
        where = f"of step {self.step}"
        if self.kind in _MEANT:
            return f"the {_MEANT[self.kind]} {where} is not finite"
        name = WATCHED[self.kind != "loss spike"]
        mean, deviation = self.figures["mean"], self.figures["deviation"]
        value = self.figures[name]
        far = (value - mean) / deviation if deviation else math.inf
        return (
            f"the {_MEANT[self.kind.split()[0]]} {where} is a spike: {value:.4g} is {far:.1f} "
            f"standard deviations above {mean:.4g}"
        )


def accidents_of(call: range, values: Values, skipped: Skipped) -> list[Accident]:
    """Returns the accidents of a call, in order.

    Args:
      call: its steps, as numbers of steps taken before.
      values: its figures; where the step has looked for accidents itself, what it found.
      skipped: batches that no step takes.
    """
    found = []
    for i, before in enumerate(call):
        figures = {name: float(value[i]) for name, value in values.items()}
        if CODE in figures:
            code = int(figures[CODE])
        else:
            finite = [math.isfinite(figures[name]) for name in WATCHED]
            code = 0 if all(finite) else 1 + finite.index(False)
        if code:
            kind = KINDS[code]
            kept = {n: figures[n] for n in ("loss", "grad_norm", "learning_rate")}
            if kind.endswith("spike"):
                name = WATCHED[kind != "loss spike"]
                kept |= {part: figures[f"{name}_{part}"] for part in ("mean", "deviation")}
            found.append(Accident(before + 1, skipped.batch(before), kind, kept))
    return found


class Policy:
    """The accidents of one run, and what follows each."""

    def __init__(
        self, config: ConfigDict, workdir: Folder, checkpoints: Checkpoints, processes: Processes
    ):
        """Reads what happened to the run before; the batches that it lost are left out.

        Args:
          config: resolved.
          workdir: of the run.
          checkpoints: its saved steps; they are told what is left out.
          processes: of the run; all of them decide alike.

        Raises:
          UserError: the record is damaged.
        """
        self.policy, self._limits = config.accidents.policy, config.accidents
        self.skips = self.policy == "skip"
        self._digest = resolved.digest(config)
        self._workdir, self._checkpoints, self._processes = workdir, checkpoints, processes
        self._events: list[Event] = processes.told(lambda: events.read(workdir))
        checkpoints.skipped |= events.left_out(self._events)

    @property
    def skipped(self) -> Skipped:
        """Returns the batches that no step takes any more."""
        return self._checkpoints.skipped

    def meet(self, found: list[Accident]) -> tuple[Accident | None, list[str]]:
        """Records the accidents of a call.

        Returns:
          The one to roll back from, if the run is to, and what to say of those that are skipped.

        Raises:
          UserError: the run ends here.
        """
        said: list[str] = []
        for accident in found:
            if self.policy == "stop" or self._too_many(accident):
                self._write(self._event(accident, "stop"))
                raise UserError(self._sentence(accident))
            if self.policy == "rollback":
                return accident, said
            self._write(self._event(accident, "skip"))
            said.append(f"{accident}: batch {accident.batch} is passed over")
        return None, said

    def back(self, accident: Accident) -> tuple[Saved | None, str]:
        """Decides where to go on from after an accident, and what is left out from then on.

        It is on disk when this returns.

        Returns:
          The newest step saved before the accident (None: the run's beginning), and what to say.

        Raises:
          UserError: a save failed, or the decision cannot be written.
        """
        self._checkpoints.wait()
        saved = self._checkpoints.find(before=accident.step)

        def decide() -> Event:
            to = saved.step if saved is not None and saved.step else 0
            before, after = self._limits.skip_before, self._limits.skip_after
            start = to if before is None else max(to, accident.step - 1 - before)
            lost = [self.skipped.batch(start), accident.batch + after]
            event = self._event(accident, "rollback") | dict(to=to, skipped=lost)
            events.write(self._workdir, [*self._events, event])
            return event

        event = self._processes.told(decide)
        self._events.append(event)
        self._checkpoints.skipped |= events.left_out([event])
        first, last = event["skipped"]
        batches = f"batch {first}" if first == last else f"batches {first} to {last}"
        return saved, f"{accident}: back to step {event['to']}, without {batches}"

    def _too_many(self, accident: Accident) -> bool:
        """Tells whether this is one more than the run may survive; one that is known is not."""
        if self._known(self._event(accident, self.policy)):
            return False
        near = [
            event
            for event in self._events
            if event.get("action") != "stop"
            and abs(event["step"] - accident.step) < self._limits.window
        ]
        return len(near) >= self._limits.limit

    def _sentence(self, accident: Accident) -> str:
        over = f"{accident}, and nothing is saved from there on"
        if self.policy == "stop":
            return (
                f"{over}; lower optim.learning_rate, set optim.clip, or have its batch, "
                f"{accident.batch}, passed over by accidents.policy."
            )
        return (
            f"{over}: batch {accident.batch} is one too many after {self._limits.limit} accidents "
            f"within {self._limits.window} steps; lower optim.learning_rate, set optim.clip, or "
            "raise accidents.limit."
        )

    def _event(self, accident: Accident, action: str) -> Event:
        figures = {name: plain(value) for name, value in accident.figures.items()}
        return dict(
            step=accident.step,
            batch=accident.batch,
            kind=accident.kind,
            **figures,
            policy=self.policy,
            action=action,
            config=self._digest,
        )

    def _known(self, event: Event) -> bool:
        """Tells whether the record has an event, which a run that was set back meets again."""
        names = ("step", "batch", "kind", "policy", "action")
        return any(all(old.get(n) == event[n] for n in names) for old in self._events)

    def _write(self, event: Event) -> None:
        if self._known(event):
            return
        self._events.append(event)
        if self._processes.first:
            events.write(self._workdir, self._events)
