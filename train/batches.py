"""Batches on a mesh: a pure function of (seed, step), each process reading its own rows."""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import no_type_check

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int

from model.axes import ShardingRules
from text.reading import RowSource
from text.rows import Rows


@no_type_check  # as a pytree it also holds shapes and shardings
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Tokens and what to predict from them; arrays may have a leading axis of steps.

    Attributes:
      tokens: read by the model.
      labels: the token after each.
      counted: where the loss counts.
      positions: of each token in its document, or None for 0, 1, 2, ...
      segments: document of each token, or None where all is one.
    """

    tokens: Int[Array, "*steps B T"]
    labels: Int[Array, "*steps B T"]
    counted: Bool[Array, "*steps B T"]
    positions: Int[Array, "*steps B T"] | None = None
    segments: Int[Array, "*steps B T"] | None = None


def make_batch(
    make: Callable[[Int[np.ndarray, "b"]], Rows],
    numbers: Int[np.ndarray, "*steps B"],
    mesh: Mesh,
    rules: ShardingRules,
) -> Batch:
    """Makes the rows that this process' devices hold and puts them on the mesh.

    Args:
      make: rows by number, as ``CorpusRows.training``.
      numbers: of the batch's rows; a leading axis stacks the batches of several steps.
      mesh: that the arrays are split over.
      rules: say how.
    """
    axes = ("batch", "length") if numbers.ndim == 1 else (None, "batch", "length")
    with jax.set_mesh(mesh):
        spec = rules.spec(axes) or PartitionSpec()
    sharding = NamedSharding(mesh, spec)
    made: dict[tuple, dict[str, np.ndarray]] = {}

    def local(index: tuple[slice, ...]) -> dict[str, np.ndarray]:
        """Makes the rows of one device, once for all that hold the same."""
        key = tuple((s.start, s.stop) for s in index)
        if key not in made:
            own = numbers[index]
            rows = make(own.reshape(-1))
            made[key] = {n: a.reshape(*own.shape, a.shape[-1]) for n, a in rows.arrays().items()}
        return made[key]

    by_rows = NamedSharding(mesh, PartitionSpec(*spec[: numbers.ndim]))
    mine = by_rows.addressable_devices_indices_map(numbers.shape).values()
    sample = local(next(index for index in mine if index is not None))

    def whole(name: str) -> jax.Array:
        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            return local(index[:-1])[name][..., index[-1]]

        shape = (*numbers.shape, sample[name].shape[-1])
        return jax.make_array_from_callback(shape, sharding, part)

    return Batch(**{name: whole(name) for name in sample})


def training_batches(
    source: RowSource,
    batch_size: int,
    calls: Iterable[range],
    slots: int,
    mesh: Mesh,
    rules: ShardingRules,
    prefetch: int,
) -> Iterator[tuple[range, Batch]]:
    """Yields each call of the step with its stacked batches, made ahead by a thread.

    Args:
      source: of rows.
      batch_size: sequences a step.
      calls: the steps of each call; step s takes rows s B to (s + 1) B of the endless order.
      slots: batches in a stack; a call with fewer steps repeats its last.
      mesh: that the arrays are split over.
      rules: say how.
      prefetch: stacks made ahead.
    """

    def make(call: range) -> Batch:
        steps = np.pad(np.array(call), (0, slots - len(call)), mode="edge")
        numbers = steps[:, None] * batch_size + np.arange(batch_size)
        return make_batch(source.training, numbers, mesh, rules)

    with ThreadPoolExecutor(1) as thread:
        ahead: deque[tuple[range, Future[Batch]]] = deque()
        for call in calls:
            ahead.append((call, thread.submit(make, call)))
            if len(ahead) > prefetch:
                due, batch = ahead.popleft()
                yield due, batch.result()
        for due, batch in ahead:
            yield due, batch.result()


def evaluation_batches(
    source: RowSource,
    batch_size: int,
    count: int,
    mesh: Mesh,
    rules: ShardingRules,
    accumulate: int = 1,
) -> Iterator[Batch]:
    """Yields the first ``count`` batches of held-out rows, in order; all of them when 0.

    Each comes in ``accumulate`` microbatches, since no more may fit.
    """
    every = -(-source.evaluation_rows // batch_size)
    size = batch_size // accumulate
    for i in range((min(count, every) if count else every) * accumulate):
        yield make_batch(source.evaluation, i * size + np.arange(size), mesh, rules)
