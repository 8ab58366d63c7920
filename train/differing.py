"""What two saved steps differ in: configs, how they were made, arrays and their values."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from configs import resolved
from model.axes import MESH_AXES, make_mesh
from model.saved import Saved
from train import showing

_PIECE = 1 << 20  # elements compared at once


@dataclasses.dataclass(frozen=True)
class Differences:
    """Of two saved steps, A and B; None is what one of them does not have."""

    config: dict[str, tuple[Any, Any]]
    made: dict[str, tuple[Any, Any]]
    arrays: dict[str, dict[str, tuple[Any, Any]]]  # (shape and dtype) by item and name

    @property
    def none(self) -> bool:
        """Tells whether there are none."""
        return not (self.config or self.made or self.arrays)


def differences(a: Saved, b: Saved) -> Differences:
    """Compares two saved steps by what their configs and manifests say.

    Raises:
      UserError: the arrays of format 1 cannot be read.
    """
    had, has = showing.arrays(a), showing.arrays(b)
    items = {item: _pairs(had.get(item, {}), has.get(item, {})) for item in {**had, **has}}
    return Differences(
        config=resolved.difference(a.config, b.config),
        made=_pairs(showing.provenance(a), showing.provenance(b)),
        arrays={item: pairs for item, pairs in items.items() if pairs},
    )


def _pairs(a: Any, b: Any) -> dict[str, tuple[Any, Any]]:
    names = list(dict.fromkeys([*a, *b]))
    return {n: (a.get(n), b.get(n)) for n in names if a.get(n) != b.get(n)}


@dataclasses.dataclass(frozen=True)
class Values:
    """How the values of an array of A differ from B's."""

    item: str
    name: str
    equal: bool  # to the bit
    absolute: float  # the largest difference; nan where one of them has a nan
    relative: float  # the largest difference over the larger of the two magnitudes


def values(a: Saved, b: Saved) -> Iterator[Values]:
    """Yields each array that both have in the same shape, compared: one is held at a time.

    Raises:
      UserError: an array cannot be read, or does not hold what was written.
    """
    had, has = showing.arrays(a), showing.arrays(b)
    for item, held in had.items():
        for name, about in held.items():
            other = has.get(item, {}).get(name)
            if other and list(other["shape"]) == list(about["shape"]):
                pair = read(a, item, name, about), read(b, item, name, other)
                yield Values(item, name, *compared(*pair))


def read(saved: Saved, item: str, name: str, about: Any) -> np.ndarray:
    """Returns one array of an item as it is stored.

    Args:
      saved: the step.
      item: such as "model".
      name: of the array.
      about: its shape and dtype.
    """
    mesh = make_mesh(dict.fromkeys(MESH_AXES, 1), devices=jax.devices("cpu")[:1])
    wanted = {name: jax.ShapeDtypeStruct(tuple(about["shape"]), about["dtype"])}
    array = saved.load(item, wanted, mesh)[name]
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)  # which was stored
    return np.asarray(array)


def compared(a: np.ndarray, b: np.ndarray) -> tuple[bool, float, float]:
    """Returns whether two arrays have equal bits, and their largest differences."""
    equal, absolute, relative = a.dtype == b.dtype, 0.0, 0.0
    flat_a, flat_b = a.reshape(-1), b.reshape(-1)
    for start in range(0, a.size, _PIECE):
        x, y = flat_a[start : start + _PIECE], flat_b[start : start + _PIECE]
        if a.dtype == b.dtype and np.array_equal(x.view(np.uint8), y.view(np.uint8)):
            continue
        equal, x, y = False, x.astype(np.float64), y.astype(np.float64)
        with np.errstate(all="ignore"):
            same = (x == y) | (np.isnan(x) & np.isnan(y))
            apart = np.where(same, 0.0, np.abs(x - y))
            larger = np.maximum(np.abs(x), np.abs(y))
            absolute = float(np.maximum(absolute, apart.max()))
            relative = float(np.maximum(relative, np.where(same, 0.0, apart / larger).max()))
    return equal, absolute, relative
