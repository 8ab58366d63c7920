"""Sweeps: one config over many settings, one run after another.

``python -m launch.sweep --config=configs/sweeps/toy.py --workdir=runs/sweep``

A sweep is a config file that also has ``get_hyper(hyper)``, which says the settings with
``hyper.product``, ``hyper.zip`` and ``hyper.choices``. Each run's folder is named by a digest of
its resolved config, so the same command again skips what is finished and goes on with what
is not, and a setting that is added later joins what is there.
"""

from configs import keyboard

if __name__ == "__main__":
    keyboard.end_at_once()  # the imports below take seconds

import importlib.util
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from rich import box
from rich.console import Console
from rich.table import Table

from configs import base, command, resolved
from configs.console import SteadyConsole
from configs.errors import UserError, nearest
from configs.figures import write_json
from configs.files import write_text
from configs.folders import folder
from model.compiled import keep_compiled
from text.reading import open_sources
from train import metrics
from train.checkpoints import check_corpus, newest
from train.loop import Outcome, train
from train.processes import joining

Setting = dict[str, Any]
OUTCOME = "outcome.json"


class Hyper:
    """Says the settings of a sweep; each is a dict of dotted field names to values."""

    def choices(self, name: str, values: Iterable[Any]) -> list[Setting]:
        """Returns a setting for each value of one field: ``choices("seed", range(3))``.

        Raises:
          UserError: the values are no list.
        """
        if isinstance(values, str) or not isinstance(values, Iterable):
            raise UserError(f"hyper.choices({name!r}, {values!r}) takes a list; mend get_hyper.")
        return [{name: value} for value in values]

    def product(self, *axes: Sequence[Setting]) -> list[Setting]:
        """Returns every combination of a setting from each axis, the last axis fastest."""
        return [_merged(parts) for parts in itertools.product(*axes)]

    def zip(self, *axes: Sequence[Setting]) -> list[Setting]:
        """Returns the first settings of all axes together, then the second ones, and so on.

        Raises:
          UserError: the axes are not equally long.
        """
        if len({len(axis) for axis in axes}) > 1:
            lengths = ", ".join(str(len(axis)) for axis in axes)
            raise UserError(f"hyper.zip takes axes of one length, not {lengths}; mend get_hyper.")
        return [_merged(parts) for parts in zip(*axes, strict=True)]


def _merged(parts: Iterable[Setting]) -> Setting:
    merged: Setting = {}
    for part in parts:
        for name in part:
            if name in merged:
                raise UserError(f"the sweep sets config.{name} twice in one run; mend get_hyper.")
        merged.update(part)
    return merged


def trials(
    config: ConfigDict, settings: Sequence[Setting]
) -> list[tuple[str, Setting, ConfigDict]]:
    """Returns name, setting and config of each run; equal configs are run once.

    Raises:
      UserError: a setting names no field, or gives it a value of another type.
    """
    by_digest: dict[str, tuple[str, Setting, ConfigDict]] = {}
    known = resolved.fields(base.get_config())
    for setting in settings:
        own = config.copy_and_resolve_references()
        for name, value in setting.items():
            if name not in known:
                near = nearest(str(name), known)
                raise UserError(f"get_hyper sets config.{name}, no field{near}; name one.")
            section, _, field = name.rpartition(".")
            try:
                setattr(own[section] if section else own, field, value)
            except TypeError as error:
                raise UserError(
                    f"get_hyper sets config.{name} to {value!r}, but it is {known[name]}."
                ) from error
        resolved.check_fields(own)
        digest = resolved.digest(own)
        by_digest.setdefault(digest, (digest, setting, own))
    return list(by_digest.values())


def sweep(
    config: ConfigDict,
    settings: Sequence[Setting],
    workdir: Path,
    console: Console,
    run: Callable[[ConfigDict, Path, Console], Outcome] = train,
) -> list[dict[str, Any]]:
    """Runs all settings in folders below ``workdir``; finished ones are read, not run.

    A run that a mistake or a lack of memory ends is reported as failed and the others go on.

    Args:
      config: what the settings change.
      settings: from ``get_hyper``.
      workdir: holds a folder a run.
      console: for progress.
      run: trains one config.

    Returns:
      A row for each run: its name, status ("finished", "skipped", "stopped" or the error), setting,
      steps and figures, and the signal that stopped it.
    """
    rows: list[dict[str, Any]] = []
    all_trials = trials(config, settings)
    for number, (name, setting, own) in enumerate(all_trials, 1):
        folder = workdir / name
        title = ", ".join(f"{k}={v}" for k, v in setting.items()) or "as configured"
        console.print(f"[{number}/{len(all_trials)}] {name}: {title}", markup=False)
        try:
            before = _finished(folder, own)
            if before is not None:
                console.print("finished before", highlight=False)
                rows.append(dict(before, name=name, setting=setting, status="skipped"))
                continue
            outcome = run(own, folder, console)
        except (UserError, RuntimeError, MemoryError) as error:  # jax's own are RuntimeErrors
            rows.append(dict(name=name, setting=setting, status=f"failed: {error}"))
            console.print(f"failed: {error}", markup=False, highlight=False)
            continue
        figures: dict[str, Any] = dict(
            step=outcome.step, loss=_last_loss(folder), evaluation=outcome.evaluation
        )
        if outcome.signal is not None:
            stopped = dict(figures, status="stopped", signal=outcome.signal)
            rows.append(dict(stopped, name=name, setting=setting))
            break
        write_text(folder / OUTCOME, json.dumps(figures) + "\n")
        rows.append(dict(figures, name=name, setting=setting, status="finished"))
    return rows


