"""The saved steps of a run, looked after: listed, shown, compared, verified, pruned, exported.

    python -m train.checkpoint list --checkpoint=runs/toy
    python -m train.checkpoint show --checkpoint=runs/toy --arrays
    python -m train.checkpoint diff --checkpoint=runs/a --other=runs/b --values
    python -m train.checkpoint verify --checkpoint=runs/toy
    python -m train.checkpoint prune --checkpoint=runs/toy --keep=1 --dry_run
    python -m train.checkpoint export --checkpoint=runs/toy --to=exported

``--checkpoint`` is a run, a step or a saved model, here or in an object store. ``verify`` ends with
exit status 1 where something is damaged, and 0 where all is whole. No accelerator is touched, so
that all works beside a run that trains.
"""

from configs import keyboard

if __name__ == "__main__":
    keyboard.end_at_once()  # the imports below take seconds

import dataclasses
import shlex
import sys
import time
from typing import Any

import jax
from absl import flags
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from configs import checkpoint_flags, command
from configs.errors import UserError
from configs.figures import define_json, write_json
from model.manifest import EMA, MODEL
from model.saved import Saved
from train import differing, exporting, listing, pruning, showing
from train.saved_steps import Found, counted, find, open_one, written

VERBS = ("list", "show", "diff", "verify", "prune", "export")

# Flags that not all verbs take.
OWNERS = {
    "arrays": ("show",),
    **dict.fromkeys(("other", "values"), ("diff",)),
    **dict.fromkeys(("keep", "keep_every"), ("list", "prune")),
    **dict.fromkeys(("damaged", "dry_run"), ("prune",)),
    **dict.fromkeys(("to", "ema", "dtype", "as"), ("export",)),
}


def _define_flags() -> None:
    flags.DEFINE_string("checkpoint", None, "A run, a step or a saved model.")
    define_json()
    flags.DEFINE_bool("arrays", False, "show: every array with its shape and dtype.")
    flags.DEFINE_string("other", None, "diff: the run, step or saved model to compare with.")
    flags.DEFINE_bool("values", False, "diff: the values of the arrays too.")
    flags.DEFINE_integer(
        "keep", None, "prune, list: so many of the newest whole steps stay.", lower_bound=1
    )
    flags.DEFINE_integer(
        "keep_every", None, "prune, list: each step that this divides stays too.", lower_bound=0
    )
    flags.DEFINE_bool("damaged", False, "prune: delete what is damaged or cut off too.")
    flags.DEFINE_bool("dry_run", False, "prune: say what would be deleted, and delete nothing.")
    flags.DEFINE_string("to", None, "export: the folder to write, not there yet or empty.")
    flags.DEFINE_bool("ema", False, "export: the average of the parameters, of optim.ema.")
    flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "export: by default as saved.")
    flags.DEFINE_enum(
        "as",
        "safetensors",
        ["safetensors", "model"],
        "export: model.safetensors for other programs, or a saved model of this one.",
    )


def main(verb: str) -> None:
    """Runs one of the verbs with the flags.

    Raises:
      UserError: a flag is missing, or of another verb; what the verb cannot do.
    """
    given = flags.FLAGS
    for name, owners in OWNERS.items():
        if given[name].present and verb not in owners:
            raise UserError(
                f"--{name} is for {' and '.join(owners)}, not for {verb}; leave it out."
            )
    checkpoint = checkpoint_flags.checkpoint()
    # An accelerator is its run's.
    jax.config.update("jax_platforms", "cpu")
    console = Console(
        width=None if Console().is_terminal else 140, highlight=False, soft_wrap=True, markup=False
    )
    status = 0
    match verb:
        case "list":
            figures = show_list(console, find(checkpoint), given.keep, given.keep_every)
        case "show":
            figures = show(console, open_one(checkpoint, say=console.print), given.arrays)
        case "diff":
            if not given.other:
                raise UserError("--other is missing; name a run, a step or a saved model.")
            a = open_one(checkpoint, say=console.print)
            b = open_one(given.other, field="--other", say=console.print)
            figures = diff(console, a, b, given.values)
        case "verify":
            figures = verify(console, find(checkpoint))
            status = 0 if figures["whole"] else 1
        case "prune":
            if given.keep is None:
                raise UserError("--keep is missing; say how many of the newest steps stay.")
            figures = prune(
                console, checkpoint, given.keep, given.keep_every or 0, given.damaged, given.dry_run
            )
        case _:
            if not given.to:
                raise UserError("--to is missing; name a folder that is not there yet, or empty.")
            figures = export(
                console, checkpoint, given.to, given.ema, given.dtype, str(given["as"].value)
            )
    if given.json:
        write_json(given.json, figures)
    if status:
        sys.exit(status)


