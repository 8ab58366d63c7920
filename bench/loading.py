"""Making batches alone, in tokens a second."""

from collections.abc import Sequence

from bench.rounds import Contender, interleave, summary
from bench.shapes import SHAPES


def measure(shapes: Sequence[str], rounds: int) -> list[dict]:
    """Returns a row a shape.

    Args:
      shapes: names of shapes.
      rounds: measured.
    """
    rows = []
    for name in shapes:
        contenders = {"manyheads": Contender("manyheads:Loading", shape=name)}
        interleave(contenders, rounds, max(20, SHAPES[name].steps))
        for row in summary(contenders):
            row["tokens_per_second"] = SHAPES[name].tokens / row["seconds"]
            rows.append(dict(measure="loading", shape=name, precision="", **row))
    return rows
