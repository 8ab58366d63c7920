"""A run: init or resume, train, evaluate, save, end with a summary."""

import contextlib
import dataclasses
import functools
import math
import time

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console

from configs import resolved
from configs.errors import UserError
from configs.files import write_text
from configs.folders import Folder
from model.axes import ShardingRules, check_mesh, make_mesh, notes, split_host
from model.config import ModelConfig
from model.manifest import CONFIG
from text.reading import Sources, open_sources
from train import heartbeat, loss, profile
from train.alive import Alive
from train.batches import training_batches
from train.calls import calls, due
from train.checkpoints import Checkpoints, check_corpus, check_workdir
from train.held_out import evaluate
from train.holding import Holding
from train.memory import check_memory
from train.metrics import Metrics, Unwritten, read
from train.numbers import Numbers
from train.policy import Accident, Policy
from train.processes.alike import check_alike, check_shared, of_config
from train.processes.group import Processes
from train.progress import RunProgress, clock
from train.record import Record
from train.start import Start
from train.step import all_finite, make_optimizer, make_step


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    step: int  # steps taken in all
    loss: float  # of the last step of this session in nats a token; NaN where it took none
    evaluation: dict[str, float]  # of the last evaluation
    signal: int | None  # that asked it to end; it may have come too late to end it early


def train(
    config: ConfigDict,
    workdir: Folder,
    console: Console | None = None,
    processes: Processes | None = None,
) -> Outcome:
    """Trains a config in a folder, going on from its newest whole step.

    Args:
      config: with the fields of configs/base.py.
      workdir: holds config.json, metrics.jsonl, tensorboard/ and checkpoints/.
      console: for progress; standard output when None. Process 0 alone shows any.
      processes: of the run, where there are several.

    Raises:
      UserError: the config, the text, the folder or a checkpoint does not serve.
    """
    processes = processes or Processes()
    console = console or Console() if processes.first else Console(quiet=True)
    resolved.check(config)
    loss.by_name(config.loss)  # a mistake shows before anything is read or compiled
    split_host(config.host_devices)
    check_shared(workdir, processes)
    sources = processes.together(lambda: open_sources(config))
    config = resolved.resolve(config, sources.vocab_size)
    common = {"the text's digest": sources.digest, "jax": jax.__version__}
    check_alike(processes, common | of_config(config))
    model_config = ModelConfig.from_config(config.model, sources.vocab_size, config.length)
    mesh = make_mesh(config.mesh.to_dict())
    rows = config.batch_size // config.optim.accumulate
    check_mesh(mesh, model_config, rows, config.length, config.mesh.residual)
    check_memory(config, model_config, mesh)
    alive = Alive(workdir, config.steps, processes.count, processes.signs, processes.first)
    with Holding(workdir, processes) as holding, alive:
        say = functools.partial(console.print, highlight=False, markup=False, soft_wrap=True)
        checkpoints = Checkpoints(
            workdir, config, sources.tokenizer, sources.digest, processes, holding, say
        )
        with jax.set_mesh(mesh):
            outcome = _run(
                config, model_config, sources, mesh, checkpoints, console, processes, alive
            )
        alive.ends(outcome.step >= config.steps, outcome.signal)
        return outcome


