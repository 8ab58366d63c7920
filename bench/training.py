"""Training steps against GPT-2 in PyTorch: seconds, tokens a second, memory, and the loss."""

from collections.abc import Sequence

from bench.rounds import Contender, interleave, summary
from bench.shapes import SHAPES

PRECISIONS = ("float32", "bfloat16")


def measure(shapes: Sequence[str], rounds: int, peers: bool) -> list[dict]:
    """Returns a row a contender, shape and precision.

    Args:
      shapes: names of shapes.
      rounds: in which every contender runs once.
      peers: whether transformers and PyTorch are there.
    """
    rows = []
    for name in shapes:
        shape = SHAPES[name]
        for precision in PRECISIONS:
            common = dict(shape=name, precision=precision)
            contenders = {"manyheads": Contender("manyheads:Training", **common)}
            if peers:
                for label, compiled in (("eager", False), ("compiled", True)):
                    contenders[f"GPT-2 {label}"] = Contender(
                        "gpt2_torch:Training", **common, compiled=compiled
                    )
            interleave(contenders, rounds, shape.steps)
            for row in summary(contenders):
                row["tokens_per_second"] = shape.tokens / row["seconds"]
                rows.append(dict(measure="training", **common, **row))
    return rows
