"""The product of an activation with parameters, or with another activation.

A parameter is cast to the type of the activation, gathered over the mesh axes that split its
``embed`` axis, and multiplied; sums are in a wider type. Backward, cotangents are rounded to the
type of the operands first, so that all three products of a matrix multiply the same type; a
parameter is gathered again rather than held, and its gradient comes out split as it is itself,
which is a reduce-scatter. What is summed over the mesh is rounded first, and an activation that is
split further than the product, as the residual stream may be, is gathered like a parameter.
"""

import math
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array

from model.axes import axes_of, mesh_axes, spec_of
from model.devices.choice import device
from model.gradients import with_gradient


def multiply(
    subscripts: str,
    x: Array,
    others: Sequence[Array],
    wide: str,
    gathered: Sequence[PartitionSpec | None],
    results: Sequence[PartitionSpec | None],
    reduced: str | None = None,
    gradients: str | None = None,
) -> list[Array]:
    """Returns ``einsum(subscripts, x, w)`` for each of several w; one sum makes x's cotangent.

    Args:
      subscripts: of two operands; each index stands in two of the three terms, or in all.
      x: an activation, of the type that is multiplied.
      others: parameters or activations of any type.
      wide: type of the sums, and of the results.
      gathered: how each of the others is sharded while it is multiplied; None: as it is.
      results: how each result is sharded over the mesh; None without a mesh. What splits an index
        of x and not the same one of a result is gathered first.
      reduced: type in which products are summed over the mesh; ``wide`` when None.
      gradients: the same, for the gradients of the others.
    """
    left, right, out = re.split(",|->", subscripts)
    reduced, gradients = reduced or wide, gradients or wide
    order = _gathered_first(right, others[0], gathered[0])

    def operands(x: Array, others: Sequence[Array]) -> list[Array]:
        cast = [w.astype(x.dtype) for w in others]
        return [_ordered(w, right, order, spec) for w, spec in zip(cast, gathered, strict=True)]

    def forward(x: Array, others: Sequence[Array]) -> list[Array]:
        x = _gathered(x, left, results[0], out)
        over = mesh_axes(
            part for i, part in zip(left, spec_of(x) or (), strict=False) if i not in out
        )
        parts = [_unreduced(spec, over) for spec in results]
        kind = reduced if over else wide
        products = device().products(f"{left},{order}->{out}", x, operands(x, others), kind, parts)
        return [
            y if part == spec else jax.sharding.reshard(y, spec)
            for y, part, spec in zip(products, parts, results, strict=True)
        ]

    def backward(arguments: tuple, _: None, cotangents: list[Array]) -> tuple:
        x, others = arguments
        own = spec_of(x)
        x = _gathered(x, left, results[0], out)
        ys = [_gathered(y.astype(x.dtype), out, spec_of(x), left) for y in cotangents]
        pairs: dict[PartitionSpec | None, list[tuple[Array, Array]]] = {}
        for y, w in zip(ys, operands(x, others), strict=True):
            spec = _partial(x, y, [out.index(i) for i in out if i not in left])
            pairs.setdefault(spec, []).append((y, w))
        # Parts of a sum over the mesh are added up before it.
        turned, sums = f"{out},{order}->{left}", []
        for spec, of_spec in pairs.items():
            kind = wide if spec is None or not spec.unreduced else reduced
            part = device().sum_of_products(turned, of_spec, kind, spec)
            sums.append(part if spec == own else jax.sharding.reshard(part, own))
        dx = sum(sums[1:], sums[0]).astype(x.dtype)
        specs = [spec_of(w) for w in others]
        dw = device().products(f"{left},{out}->{right}", x, ys, gradients, specs)
        return dx, [slope.astype(w.dtype) for slope, w in zip(dw, others, strict=True)]

    return with_gradient(forward, lambda *arguments: (forward(*arguments), None), backward)(
        x, list(others)
    )


def _gathered_first(indices: str, w: Array, spec: PartitionSpec | None) -> str:
    """Puts the index along which a parameter is gathered before the others.

    A TPU gathers along the outermost one, and would copy all to have it elsewhere.
    """
    own = spec_of(w)
    if own is None or spec is None:
        return indices
    parts = zip(indices, own, spec, strict=True)
    split = "".join(i for i, part, kept in parts if axes_of(part) != axes_of(kept))
    return "".join(dict.fromkeys(split + indices))


def _ordered(w: Array, indices: str, order: str, spec: PartitionSpec | None) -> Array:
    """Returns a parameter with its indices in another order, gathered as ``spec`` says."""
    turned = [indices.index(i) for i in order]
    w = w if order == indices else w.transpose(turned)
    return w if spec is None else jax.sharding.reshard(w, PartitionSpec(*(spec[n] for n in turned)))


