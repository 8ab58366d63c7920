"""A plan carried out: parameters read, changed and placed, one after the other and sharded.

A device holds its shards of the network and, beside them, its shards of what one change reads; of
what a rule mixes it holds at most one layer.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from model.parameter import named_arrays
from model.saved import Saved
from model.surgery.change import Change, kept
from model.surgery.plan import Plan
from model.transformer import Transformer

_TOGETHER = 1 << 25  # elements that are read at once where they are of several changes


def transfer(
    plan: Plan,
    saved: Saved,
    item: str,
    old: Transformer,
    model: Transformer,
    draw: Callable[[Sequence[str]], dict[str, Array]],
    mesh: Mesh,
    options: dict[str, Any] | None = None,
) -> tuple[dict[str, Array], list[float | None]]:
    """Returns a network's parameters by name, and the relative error of each change of the plan.

    Args:
      plan: what is taken, of ``old`` for ``model``.
      saved: where it is read.
      item: of it that holds the parameters, or their average.
      old: the network that was saved, abstract.
      model: the network to begin with, abstract, with its shardings.
      draw: returns what a fresh start has for some parameters.
      mesh: that is set.
      options: of the compiler.

    Returns:
      The parameters; for each of ``plan.changed`` the norm of what is lost over the norm of all, or
      None where nothing is.

    Raises:
      UserError: a file cannot be read.
    """
    before, after = named_arrays(old), named_arrays(model)
    same = {one.path: after[one.path] for one in plan.same}
    arrays = saved.load(item, same, mesh) if same else {}
    if plan.new:
        arrays |= draw([one.path for one in plan.new])
    squares: list[tuple[Array, Array]] = []
    for changes in _batches(plan.changed):
        wide = {
            stack.path: jax.ShapeDtypeStruct(
                stack.shape, jnp.float32, sharding=before[stack.path].sharding
            )
            for change in changes
            for stack in _stacks(change)
        }
        read = saved.load(item, wide, mesh)
        apply = functools.partial(_apply, changes, after)
        fresh = draw([one.path for change in changes for one in change.made])
        # What was read is given up before the next is read.
        made, lost = jax.block_until_ready(jax.jit(apply, compiler_options=options)(read, fresh))
        del read, fresh
        arrays |= made
        squares += lost
    errors = [
        math.sqrt(float(lost) / max(float(whole), 1e-37)) if change.approximate else None
        for change, (lost, whole) in zip(plan.changed, squares, strict=True)
    ]
    return arrays, errors


def _stacks(change: Change) -> list[Any]:
    """Returns the saved stacks that a change reads."""
    needed = {stack for stack, _ in change.picks}
    return [
        stack
        for family in change.read
        for i, stack in enumerate(family.stacks)
        if not change.picks or i in needed
    ]


def _batches(changes: Sequence[Change]) -> Iterator[list[Change]]:
    """Cuts changes into those that are read and compiled together: small ones."""
    batch: list[Change] = []
    elements = 0
    for change in changes:
        size = sum(stack.size for stack in _stacks(change))
        if batch and elements + size > _TOGETHER:
            yield batch
            batch, elements = [], 0
        batch.append(change)
        elements += size
    if batch:
        yield batch


def _apply(
    changes: Sequence[Change],
    targets: Mapping[str, Any],
    read: Mapping[str, Array],
    fresh: Mapping[str, Array],
) -> tuple[dict[str, Array], list[tuple[Array, Array]]]:
    """Makes the parameters of some changes, and the squares of what each loses, and of all."""
    arrays: dict[str, Array] = {}
    squares = []
    for change in changes:
        paths = [one.path for one in change.made]
        given = [targets[path] for path in paths], read, [fresh[path] for path in paths]
        made, lost, whole = _made(change, *given)
        arrays |= dict(zip(paths, made, strict=True))
        squares.append((lost, whole))
    return arrays, squares


def _made(
    change: Change, targets: Sequence[Any], read: Mapping[str, Array], fresh: Sequence[Array]
) -> tuple[list[Array], Array, Array]:
    """Makes the parameters of a change; its rule sees one layer at a time."""
    layered = bool(change.picks)

    def one(saved: Sequence[Array], new: Sequence[Array]) -> tuple[list[Array], Array, Array]:
        made, lost, whole = change.rule(saved, [x.astype(jnp.float32) for x in new])
        parts = [target.sharding.spec for target in targets]
        if layered and change.rule is not kept:  # of one layer, whose own axis is never split
            parts = [PartitionSpec(*spec[1:]) for spec in parts]
        placed = [jax.sharding.reshard(x, spec) for x, spec in zip(made, parts, strict=True)]
        return [x.astype(t.dtype) for x, t in zip(placed, targets, strict=True)], lost, whole

    if not layered:
        return one([read[family.stacks[0].path] for family in change.read], fresh)
    count = len(change.picks)
    saved = [
        _picked(
            {i: read[s.path] for i, s in enumerate(family.stacks) if s.path in read}, change.picks
        )
        for family in change.read
    ]
    given = saved, [x[:count] for x in fresh]
    made, lost, whole = (
        one(*given) if change.rule is kept else jax.lax.map(lambda x: one(*x), given)
    )
    joined = [
        array if count == len(new) else jnp.concatenate([array, new[count:]])
        for array, new in zip(made, fresh, strict=True)
    ]
    return joined, lost.sum(), whole.sum()


def _picked(stacks: Mapping[int, Array], picks: Sequence[tuple[int, int]]) -> Array:
    """Returns layers of stacks, in the order of the picks."""
    (stack, first), count = picks[0], len(picks)
    if all(pick == (stack, first + i) for i, pick in enumerate(picks)):
        return stacks[stack][first : first + count]
    return jnp.concatenate([stacks[i][at : at + 1] for i, at in picks])
