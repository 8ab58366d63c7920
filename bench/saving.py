"""``python -m bench.saving``: what a step takes longer while its run saves, interleaved.

Each contender takes the same training steps; some of them save as ``train.loop`` does. All that a
save takes counts: the seconds in which no step is begun, and what the thread that writes takes from
those that compute. A round ends when its last save is whole.
"""

import statistics

from absl import flags
from rich import box
from rich.console import Console
from rich.table import Table

from bench.rounds import Contender, interleave, ratio
from bench.shapes import SHAPES
from configs import command
from configs.errors import UserError, nearest
from configs.figures import define_json, write_json


def _define_flags() -> None:
    flags.DEFINE_string("shape", "small", f"One of {', '.join(SHAPES)}.")
    flags.DEFINE_list("every", ["500", "100"], "Steps between saves; the default's, and closer.")
    flags.DEFINE_integer("steps", 500, "Steps of a round.", lower_bound=1)
    flags.DEFINE_integer("rounds", 5, "Rounds; each contender runs in each.", lower_bound=1)
    define_json()


def main() -> None:
    """Measures steps without saves and with them, and prints one table."""
    values = flags.FLAGS
    if values.shape not in SHAPES:
        hint = nearest(values.shape, SHAPES)
        raise UserError(f"--shape={values.shape} is no shape{hint}; choose of {', '.join(SHAPES)}.")
    everies = sorted({int(every) for every in values.every if every.isdecimal()})
    if len(everies) != len(values.every) or any(n < 1 or values.steps % n for n in everies):
        raise UserError(
            f"--every={','.join(values.every)} must be different whole numbers that divide "
            f"--steps={values.steps}."
        )
    contenders = {
        every: Contender("manyheads:Saving", shape=values.shape, every=every)
        for every in [0, *everies]
    }
    named = {f"every {every}": contender for every, contender in contenders.items()}
    interleave(named, values.rounds, values.steps)
    rows = []
    for every, contender in contenders.items():
        seconds = [answer["seconds"] for answer in contender.answers]
        saves = sum(answer["saves"] for answer in contender.answers)
        waited = sum(answer["waited"] for answer in contender.answers)
        row = dict(every=every, seconds=statistics.median(seconds))
        if every:
            row["saves"], row["seconds_each"] = saves, waited / max(1, saves)
            row["ratio"] = ratio([a["seconds"] for a in contenders[0].answers], seconds)
            row["bytes"] = contender.answers[-1]["bytes"]
        rows.append(row)
    for contender in contenders.values():
        contender.close()
    table = Table(box=box.SIMPLE, show_edge=False)
    for name in ("saved every", "MB", "ms a step", "ms of loop a save", "x without saves"):
        table.add_column(name, justify="right")
    for row in rows:
        if row["every"]:
            spread = "{median:.4f} ({lowest:.4f}-{highest:.4f})".format(**row["ratio"])
            more = (f"{row['seconds_each'] * 1e3:.1f}", spread)
            first = (f"{row['every']} steps", f"{row['bytes'] / 1e6:.1f}")
        else:
            more, first = ("", ""), ("never", "")
        table.add_row(*first, f"{row['seconds'] * 1e3:.2f}", *more)
    table.caption = (
        f"{values.shape}, float32; {values.rounds} interleaved rounds of {values.steps} steps, "
        "medians (lowest-highest)"
    )
    Console(highlight=False).print(table)
    if values.json:
        write_json(values.json, dict(shape=values.shape, steps=values.steps, rows=rows))


if __name__ == "__main__":
    command.run(main, _define_flags)