def _run(
    config: ConfigDict,
    model_config: ModelConfig,
    sources: Sources,
    mesh: Mesh,
    checkpoints: Checkpoints,
    console: Console,
    processes: Processes,
    alive: Alive,
) -> Outcome:
    workdir, before = checkpoints.workdir, checkpoints.find()
    check_corpus(before, sources.digest)
    changes = processes.told(lambda: check_workdir(workdir, config, before))
    if before is None or int(before.step or 0) < config.steps:
        alive.begin()
    optimizer = make_optimizer(config, model_config)
    policy = Policy(config, workdir, checkpoints, processes)
    say = checkpoints.say
    begins = Start(config, model_config, optimizer, mesh, say)
    state = begins.at(before, checkpoints, sources.tokenizer, processes)
    start = int(state.step)
    if before is None:
        checkpoints.begin()
    else:
        say(f"resumed from step {start}")
    documents = config.data.rows == "packed" and sources.tokenizer is not None
    rows = config.batch_size // config.optim.accumulate
    say(state.model.attention_line(rows, config.length, documents))
    for note in notes(mesh.shape, model_config):
        say(note)
    for name, (old, new) in changes.items():
        say(f"config.{name}: {old!r} -> {new!r}")
    over, evaluation = start >= config.steps, processes.told(lambda: _evaluation(workdir, start))
    if over:
        say(f"{workdir} already has {start} steps.")
        if evaluation:
            return Outcome(start, math.nan, evaluation, None)
    elif processes.first:
        write_text(workdir / CONFIG, resolved.to_json(config))

    step, numbers = make_step(config, optimizer), Numbers.of(config)
    metrics = _metrics(config, workdir, start, processes)
    progress = RunProgress(config.steps, start, console)
    everies = (config.log.eval_every, config.checkpoint.every)
    edges = profile.edges(config.log.profile)
    slots = min(config.steps_per_call, config.steps)
    record = Record(config, model_config, metrics, policy, progress, mesh, start, processes)
    # Forced host devices share a pool of threads: two steps at once can starve their sums.
    in_turn = mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"
    taken, stopped = start, False

    def measure(last: bool) -> dict[str, float]:
        """Evaluates the state, and writes and shows what it finds; nothing if asked to stop."""
        held_out, count = sources.validation, 0 if last else config.log.eval_batches
        figures = evaluate(
            state.model, held_out, sources.tokenizer, config, mesh, count, stop.asked
        )
        if not figures:
            return {}
        record.metrics.write(taken, {f"eval/{name}": value for name, value in figures.items()})
        progress.say(f"step {taken}/{config.steps}  held out: {_shown(figures)}")
        record.skip_time(taken)
        return figures

    def save() -> None:
        record.metrics.sync()
        checkpoints.save(state, taken)

    def go_on() -> Accident | None:
        """Takes steps to the last, to a signal or to an accident, which is to roll back from."""
        nonlocal state, taken, stopped, evaluation
        cut = calls(taken, config.steps, config.steps_per_call, everies, edges)
        batches = training_batches(
            sources.train,
            *(config.batch_size, cut, slots, mesh, ShardingRules(), config.data.prefetch),
            policy.skipped,
        )
        for call, batch in batches:
            state, values = traced.take(call, step, state, batch, jnp.int32(len(call)), numbers)
            stop.begun()
            # The values of the call before, while this one computes.
            if not in_turn and (accident := record.write()):
                return accident
            record.pending = (call, values)
            if in_turn and (accident := record.write()):
                return accident
            taken = call.stop
            stopped = stop.asked()  # once: a signal that comes later is for the next call
            last = taken == config.steps
            saves = checkpoints.due(taken) or stopped
            evaluates = last or due(config.log.eval_every, taken)
            if saves or evaluates:
                finite = all_finite(state)
                # Says so itself, where the loss or the gradient shows it.
                if accident := record.write():
                    return accident
                if not finite:
                    raise UserError(
                        f"the parameters after step {taken} are not finite, and they are not "
                        "saved; lower optim.learning_rate, or set optim.clip."
                    )
            if saves:
                save()
            if evaluates and not stopped:
                evaluation = measure(last)
                stopped = not evaluation
                if stopped and not saves:
                    save()
            if stopped:
                break
        return None

    with (
        processes.stop() as stop,
        contextlib.closing(record),
        contextlib.closing(progress),
        profile.Profile(config.log.profile if processes.first else (), workdir) as traced,
        checkpoints,
    ):
        # A run that ended before the evaluation of its saved step makes up for it.
        if not evaluation and (over or (start and due(config.log.eval_every, start))):
            evaluation = measure(over)
            stopped = not evaluation
        heartbeat.busy(heartbeat.COMPILING, taken)
        accident = None if stopped else go_on()
        while accident is not None:
            saved, said = policy.back(accident)
            taken = int(saved.step or 0) if saved else 0
            progress.say(said)
            if stopped:
                break
            for leaf in jax.tree.leaves(state):
                leaf.delete()  # its memory is for the state before
            state = begins.at(saved, checkpoints, sources.tokenizer, processes)
            if saved is None:
                checkpoints.begin()
            record.metrics.close()
            record.metrics = _metrics(config, workdir, taken, processes)
            record.skip_time(taken)
            accident = go_on()
        checkpoints.wait()
        while checkpoints.missed == taken:
            save()
            checkpoints.wait()
        if stopped and accident is not None:
            progress.say(f"stopped by a signal; run again to go on from step {taken}.")
        elif stopped:
            progress.say(f"stopped by a signal and saved at step {taken}; run again to go on.")
        elif not over:
            progress.say(_summary(config, record, evaluation, workdir))
    return Outcome(taken, record.loss, evaluation, stop.signal)


def _metrics(config: ConfigDict, workdir: Folder, step: int, processes: Processes) -> Metrics:
    """The record from a step on, which process 0 writes."""
    return Metrics(workdir, step, config.log.tensorboard) if processes.first else Unwritten()


def _evaluation(workdir: Folder, step: int) -> dict[str, float]:
    """What the run's record says of the evaluation after a step; empty where there was none."""
    rows = (row for row in read(workdir) if row["step"] == step)
    return {n[5:]: value for row in rows for n, value in row.items() if n.startswith("eval/")}


def _shown(evaluation: dict[str, float]) -> str:
    return "  ".join(f"{n} {v:.4f}" for n, v in evaluation.items() if "/" not in n)


def _summary(
    config: ConfigDict, record: Record, evaluation: dict[str, float], workdir: Folder
) -> str:
    seconds = time.monotonic() - record.began
    tokens = (config.steps - record.start) * config.batch_size * config.length
    return (
        f"trained {config.steps - record.start} steps, {tokens:,} tokens, in {clock(seconds)} "
        f"({tokens / seconds:,.0f} tokens/s)\n"
        f"loss {record.loss:.4f}; held out: {_shown(evaluation).replace('  ', ', ')}\n"
        f"saved in {workdir}"
    )
