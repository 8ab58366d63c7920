"""Settings of mesh, remat and microbatches, the most promising compiled one after another."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import jax
from ml_collections import ConfigDict
from rich import box
from rich.filesize import decimal
from rich.table import Table

from configs import resolved
from configs.chips import Chip
from configs.errors import UserError
from launch.plan.estimate import MARGIN, REMAT, Estimate, Setting, estimate, settings
from launch.plan.figures import Figures
from model.config import ModelConfig
from model.tally import tally

# Compiles a config; returns its figures, or raises TooLarge; another UserError where it cannot be.
Compile = Callable[[ConfigDict], Figures]


# So many settings that are refused for one reason, and not for their size, are all of them.
ALIKE = 3


class TooLarge(UserError):
    """A setting does not fit the chips."""


@dataclasses.dataclass(frozen=True)
class Tried:
    """A setting that was compiled."""

    setting: Setting
    figures: dict[str, Any] | None  # None where it does not fit, or is refused
    refused: str  # why, else ""
    too_large: bool = False

    @property
    def seconds(self) -> float:
        """Of the shortest step; without published peaks, what stands in for it."""
        assert self.figures is not None
        found = self.figures["seconds"].get("step")
        wire = sum(w["bytes"] for w in self.figures["wire"])
        return (
            found
            if found is not None
            else Estimate(0, wire, self.figures["products"]).seconds(None)
        )


def candidates(
    config: ConfigDict, shape: ModelConfig, devices: int, chip: Chip | None
) -> list[tuple[Setting, Estimate]]:
    """Returns the settings that may fit, the fastest by estimate first.

    Raises:
      UserError: none divides, or none may fit.
    """
    counted = tally(shape, config.length)
    every = [(s, estimate(config, shape, counted, s)) for s in settings(config, shape, devices)]
    if not every:
        raise UserError(
            f"no mesh of {devices} devices divides this config; change batch_size, length or the "
            "model's sizes, or the number of chips."
        )
    most = float("inf") if chip is None else chip.memory * MARGIN
    fit = [pair for pair in every if pair[1].memory <= most]
    if not fit:
        least = min(e.memory for _, e in every)
        raise UserError(
            f"no setting fits: the smallest is estimated at {decimal(round(least))} a chip, which "
            f"has {decimal(round(most / MARGIN))}; take more chips."
        )

    def order(pair: tuple[Setting, Estimate]) -> tuple:
        setting, of_it = pair
        return of_it.seconds(chip), REMAT.index(setting.remat), setting.accumulate

    return sorted(fit, key=order)


def search(
    config: ConfigDict,
    ranked: list[tuple[Setting, Estimate]],
    compile: Compile,
    count: int,
    path: Path,
    topology: str,
    chip: Chip | None,
    say: Callable[[str], None],
) -> list[Tried]:
    """Compiles settings until so many have fit, and returns all that were tried, best first.

    Where a setting fits, the same with more microbatches is not tried: it sends more and computes
    as much.

    Args:
      config: resolved; a setting changes its fields.
      ranked: as of ``candidates``.
      compile: what compiles a config.
      count: settings that fit, after which to stop.
      path: a file of what was compiled before, a line each; new ones are added. What it holds of
        this config and topology is not compiled again.
      topology: its name.
      chip: of it, or None.
      say: shows a line of progress.

    Raises:
      UserError: several settings cannot be computed, for one and the same reason; or the file
        cannot be read and written.
    """
    run = f"{resolved.digest(config)} on {topology}, jax {jax.__version__}"
    known = _read(path, run)
    tried: list[Tried] = []
    fitted: set[tuple] = set()
    for setting, _ in ranked:
        if len(fitted) >= count:
            break
        but_microbatches = setting.mesh, setting.residual, setting.remat
        if but_microbatches in fitted:
            continue
        one = known.get(setting)
        how = "known" if one else "compiled"
        if one is None:
            changed = config.copy_and_resolve_references()
            changed.update_from_flattened_dict(setting.fields)
            try:
                one = Tried(setting, dataclasses.asdict(compile(changed)), "")
            except TooLarge as error:
                one = Tried(setting, None, str(error), too_large=True)
            except UserError as error:
                one = Tried(setting, None, str(error))
                if [other.refused for other in tried].count(one.refused) >= ALIKE - 1:
                    raise
            _write(path, run, one)
        tried.append(one)
        if one.figures is not None:
            fitted.add(but_microbatches)
        result = _words(one) + f": {one.refused}" * (not one.too_large and bool(one.refused))
        if one.figures is not None:
            result = f"{one.seconds:.3g} s a step" if chip else f"rank {one.seconds:.3g}"
        say(f"{len(fitted)} of {count}, {how}: {setting.flags}: {result}")
    fit = sorted((one for one in tried if one.figures is not None), key=lambda one: one.seconds)
    return fit + [one for one in tried if one.figures is None]


def render(tried: list[Tried], chip: Chip | None, title: str) -> Table:
    """Returns the table of a search."""
    table = Table(title=title, box=box.SIMPLE, show_edge=False, title_justify="left")
    table.add_column("data x fsdp x heads x context")
    table.add_column("residual")
    table.add_column("remat")
    for name in ("microbatches", "peak", "wire", "step" if chip else "rank"):
        table.add_column(name, justify="right")
    for one in tried:
        setting = one.setting
        words = [" x ".join(map(str, setting.mesh)), setting.residual, setting.remat]
        if one.figures is None:
            table.add_row(*words, str(setting.accumulate), _words(one), "", "")
            continue
        sent = sum(w["bytes"] for w in one.figures["wire"])
        peak = decimal(one.figures["memory"]["peak"])
        step = f"{one.seconds:.3g} s" if chip else f"{one.seconds:.3g}"
        table.add_row(*words, str(setting.accumulate), peak, decimal(round(sent)), step)
    return table


def _words(one: Tried) -> str:
    """Returns what became of a setting without figures."""
    return "does not fit" if one.too_large else "is refused"


def _read(path: Path, run: str) -> dict[Setting, Tried]:
    with _opened(path, "a+") as file:
        file.seek(0)
        lines = file.read().splitlines()
    found = {}
    for line in lines:
        try:
            row = json.loads(line)
            mesh = tuple(row["setting"].pop("mesh"))
            setting = Setting(mesh, **row["setting"])
            one = Tried(setting, row["figures"], row["refused"], row["too_large"])
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # a line that was cut off
        if row.get("run") == run:
            found[setting] = one
    return found


def _write(path: Path, run: str, one: Tried) -> None:
    row = dict(run=run, **dataclasses.asdict(one))
    with _opened(path, "a") as file:
        file.write(json.dumps(row) + "\n")


@contextlib.contextmanager
def _opened(path: Path, mode: str) -> Iterator[IO[str]]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, mode, encoding="utf-8", errors="replace") as file:
            yield file
    except OSError as error:
        raise UserError(
            f"{path} cannot be read and written ({error.strerror}); name another file by --results."
        ) from error
