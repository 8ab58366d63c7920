"""One step of a run, taken once more: its batch, its loss and gradients, and what is not finite.

``python -m train.replay --workdir=runs/toy --step=120``

It begins from the newest saved step before, and writes nothing into the run's folder. On the run's
mesh, the loss and the gradient's norm are those of the run to the bit.
"""

from configs import keyboard

if __name__ == "__main__":
    keyboard.end_at_once()  # the imports below take seconds

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from configs import checkpoint_flags, command, resolved
from configs.errors import UserError
from configs.figures import define_json, write_json
from configs.files import names, read_text
from configs.folders import Folder, run_folder
from configs.safe import is_safe
from model.axes import check_mesh, make_mesh, split_host
from model.compiled import keep_compiled
from model.config import ModelConfig
from model.manifest import CONFIG
from model.saved import Saved
from text.reading import Sources, open_sources
from train import loss
from train.checkpoints import check_corpus, newest
from train.events import plain
from train.processes import joining
from train.processes.alike import check_alike, of_flags
from train.processes.group import Processes
from train.replayed import COMPARED, Plan, Replay, begin, plan, replay, same_bits
from train.skipped import Skipped

SHOWN = 20  # parameters; --json has all


def _define_flags() -> None:
    flags.DEFINE_string("workdir", None, "The run's folder.")
    flags.DEFINE_integer("step", None, "The step to take once more, from 1.", lower_bound=1)
    flags.DEFINE_integer(
        "batch", None, "Which batch it took, where after a rollback it took another.", 0
    )
    flags.DEFINE_integer("rows", 3, "Rows to show, those with the largest loss.", lower_bound=0)
    define_json()
    checkpoint_flags.define_devices("the run's")
    joining.define_flags()


def main() -> None:
    """Replays ``--step`` of ``--workdir`` and prints what it gave."""
    keep_compiled()
    with joining.join() as processes:
        _replay(processes)


def _replay(processes: Processes) -> None:
    given = flags.FLAGS
    if not given.workdir or given.step is None:
        missing = "--step" if given.workdir else "--workdir"
        raise UserError(f"{missing} is missing; write --workdir=runs/toy --step=120, say.")
    workdir = run_folder(given.workdir, "--workdir")
    check_alike(processes, of_flags("workdir", "step", "batch", "mesh", "host_devices"))
    config = resolved.from_json(processes.told(lambda: _config(workdir)), str(workdir / CONFIG))
    if given.step > config.steps:
        raise UserError(f"--step={given.step} is past the run's last, {config.steps}.")
    if given.mesh:
        config.mesh.update(checkpoint_flags.mesh_sizes())
    devices = given.host_devices
    split_host(config.host_devices if devices is None else devices)
    told = processes.told(lambda: dataclasses.asdict(plan(workdir, given.step, given.batch)))
    planned = Plan(**{**told, "skipped": Skipped.of(told["skipped"]["ranges"])})
    changed = planned.event is not None and planned.event.get("config") != resolved.digest(config)
    if planned.event is not None:
        config.accidents.policy = planned.event.get("policy", config.accidents.policy)
    loss.by_name(config.loss)
    sources = processes.together(lambda: open_sources(config))
    processes.told(lambda: check_corpus(newest(workdir), sources.digest))
    model_config = ModelConfig.from_config(config.model, sources.vocab_size, config.length)
    mesh = make_mesh(config.mesh.to_dict(), field="--mesh" if given.mesh else "config.mesh")
    rows = config.batch_size // config.optim.accumulate
    check_mesh(mesh, model_config, rows, config.length, config.mesh.residual)
    console = Console(highlight=False, soft_wrap=True, quiet=not processes.first)
    saved = begin(planned, workdir, processes, lambda said: console.print(said, markup=False))
    console.print(_beginning(planned, workdir, saved), markup=False)
    if changed:
        console.print("the run's config is not the one of that event any more")
    with jax.set_mesh(mesh):
        found = replay(
            config, model_config, sources, mesh, workdir, planned, saved, processes, console
        )
    if not processes.first:
        return
    report = _report(config, sources, planned, saved, found)
    _show(console, planned, found, report)
    if given.json:
        write_json(given.json, dict(workdir=str(workdir), **report))


