"""What a change of parameters is, and those of one parameter alone, read off its logical axes."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax import numpy as jnp
from jaxtyping import Array, Int

from configs.errors import UserError
from model.parameter import Declaration
from model.surgery.resizing import first_rows, is_repeated, regrouped, rows
from model.surgery.spread import spread

LETTERS = "abcdefgh"
COVERED = ("layers", "vocab", "positions", "kv_heads")  # axes for which there is a rule

# Makes parameters of the saved ones that a change reads and of fresh ones, all of one layer where
# they have layers; after them two sums of squares: of what is lost, and of all.
Rule = Callable[[Sequence[Array], Sequence[Array]], tuple[list[Array], Any, Any]]


@dataclasses.dataclass(frozen=True)
class Tokens:
    """A vocabulary that differs from the saved one."""

    rows: Int[np.ndarray, "v"]  # the saved number of each token; -1 for one that was not there
    words: str  # how they were matched


@dataclasses.dataclass(frozen=True)
class Family:
    """A saved parameter of all layers: the stacks that it is kept in; else itself alone."""

    name: str  # "blocks.*.attention.query"
    stacks: tuple[Declaration, ...]

    @property
    def layers(self) -> int:
        """Number of layers; 1 for a parameter of none."""
        return sum(stack.length("layers") for stack in self.stacks)

    @property
    def axes(self) -> tuple[str | None, ...]:
        """Logical axes of one layer's."""
        return without_layers(self.stacks[0])[0]


@dataclasses.dataclass(frozen=True)
class Change:
    """How parameters of a run are made of saved ones."""

    made: tuple[Declaration, ...]
    read: tuple[Family, ...]
    rule: Rule
    how: str  # in words; "" where no number changes
    picks: tuple[tuple[int, int], ...] = ()  # (stack, index) of each saved layer, in order
    approximate: bool = False


def name_of(declared: Declaration) -> tuple[str, int]:
    """Returns a parameter's name without the number of its stack, "*" instead, and that number."""
    if "layers" not in declared.axes:
        return declared.path, 0
    before, number, after = declared.path.split(".", 2)
    return f"{before}.*.{after}", int(number)


def families(declared: Sequence[Declaration]) -> dict[str, Family]:
    """Returns parameters by name, with their stacks in the order of the network."""
    found: dict[str, list[Declaration]] = {}
    for one in declared:
        found.setdefault(name_of(one)[0], []).append(one)
    for stacks in found.values():
        stacks.sort(key=lambda one: name_of(one)[1])
    return {name: Family(name, tuple(stacks)) for name, stacks in found.items()}


def without_layers(declared: Declaration) -> tuple[tuple[str | None, ...], tuple[int, ...]]:
    """Returns the axes and the shape of one layer's parameter."""
    first = declared.layers()[0]
    return first.axes, first.shape


def refused(saved: Declaration, wanted: Declaration) -> UserError:
    """Returns the sentence for a parameter that no rule fits."""
    lengths = enumerate(zip(wanted.axes, saved.shape, wanted.shape, strict=False))
    axes = [axis or str(i) for i, (axis, a, b) in lengths if a != b and axis not in COVERED]
    what = "its axes" if saved.axes != wanted.axes else f"axis {' or '.join(axes)}"
    return UserError(
        f"checkpoint.restore_from holds {saved.path} as {saved.shape}, this run {wanted.path} as "
        f"{wanted.shape}, and no rule changes {what}; restore the size in the config, or name the "
        "parameters to take with checkpoint.restore_only."
    )


def kept(saved: Sequence[Array], fresh: Sequence[Array]) -> tuple[list[Array], Any, Any]:
    """The rule that changes nothing."""
    del fresh
    return list(saved), jnp.zeros(()), jnp.zeros(())


def resized(
    saved: Declaration, wanted: Declaration, tokens: Tokens | None
) -> tuple[Rule, list[str], bool] | None:
    """Returns the rule that fits one layer's parameter, its words, and whether it approximates.

    Args:
      saved: as it was declared.
      wanted: as the run declares it.
      tokens: of a vocabulary that differs; None: it does not.

    Returns:
      None where the axes differ in a way that no rule covers.
    """
    axes, before = without_layers(saved)
    axes_after, after = without_layers(wanted)
    if len(before) != len(after) or (before != after and axes != axes_after):
        return None
    regroup: list[tuple[int, int]] = []  # (dimension, groups)
    fill: list[tuple[int, Callable[[Array, Array], Array]]] = []  # from saved and fresh rows
    words, approximate = [], False
    for i, (axis, old, new) in enumerate(zip(axes_after, before, after, strict=True)):
        if axis == "vocab" and tokens is not None:
            if new < len(tokens.rows) or old <= tokens.rows.max():
                return None
            padded = np.pad(tokens.rows, (0, new - len(tokens.rows)), constant_values=-1)
            fill.append((i, functools.partial(rows, numbers=padded)))
            words.append(tokens.words)
        elif old == new:
            continue
        elif axis == "positions":
            fill.append((i, first_rows))
            more = ", the others are new" if new > old else ""
            words.append(f"the first {min(old, new)} of {max(old, new)} positions{more}")
        elif axis == "kv_heads":
            regroup.append((i, new))
            repeated = is_repeated(old, new)
            approximate = not repeated
            how = "repeated to" if repeated else "averaged to"
            words.append(f"{old} key/value heads {how} {new}")
        else:
            return None
    if len(fill) > 1 or len(regroup) > 1:
        return None
    if not fill and not regroup:
        return kept, [], False

    def rule(saved: Sequence[Array], fresh: Sequence[Array]) -> tuple[list[Array], Any, Any]:
        (x,), (new,) = saved, fresh
        lost = whole = jnp.zeros(())
        for i, groups in regroup:
            x, lost, whole = regroup_along(i, x, groups)
        for i, function in fill:
            (x,) = along(i, lambda *given, function=function: (function(*given),), 0, x, new)
        return [x], lost, whole

    return rule, words, approximate


def regroup_along(axis: int, x: Array, groups: int) -> list[Array]:
    """Returns what ``regrouped`` does, along any axis and by all devices."""
    return along(axis, lambda x: regrouped(x, groups), 2, x)


def along(axis: int, function: Callable[..., tuple], sums: int, *arrays: Array) -> list[Array]:
    """Returns a function along the first axis of arrays along any, by all devices.

    It returns an array and some sums over all shares.
    """
    letters = LETTERS[: arrays[0].ndim]
    labels = letters.replace(letters[axis], "_")

    def first(*arrays: Array) -> tuple:
        array, *rest = function(*(jnp.moveaxis(x, axis, 0) for x in arrays))
        return jnp.moveaxis(array, 0, axis), *rest

    pattern = f"{','.join([labels] * len(arrays))}->{labels}{',+' * sums}"
    return spread(first, pattern, *arrays)