def _gathered(x: Array, indices: str, like: PartitionSpec | None, of_like: str) -> Array:
    """Gathers x over mesh axes that split an index of it, and not the same one of ``like``."""
    spec = spec_of(x)
    if spec is None or like is None:
        return x
    others = dict(zip(of_like, like, strict=True))
    parts = [
        (axes_of(part), axes_of(others.get(i, part))) for i, part in zip(indices, spec, strict=True)
    ]
    if all({*own} <= {*other} for own, other in parts):
        return x
    kept = (tuple(a for a in own if a in other) or None for own, other in parts)
    return jax.sharding.reshard(x, PartitionSpec(*kept))


def _unreduced(spec: PartitionSpec | None, over: set[str]) -> PartitionSpec | None:
    """Returns the spec of a product before it is summed over some mesh axes."""
    if spec is None or not over:
        return spec
    kept = (tuple(a for a in axes_of(part) if a not in over) or None for part in spec)
    return PartitionSpec(*kept, unreduced=over)


def _partial(x: Array, y: Array, summed: list[int]) -> PartitionSpec | None:
    """Returns the spec of x for its cotangent by one product, before the sum over the mesh."""
    spec, of_y = spec_of(x), spec_of(y)
    if spec is None or of_y is None:
        return None
    axes = mesh_axes(of_y[i] for i in summed) - mesh_axes(spec)
    return PartitionSpec(*spec, unreduced=axes) if axes else spec


def lookup(
    table: Array,
    index: Array,
    dtype: str,
    gathered: PartitionSpec | None,
    result: PartitionSpec | None,
) -> Array:
    """Returns rows of a table; its gradient is summed in float32, as it is sharded itself.

    Args:
      table: [V, D].
      index: of the rows.
      dtype: of what is returned.
      gathered: how the table is sharded while it is read; None: as it is.
      result: how what is returned is sharded over the mesh; None without a mesh.
    """

    def rows(index: Array, table: Array) -> Array:
        if gathered is not None:
            table = jax.sharding.reshard(table, gathered)
        return table.at[index].get(out_sharding=result)

    def forward(index: Array, table: Array) -> Array:
        # Cast first, the smaller type is gathered; where nothing is, a few rows are cast.
        cast = table.astype(dtype) if any(spec_of(table) or ()) else table
        return rows(index, cast).astype(dtype)

    def backward(arguments: tuple, _: None, cotangent: Array) -> tuple:
        index, table = arguments
        slopes = _scattered(index, cotangent.astype(jnp.float32), table, gathered)
        return None, slopes.astype(table.dtype)

    return with_gradient(forward, lambda *args: (forward(*args), None), backward)(index, table)


def _scattered(
    index: Array, cotangent: Array, table: Array, gathered: PartitionSpec | None
) -> Array:
    """Adds what each token has to the row of a table that it read; sharded as the table is.

    Every device adds for its own tokens, and then the sum is scattered: XLA would sum the whole
    table over all devices first.
    """
    own, of_result = spec_of(table), spec_of(cotangent)
    if own is None or of_result is None or gathered is None:
        return jnp.zeros(table.shape, jnp.float32).at[index].add(cotangent)
    over_rows, over_width = axes_of(gathered[0]), axes_of(own[1])
    of_tokens = of_result[:-1]
    # In one order, which all processes have.
    over_tokens = [axis for part in of_tokens for axis in axes_of(part)]
    scattered = tuple(axis for axis in over_width if axis in over_tokens)
    rest = tuple(axis for axis in over_tokens if axis not in scattered)

    def local(index: Array, cotangent: Array) -> Array:
        sizes = jax.sharding.get_abstract_mesh().shape
        rows = table.shape[0] // math.prod(sizes[axis] for axis in over_rows)
        if over_rows:
            index = index - jax.lax.axis_index(over_rows) * rows
        index = jnp.where((index >= 0) & (index < rows), index, rows)
        sums = jnp.zeros((rows, table.shape[1]), jnp.float32).at[index].add(cotangent, mode="drop")
        if scattered:
            sums = jax.lax.psum_scatter(sums, scattered, scatter_dimension=1, tiled=True)
        return jax.lax.psum(sums, rest) if rest else sums

    index, cotangent = (
        jax.sharding.reshard(x, PartitionSpec(*of_tokens, *more))
        for x, more in ((index, ()), (cotangent, (None,)))
    )
    spec = PartitionSpec(gathered[0], scattered or None)
    sums = jax.shard_map(local, out_specs=spec, check_vma=False)(index, cotangent)
    return sums if spec == own else jax.sharding.reshard(sums, own)
