"""Attention alone, forward and backward, as the context grows: seconds and peak memory."""

from collections.abc import Sequence

from bench.rounds import Contender, interleave, summary

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)


def measure(lengths: Sequence[int], rounds: int, peers: bool) -> list[dict]:
    """Returns a row a contender, length and precision; 12 heads of 64, one sequence.

    Args:
      lengths: tokens of the context.
      rounds: in which every contender runs once.
      peers: whether PyTorch is there.
    """
    rows = []
    for precision in ("float32", "bfloat16"):
        for length in lengths:
            common = dict(length=length, precision=precision)
            contenders = {"manyheads": Contender("manyheads:Attention", **common)}
            if peers:
                contenders["PyTorch fused"] = Contender("gpt2_torch:Attention", **common)
            interleave(contenders, rounds, max(1, 2048 // length))
            shape = f"T {length}"
            for row in summary(contenders):
                rows.append(dict(measure="attention", shape=shape, precision=precision, **row))
    return rows
