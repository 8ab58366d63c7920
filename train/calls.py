"""The calls of the compiled step that a run is cut into, and what is due after a step."""

from collections.abc import Iterator, Sequence


def calls(
    start: int,
    steps: int,
    steps_per_call: int,
    everies: Sequence[int] = (),
    edges: Sequence[int] = (),
) -> Iterator[range]:
    """Yields the steps of each call, to the last of the run.

    Args:
      start: steps taken before.
      steps: of the run.
      steps_per_call: of a call at most.
      everies: no call passes a multiple of these; 0 is not counted.
      edges: nor one of these steps.
    """
    while start < steps:
        ends = [start + steps_per_call, steps, *(edge for edge in edges if edge > start)]
        stop = min(*ends, *((start // every + 1) * every for every in everies if every))
        yield range(start, stop)
        start = stop


def due(every: int, step: int) -> bool:
    """Tells whether what happens every so many steps happens after this one; 0: never."""
    return every > 0 and step % every == 0