def _config(workdir: Folder) -> str:
    """Returns the run's config, as it was last started.

    That of the newest saved step is verified, and stands for one that is deleted; it may be older,
    and then differs in fields alone that a run may change.
    """
    path, before = workdir / CONFIG, newest(workdir)
    if CONFIG not in names(workdir):
        if before is None:
            raise UserError(f"--workdir={workdir} holds no run; name a run's folder.")
        return resolved.to_json(before.config)
    text = read_text(path)
    if before is not None:
        changes = resolved.difference(before.config, resolved.from_json(text, str(path)))
        if unsafe := [name for name in changes if not is_safe(name)]:
            raise UserError(
                f"{path} is not the config of {before.path}, in {', '.join(unsafe)}; copy that "
                "one's here."
            )
    return text


def _beginning(planned: Plan, workdir: Folder, saved: Saved | None) -> str:
    """Says what is replayed, and from where."""
    origin = f"step {saved.step}" if saved else ""
    if not origin:
        origin = "the run's beginning, as no step before it is kept: all steps are taken again"
    return f"step {planned.step} of {workdir}, with batch {planned.batch}, from {origin}"


def _report(
    config: ConfigDict, sources: Sources, planned: Plan, saved: Saved | None, found: Replay
) -> dict[str, Any]:
    """Returns all that is known, as JSON has it."""
    numbers = planned.batch * config.batch_size + np.arange(config.batch_size)
    made = sources.train.training(numbers)
    rows = []
    for row, (labels, counted) in enumerate(zip(made.labels, made.counted, strict=True)):
        ids, nats = labels[counted], found.nats[row][counted]
        text = "" if sources.tokenizer is None else sources.tokenizer.decode(ids)
        mean = float(nats.mean()) if len(nats) else 0.0
        rows.append(dict(row=row, loss=plain(mean), text=text, ids=ids.tolist()))
    recorded = {name: planned.recorded[name] for name in COMPARED if name in planned.recorded}
    return dict(
        step=planned.step,
        batch=planned.batch,
        start=saved.step if saved else 0,
        kind=found.kind,
        **{name: plain(value) for name, value in found.figures.items()},
        recorded=recorded,
        same=same_bits(recorded, found.figures) if recorded else None,
        steps_before=dict(compared=found.compared, differ=found.differ),
        parameters=[
            {**dataclasses.asdict(one), "norm": plain(one.norm)} for one in found.parameters
        ],
        rows=rows,
    )


def _show(console: Console, planned: Plan, found: Replay, report: dict[str, Any]) -> None:
    """Prints the figures, the largest gradients and the rows with the largest loss."""
    table = Table(box=box.SIMPLE, show_edge=False)
    for name in ("figure", "now", "then"):
        table.add_column(name, justify="left" if name == "figure" else "right")
    for name in COMPARED:
        then = report["recorded"].get(name, "")
        table.add_row(name, _written(report[name]), "" if then == "" else _written(then))
    console.print(table)
    words = {True: "the same to the bit", False: "not the same", None: "not on record"}
    console.print(f"step {planned.step} is {words[report['same']]}")
    compared, differ = report["steps_before"]["compared"], found.differ
    if compared:
        first = f", and not step {differ[0]}" if differ else ""
        same = compared - len(differ)
        console.print(f"of {compared} steps before it on record {same} are the same{first}")
    if found.kind:
        console.print(f"an accident: {found.kind}")
    table = Table(box=box.SIMPLE, show_edge=False)
    for name in ("parameter", "gradient's norm", "not finite", "of"):
        table.add_column(name, justify="left" if name == "parameter" else "right")
    worst = sorted(found.parameters, key=lambda one: (-one.not_finite, -_order(one.norm)))
    for one in worst[:SHOWN]:
        table.add_row(one.name, _written(one.norm), f"{one.not_finite:,}", f"{one.size:,}")
    console.print(table)
    if len(worst) > SHOWN:
        console.print(f"and {len(worst) - SHOWN} more, which --json has")
    for row in sorted(report["rows"], key=lambda row: -_order(row["loss"]))[: flags.FLAGS.rows]:
        shown = row["text"] or " ".join(map(str, row["ids"]))
        console.print(f"row {row['row']}, loss {_written(row['loss'])}: {escape(shown)}")


def _order(value: float | str) -> float:
    """Returns a figure to sort by: what is not finite is the largest."""
    return float(value) if math.isfinite(float(value)) else math.inf


def _written(value: float | str | None) -> str:
    """Writes a figure; null stands for what is not finite."""
    if value is None:
        return "not finite"
    return f"{float(value):.6g}"


if __name__ == "__main__":
    command.run(main, _define_flags)
