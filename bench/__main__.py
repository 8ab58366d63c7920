"""``python -m bench``: this project and its peers, interleaved, as ratios with their spread."""

import importlib.util
import os
import platform
from collections.abc import Callable
from datetime import date

from absl import flags
from rich import box
from rich.console import Console
from rich.table import Table

from bench import attention, decoding, loading, startup, training
from bench.shapes import SHAPES
from configs import command
from configs.errors import UserError, nearest
from configs.figures import define_json, write_json

PEERS = ("torch", "transformers")
MEASURES = ("training", "decoding", "attention", "start-up", "loading")


def _define_flags() -> None:
    flags.DEFINE_list("only", list(MEASURES), f"Of {', '.join(MEASURES)}.")
    flags.DEFINE_list("shapes", list(SHAPES), f"Of {', '.join(SHAPES)}.")
    flags.DEFINE_list("lengths", [str(n) for n in attention.LENGTHS], "Contexts of attention.")
    flags.DEFINE_integer("rounds", 5, "Rounds; each contender runs in each.", lower_bound=1)
    define_json()


def main() -> None:
    """Measures what ``--only`` names and prints one table."""
    values = flags.FLAGS
    for given, known in ((values.only, MEASURES), (values.shapes, tuple(SHAPES))):
        for name in given:
            if name not in known:
                hint = nearest(name, known)
                raise UserError(f"{name!r} is not measured{hint}; choose of {', '.join(known)}.")
    try:
        lengths = [int(length) for length in values.lengths]
    except ValueError as error:
        raise UserError(f"--lengths={','.join(values.lengths)} must be whole numbers.") from error
    missing = [name for name in PEERS if importlib.util.find_spec(name) is None]
    console = Console(highlight=False)
    if missing:
        console.print(
            f"without peers: {' and '.join(missing)} not installed (pip install -e '.[peers]')"
        )
    peers, rounds = not missing, values.rounds
    run: dict[str, Callable[[], list[dict]]] = {
        "training": lambda: training.measure(values.shapes, rounds, peers),
        "decoding": lambda: decoding.measure(rounds, peers),
        "attention": lambda: attention.measure(lengths, rounds, peers),
        "start-up": lambda: startup.measure(rounds, peers),
        "loading": lambda: loading.measure(values.shapes, rounds),
    }
    rows = [row for name in values.only for row in run[name]()]
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    table = render(rows)
    interleaved = f"{rounds} interleaved rounds, medians (lowest-highest)"
    table.caption = f"{date.today()}, {machine}; {interleaved}"
    Console(highlight=False, width=None if console.is_terminal else 120).print(table)
    if values.json:
        write_json(values.json, dict(date=str(date.today()), machine=machine, rows=rows))


def render(rows: list[dict]) -> Table:
    """Returns the table of all rows."""
    table = Table(box=box.SIMPLE, show_edge=False)
    for name in ("measure", "shape", "precision", "contender"):
        table.add_column(name)
    for name in ("ms", "tokens/s", "peak GiB", "own GiB", "loss", "x fastest peer"):
        table.add_column(name, justify="right")
    for row in rows:
        ratio = row.get("ratio")
        table.add_row(
            *(row[name] for name in ("measure", "shape", "precision", "contender")),
            f"{row['seconds'] * 1e3:,.1f}",
            f"{row['tokens_per_second']:,.0f}" if "tokens_per_second" in row else "",
            f"{row['peak_bytes'] / 2**30:.2f}" if "peak_bytes" in row else "",
            f"{(row['peak_bytes'] - row['libraries_bytes']) / 2**30:.2f}"
            if "libraries_bytes" in row
            else "",
            f"{row['loss']:.4f}" if "loss" in row else "",
            f"{ratio['median']:.2f} ({ratio['lowest']:.2f}-{ratio['highest']:.2f})"
            if ratio
            else "",
        )
    return table


if __name__ == "__main__":
    command.run(main, _define_flags)