def _finished(folder: Path, config: ConfigDict) -> dict[str, Any] | None:
    """Returns the figures of a finished run, or None where it is not finished.

    Raises:
      UserError: it was trained on another text than the config reads now.
    """
    try:
        figures = json.loads((folder / OUTCOME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    saved = newest(folder)
    if saved is not None and saved.corpus is not None:
        try:
            digest = open_sources(config).digest
        except UserError:  # figures outlive their text
            return figures
        check_corpus(saved, digest)
    return figures


def _last_loss(folder: Path) -> float | None:
    losses = [row["loss"] for row in metrics.read(folder) if "loss" in row]
    return losses[-1] if losses else None


def render(rows: Sequence[dict[str, Any]]) -> Table:
    """Returns the table of a sweep, best held-out loss first."""
    names = sorted({name for row in rows for name in row["setting"]})
    table = Table(box=box.SIMPLE, show_edge=False)
    for column in ("run", *names, "status", "steps", "loss", "held-out loss"):
        table.add_column(column)

    def held_out(row: dict[str, Any]) -> float:
        return row.get("evaluation", {}).get("loss", math.inf)

    def shown(value: float | None) -> str:
        return "" if value is None or not math.isfinite(value) else f"{value:.4f}"

    for row in sorted(rows, key=held_out):
        settings = [str(row["setting"].get(name, "")) for name in names]
        steps = str(row.get("step", ""))
        cells = [row["name"], *settings, row["status"], steps]
        table.add_row(*cells, shown(row.get("loss")), shown(held_out(row)))
    return table


def settings_of(path: str) -> list[Setting]:
    """Returns what the ``get_hyper`` of a config file says.

    Raises:
      UserError: the file has no ``get_hyper``, or it returns no settings.
    """
    module = _load(path)
    if not hasattr(module, "get_hyper"):
        raise UserError(f"{path} has no get_hyper(hyper); add one that returns the settings.")
    try:
        settings = list(module.get_hyper(Hyper()) or [])
    except UserError:
        raise
    except Exception as error:  # a user's function may raise anything
        raise UserError(
            f"get_hyper of {path} does not run ({type(error).__name__}: {error}); mend it."
        ) from error
    if not settings or not all(isinstance(setting, dict) for setting in settings):
        raise UserError(f"get_hyper of {path} returns no settings; return hyper.product(...) say.")
    return settings


def _load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("swept_config", path)
    if spec is None or spec.loader is None:
        raise UserError(f"the config {path!r} cannot be loaded; name a .py file.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _define_flags() -> None:
    command.define_config()
    flags.DEFINE_string("workdir", None, "Holds a folder for each run.")
    flags.DEFINE_string("json", None, "Also write the table's figures to this file.")


def main() -> None:
    """Runs the sweep of ``--config`` and prints its table; exits with 1 if a run failed."""
    keep_compiled()
    joining.check_alone("launch.sweep")
    config = command.config()
    resolved.check_fields(config)
    if not flags.FLAGS.workdir:
        raise UserError("--workdir is missing; name a folder for the sweep, say runs/sweep.")
    path = config_flags.get_config_filename(flags.FLAGS["config"]).split(":")[0]
    console = SteadyConsole()
    workdir = folder(flags.FLAGS.workdir, "--workdir")
    rows = sweep(config, settings_of(path), workdir, console)
    Console(width=None if console.is_terminal else 140).print(render(rows))
    if flags.FLAGS.json:
        write_json(flags.FLAGS.json, dict(runs=rows))
    console.check()
    for row in rows:
        if row["status"] == "stopped":
            sys.exit(128 + row["signal"])
    if any(row["status"].startswith("failed") for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    command.run(main, _define_flags)
