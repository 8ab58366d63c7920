"""A step of a run taken once more, as the run took it; nothing is written."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from ml_collections import ConfigDict
from rich.console import Console

from configs.errors import UserError
from configs.folders import Folder
from model import manifest
from model.axes import ShardingRules
from model.config import ModelConfig
from model.manifest import STEPS
from model.saved import Damaged, Saved, open_step
from text.reading import Sources
from train import events
from train.batches import training_batches
from train.calls import calls
from train.checkpoints import Checkpoints, begun_from
from train.events import Event
from train.examine import ParameterGradient, examine
from train.metrics import read
from train.numbers import Numbers
from train.opening import ITEMS, first_whole
from train.policy import accidents_of
from train.processes.group import Processes
from train.progress import RunProgress
from train.skipped import Skipped
from train.start import Start
from train.step import METRICS, make_optimizer, make_step

COMPARED = ("loss", "grad_norm")


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a run came to a step."""

    step: int  # the one that is replayed
    skipped: Skipped  # batches that no step took then
    starts: list[int]  # saved steps to begin from, the newest first; none: the run's beginning
    recorded: dict[str, Any]  # figures of the step; empty where there are none
    event: Event | None  # whether the step is on record as an accident
    before: list[dict[str, Any]]  # the rows on record of steps that led to it

    @property
    def batch(self) -> int:
        """Returns the step's batch."""
        return self.skipped.batch(self.step - 1)


@dataclasses.dataclass(frozen=True)
class Replay:
    """What a step gave when it was taken once more."""

    kind: str  # of the accident that it is; empty where it is none
    figures: dict[str, float]  # loss, grad_norm, learning_rate
    parameters: list[ParameterGradient]
    nats: Float[np.ndarray, "B T"]  # loss of each token
    compared: int  # steps before it that are on record
    differ: list[int]  # steps before it whose figures are not those on record


def plan(workdir: Folder, step: int, batch: int | None) -> Plan:
    """Finds out from a run's folder how it came to a step.

    Args:
      workdir: of the run.
      step: to replay. Where it is on record as an accident, that, and the last if there were more.
      batch: that the step is to have taken; None: any.

    Raises:
      UserError: the step never took that batch.
    """
    happened = events.read(workdir)
    saved: dict[int, Skipped] = {}  # by step, oldest first: the batches left out before it
    for number in manifest.whole_steps(workdir):
        with contextlib.suppress(Damaged):
            found = open_step(workdir / STEPS / str(number), ())
            saved[number] = Skipped.of(found.skipped)

    now = events.left_out(happened)
    if saved:
        now |= saved[max(saved)]

    known: list[tuple[Skipped, Event]] = []
    before = Skipped()
    for event in happened:
        known.append((before, event))
        before |= events.left_out([event])
    ways = [(then, event) for then, event in known if event["step"] == step]
    others = [*(then for then, _ in known), before, now]
    fitting: list[tuple[Skipped, Event | None]] = [
        *((then, None) for then in others if batch in (None, then.batch(step - 1))),
        *(way for way in ways if batch in (None, way[1]["batch"])),
    ]
    if not fitting:
        took = sorted({then.batch(step - 1) for then in others})
        raise UserError(
            f"step {step} of {workdir} never took --batch={batch}; it took "
            f"{', '.join(map(str, took))}."
        )
    skipped, chosen = fitting[-1]

    # Those whose batches are those that led to this step.
    starts = [
        number
        for number, then in reversed(saved.items())
        if number < step and then.batch(number - 1) == skipped.batch(number - 1)
    ]
    rows = {row["step"]: row for row in read(workdir) if "loss" in row and row["step"] <= step}
    same = {n: row for n, row in rows.items() if now.batch(n - 1) == skipped.batch(n - 1)}
    earlier = [row for n, row in same.items() if n < step]
    return Plan(step, skipped, starts, chosen or same.get(step, {}), chosen, earlier)


def begin(
    planned: Plan, workdir: Folder, processes: Processes, say: Callable[[str], None]
) -> Saved | None:
    """Opens the newest step to begin from that holds what was written; None: the beginning.

    Args:
      planned: how the run came to the step.
      workdir: its folder.
      processes: that open it.
      say: is told of each step that is passed over.
    """
    paths = [workdir / STEPS / str(number) for number in planned.starts]
    return first_whole(paths, ITEMS, processes, lambda said: say(f"{said}: passed over"))


def replay(
    config: ConfigDict,
    model_config: ModelConfig,
    sources: Sources,
    mesh: Mesh,
    workdir: Folder,
    planned: Plan,
    saved: Saved | None,
    processes: Processes,
    console: Console,
) -> Replay:
    """Takes the steps to the planned one, and that; the mesh has to be set.

    Args:
      config: of the run, resolved.
      model_config: of it.
      sources: its text.
      mesh: the run's for the same bits; another gives them to rounding.
      workdir: its folder, which stays as it is.
      planned: what to do.
      saved: the step to begin from; see ``begin``.
      processes: that do it.
      console: for progress.
    """
    optimizer = make_optimizer(config, model_config)
    begins = Start(config, model_config, optimizer, mesh)
    start = int(saved.step or 0) if saved else 0
    checkpoints = Checkpoints(workdir, config, sources.tokenizer, sources.digest, processes)
    checkpoints.begun_from = processes.told(lambda: begun_from(workdir))
    state = begins.at(saved, checkpoints, sources.tokenizer, processes)
    step, numbers = make_step(config, optimizer), Numbers.of(config)
    cut = [*calls(start, planned.step - 1, config.steps_per_call), range(planned.step)[-1:]]
    slots = min(config.steps_per_call, config.steps)
    batches = training_batches(
        sources.train,
        *(config.batch_size, cut, slots, mesh, ShardingRules(), config.data.prefetch),
        planned.skipped,
    )
    progress = RunProgress(planned.step, start, console)
    rows = {row["step"]: row for row in planned.before if row["step"] > start}
    differ: list[int] = []
    for call, batch in batches:
        if call.stop == planned.step:
            declared = optimizer.declared.values()
            parameters, nats = examine(state, batch, numbers, config, declared)
        state, arrays = step(state, batch, jnp.int32(len(call)), numbers)
        values = {n: np.asarray(a)[: len(call)] for n, a in jax.device_get(arrays).items()}
        for i in range(len(call)):
            row = rows.get(call[i] + 1)
            if row and not same_bits(row, {n: float(values[n][i]) for n in COMPARED}):
                differ.append(call[i] + 1)
        progress.show(call.stop, f"loss {values['loss'][-1]:.4f}")
    progress.close()
    found = accidents_of(range(planned.step)[-1:], values, planned.skipped)
    figures = {name: float(values[name][-1]) for name in METRICS}
    return Replay(found[0].kind if found else "", figures, parameters, nats, len(rows), differ)


def same_bits(recorded: dict[str, Any], found: dict[str, float]) -> bool:
    """Tells whether figures are those on record, which has null for what is not finite."""

    def same(then: Any, now: float) -> bool:
        plain = events.plain(now)
        return isinstance(plain, str) if then is None else then == plain

    return all(same(recorded.get(name), found[name]) for name in COMPARED)