def show_list(
    console: Console, found: Found, keep: int | None = None, keep_every: int | None = None
) -> dict[str, Any]:
    """Prints a table of the steps of a run; returns its figures."""
    policy = listing.keep_of(found, keep, keep_every)
    rows = listing.rows(found, policy)
    table = _table("step", "state", "bytes", "written", "code", "mesh", "processes", "kept")
    for row in rows:
        _add(
            table,
            "a saved model" if row["step"] is None else row["step"],
            f"damaged: {counted(row['faults'])}" if row["faults"] else row["state"],
            written(row["bytes"]),
            (row["time"] or "").replace("T", " ").replace("+00:00", " UTC"),
            listing.revision(row["code"], row["changed"]),
            listing.mesh(row["mesh"]),
            row["processes"] or "",
            {True: "yes", False: "no", None: ""}[row["kept"]],
        )
    console.print(str(found.path))
    console.print(table)
    if policy:
        every = f" and each that {policy.keep_every:,} divides" if policy.keep_every else ""
        console.print(f"kept: the newest {policy.keep:,} whole steps{every}")
    for name, size in found.others.items():
        what = "a save that was cut off or is on its way" if name[0].isdigit() else "no step"
        console.print(f"also there: {name} ({what}, {written(size)})")
    keeping = policy and dataclasses.asdict(policy)
    return dict(checkpoint=str(found.path), keeping=keeping, steps=rows, others=found.others)


def show(console: Console, saved: Saved, every_array: bool = False) -> dict[str, Any]:
    """Prints where a step comes from and what it holds; returns the same."""
    made = showing.provenance(saved)
    table = _table("what", "is", title=str(saved.path))
    for name, value in made.items():
        words = shlex.join(map(str, value)) if isinstance(value, list) else value
        _add(table, name, "not known" if words is None else words)
    console.print(table)
    arrays = showing.arrays(saved)
    totals = {item: showing.totals(held) for item, held in arrays.items()}
    table = _table("item", "arrays", "elements", "bytes", "dtypes")
    for item, total in totals.items():
        counts = (f"{total[name]:,}" for name in ("arrays", "elements", "bytes"))
        _add(table, item, *counts, ", ".join(total["dtypes"]))
    console.print(table)
    if every_array:
        table = _table("item", "array", "shape", "dtype")
        for item, held in arrays.items():
            for name, about in held.items():
                _add(table, item, name, _shape(about), about["dtype"])
        console.print(table)
    settings = showing.settings(saved)
    table = _table("config, where it is not base.py's", "value", "default")
    for name, (default, value) in settings.items():
        _add(table, name, value, default)
    console.print(table)
    return dict(
        checkpoint=str(saved.path),
        provenance=made,
        items=totals,
        arrays=arrays if every_array else None,
        config={name: value for name, (_, value) in settings.items()},
    )


def diff(console: Console, a: Saved, b: Saved, values: bool = False) -> dict[str, Any]:
    """Prints what two steps differ in; returns the same."""
    found = differing.differences(a, b)
    console.print(f"A is {a.path}\nB is {b.path}")
    for title, pairs in (("config", found.config), ("how it was made", found.made)):
        if pairs:
            table = _table(title, "A", "B")
            for name, (had, has) in pairs.items():
                _add(table, name, had, has)
            console.print(table)
    for item, held in found.arrays.items():
        table = _table(f"arrays of {item}", "A", "B")
        for name, pair in held.items():
            _add(table, name, *(about and f"{_shape(about)} {about['dtype']}" for about in pair))
        console.print(table)
    if found.none:
        console.print("configs, how they were made, and arrays' shapes and dtypes are the same")
    rows = []
    if values:
        table = _table("values of", "array", "largest difference", "relative to the larger")
        for row in differing.values(a, b):
            rows.append(dataclasses.asdict(row))
            figures = (f"{row.absolute:.3g}", f"{row.relative:.3g}")
            _add(table, row.item, row.name, *(("equal bits", "") if row.equal else figures))
        console.print(table)
        equal = sum(row["equal"] for row in rows)
        console.print(f"{equal:,} of {len(rows):,} arrays of the same shape have equal bits")
    differences = dataclasses.asdict(found)
    return dict(checkpoint=str(a.path), other=str(b.path), **differences, values=rows or None)


