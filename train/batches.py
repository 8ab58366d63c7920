"""Batches on a mesh: a pure function of seed, step and what is left out; each process its rows."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from model.axes import ShardingRules
from text.reading import RowSource
from text.rows import Rows
from train.skipped import NONE, Skipped

Batch = Rows  # on a mesh


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
      mesh: that the arrays are sharded over.
      rules: say how.
    """
    axes = ("batch", "length") if numbers.ndim == 1 else (None, "batch", "length")
    with jax.set_mesh(mesh):
        spec = rules.spec(axes) or PartitionSpec()
    sharding = NamedSharding(mesh, spec)
    made: dict[str, Rows] = {}

    def local(index: tuple[slice, ...]) -> Rows:
        """Makes the rows of one device, once for all that hold the same."""
        if str(index) not in made:
            shard = numbers[index]
            rows = make(shard.reshape(-1))
            made[str(index)] = jax.tree.map(lambda a: a.reshape(*shard.shape, -1), rows)
        return made[str(index)]

    by_rows = NamedSharding(mesh, PartitionSpec(*spec[: numbers.ndim]))
    mine = by_rows.addressable_devices_indices_map(numbers.shape).values()
    leaves, structure = jax.tree.flatten(local(next(index for index in mine if index is not None)))

    def whole(leaf: int) -> jax.Array:
        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            return jax.tree.leaves(local(index[:-1]))[leaf][..., index[-1]]

        shape = (*numbers.shape, leaves[leaf].shape[-1])
        return jax.make_array_from_callback(shape, sharding, part)

    return jax.tree.unflatten(structure, map(whole, range(len(leaves))))


def training_batches(
    source: RowSource,
    batch_size: int,
    calls: Iterable[range],
    slots: int,
    mesh: Mesh,
    rules: ShardingRules,
    prefetch: int,
    skipped: Skipped = NONE,
) -> Iterator[tuple[range, Batch]]:
    """Yields each call of the step with its stacked batches, made ahead by a thread.

    Args:
      source: of rows.
      batch_size: sequences a step.
      calls: the steps of each call; batch b has the rows b B to (b + 1) B of the endless order.
      slots: batches in a stack; a call with fewer steps repeats its last.
      mesh: that the arrays are sharded over.
      rules: say how.
      prefetch: stacks made ahead.
      skipped: the batches that no step takes.
    """

    def make(call: range) -> Batch:
        own = np.array([skipped.batch(step) for step in call])
        taken = np.pad(own, (0, slots - len(call)), mode="edge")
        numbers = taken[:, None] * batch_size + np.arange(batch_size)
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