def verify(console: Console, found: Found) -> dict[str, Any]:
    """Prints whether each step holds what was written; returns the same."""
    rows = []
    if not found.saved:
        raise UserError(f"{found.path} holds no saved step; name another run.")
    for step in found.saved:
        begun = time.monotonic()
        damage = step.damage()
        seconds = time.monotonic() - begun
        held = step.found.manifest
        size = sum(file.size for file in held.files.values()) if held else 0
        if damage:
            line = f"damaged: {counted(damage)}"
        elif step.has_checksums:
            line = f"{listing.state(step)}, {written(size)} verified in {seconds:.2g} s"
        else:
            line = f"whole by sizes alone, {written(size)}; format 1 has no checksums"
        console.print(f"{step.name}: {line}")
        rows.append(
            dict(
                path=str(step.path),
                step=step.number,
                damage=damage,
                checksums=step.has_checksums,
                bytes=size,
                seconds=seconds,
            )
        )
    for name in found.others:
        console.print(f"{name}: not looked at; it is no step")
    whole = not any(row["damage"] for row in rows)
    return dict(checkpoint=str(found.path), whole=whole, steps=rows, others=list(found.others))


def prune(
    console: Console,
    checkpoint: str,
    keep: int,
    keep_every: int = 0,
    damaged: bool = False,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Deletes steps, saying which; returns the same."""

    def say(verdict: pruning.Verdict) -> None:
        goes = "would be deleted" if dry_run else "deleted"
        fate = f"{goes}, {written(verdict.size)}" if verdict.goes else "stays"
        why = f" ({verdict.why})" if verdict.why else ""
        console.print(f"{verdict.name}: {fate}{why}")

    verdicts = pruning.prune(checkpoint, keep, keep_every, damaged, dry_run, say)
    freed = sum(verdict.size for verdict in verdicts if verdict.goes)
    count = sum(verdict.goes for verdict in verdicts)
    would = "would be freed" if dry_run else "freed"
    console.print(f"{written(freed)} {would}, by {count:,} of {len(verdicts):,}")
    rows = [dict(dataclasses.asdict(v), path=str(v.path)) for v in verdicts]
    return dict(checkpoint=checkpoint, dry_run=dry_run, freed=freed, steps=rows)


def export(
    console: Console,
    checkpoint: str,
    to: str,
    ema: bool = False,
    dtype: str | None = None,
    kind: str = "safetensors",
) -> dict[str, Any]:
    """Writes a model for other programs, or as a saved model; returns what was written."""
    folder = exporting.target(to)
    item = EMA if ema else MODEL
    saved = open_one(checkpoint, (item,), say=console.print)
    if not saved.holds(item):
        raise UserError(f"{saved.path} holds no average of the parameters; leave --ema out.")
    write = exporting.export_model if kind == "model" else exporting.export_tensors
    done = write(saved, folder, item, dtype)
    console.print(
        f"{done.path}: {done.tensors:,} tensors, {done.elements:,} elements, {written(done.bytes)} "
        f"of {', '.join(done.dtypes)}, from {item} of {done.source}"
    )
    return dataclasses.asdict(done) | dict(path=str(done.path), source=str(done.source), item=item)


def _shape(about: Any) -> str:
    return " x ".join(map(str, about["shape"])) or "scalar"


def _table(*columns: str, title: str | None = None) -> Table:
    numbers = ("bytes", "processes", "arrays", "elements")
    table = Table(title=title, box=box.SIMPLE, show_edge=False, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    return table


def _add(table: Table, *cells: Any) -> None:
    # Names may hold brackets, which rich would read.
    table.add_row(*(Text("-" if cell is None else str(cell)) for cell in cells))


if __name__ == "__main__":
    command.run(main, _define_flags, verbs=VERBS)
