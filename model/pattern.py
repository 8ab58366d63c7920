"""How an attention pattern is made of logits: a cap, hooks of a variant, and sinks."""

import dataclasses
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, no_type_check

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from configs.errors import UserError, first_line
from model.axes import Axes
from model.compute import Compute
from model.masks import Mask


@no_type_check  # as a pytree it also holds shapes and shardings
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pattern:
    """``softmax(mask(score(cap(q k^T / sqrt(K)))))``, with sinks in the denominator.

    The two hooks are written for one query, one key and one head, and know what they are given:
    ``query.position`` and ``key.position`` in the row, ``head.index``, and the arrays below, each
    by its own name. No key comes after its query. They use no other arrays, and may use any
    function of jax that has a finite slope there.

    Attributes:
      cap: logits become ``cap * tanh(logit / cap)`` first; None leaves them.
      score: ``(logit, query, key, head)`` to another logit; None leaves it.
      visible: ``(query, key, head)`` to whether the query sees the key, if the mask lets it.
      query: arrays that each query has, [B, h, T, ...]; h is H, or 1 for all heads.
      key: arrays that each key has, [B, h, S, ...].
      head: arrays that each head has, [H, ...].
      sink: a logit of each head that adds to the denominator of the softmax and to nothing else.
    """

    cap: float | None = dataclasses.field(default=None, metadata=dict(static=True))
    score: Callable[..., Any] | None = dataclasses.field(default=None, metadata=dict(static=True))
    visible: Callable[..., Any] | None = dataclasses.field(default=None, metadata=dict(static=True))
    query: dict[str, Float[Array, "B h T ..."]] = dataclasses.field(default_factory=dict)
    key: dict[str, Float[Array, "B h S ..."]] = dataclasses.field(default_factory=dict)
    head: dict[str, Float[Array, "H ..."]] = dataclasses.field(default_factory=dict)
    sink: Float[Array, "H"] | None = None

    def checked(self, rows: int, heads: int, queries: int, keys: int) -> "Pattern":
        """Returns the pattern with ``head.index``, if there is a hook to read it.

        Args: rows, heads, queries and keys of the call.

        Raises:
          UserError: an array has another shape or a taken name, or a hook is no function of one
            query, key and head.
        """
        for side, arrays, shape in (
            ("query", self.query, (rows, heads, queries)),
            ("key", self.key, (rows, heads, keys)),
            ("head", self.head, (heads,)),
            ("sink", {} if self.sink is None else {"": self.sink}, (heads,)),
        ):
            for name, x in arrays.items():
                # Rows and heads may agree.
                ones = [1, 1, shape[-1]] if len(shape) == 3 else shape
                found = getattr(x, "shape", ())
                begins = [n in sizes for n, *sizes in zip(found, shape, ones, strict=False)]
                if name in ("position", "index") or len(begins) < len(shape) or not all(begins):
                    raise UserError(
                        f"Pattern.{side} of model.attention has an array {name} {found}; its "
                        f"shape must begin with {shape}, and its name not be position or index."
                    )
        if self.cap is not None and not isinstance(self.cap, int | float):
            raise UserError("Pattern.cap of model.attention is no number; make an array a score.")
        if self.score is None and self.visible is None:
            return self
        for hook, (function, *logit) in self._hooks().items():
            try:
                program = jax.make_jaxpr(_by_arrays(function))(*logit, *self._example())
            except (AttributeError, TypeError) as error:
                raise UserError(
                    f"Pattern.{hook} of model.attention fails ({first_line(error)}); write it for "
                    "one query, key and head, with attributes of the names in Pattern's arrays."
                ) from error
            if any(isinstance(x, jax.core.Tracer) for x in program.consts):
                raise UserError(
                    f"Pattern.{hook} of model.attention reads an array that it was not given; "
                    "pass it as Pattern(head=...), or query= or key=."
                )
            if [(x.shape, x.dtype == bool) for x in program.out_avals] != [((), hook == "visible")]:
                raise UserError(
                    f"Pattern.{hook} of model.attention returns {program.out_avals}; return one "
                    f"{'bool' if hook == 'visible' else 'number'} for one query, key and head."
                )
        return dataclasses.replace(self, head={"index": jnp.arange(heads), **self.head})

    def scores(self, logits: Float[Array, "B H T S"], mask: Mask) -> Float[Array, "B H T S"]:
        """Returns what the softmax is taken of, before the mask."""
        if self.cap is not None:
            logits = self.cap * jnp.tanh(logits / self.cap)
        if self.score is None:
            return logits
        return self._each(self.score, mask, logits.shape[:2], logits).astype(logits.dtype)

    def seen(self, mask: Mask, rows: int, heads: int) -> Bool[Array, "b h T S"]:
        """Returns where a query sees a key; b or h may be 1, where all rows or heads agree."""
        seen = mask.visible()
        if self.visible is None:
            return seen
        return seen & self._each(self.visible, mask, (rows, heads))

    def _each(self, function: Callable, mask: Mask, shape: Sequence[int], *logits: Array) -> Array:
        """Calls a function of one query, key and head for all."""

        def attributes(position: Array, arrays: dict[str, Array]) -> dict[str, Array]:
            every = {"position": position[:, None], **arrays}
            return {n: jnp.broadcast_to(x, (*shape, *x.shape[2:])) for n, x in every.items()}

        mapped = _by_arrays(function)
        for axes in ((None, 0, None), (0, None, None), (0, 0, 0), (0, 0, None)):
            mapped = jax.vmap(mapped, (*(0 for _ in logits), *axes))
        query = attributes(mask.query_position, self.query)
        return mapped(*logits, query, attributes(mask.key_position, self.key), self.head)

    def operations(self) -> float:
        """Returns how many floating-point operations the hooks are for one query, key and head."""
        count = 0.0
        for function, *logit in self._hooks().values():
            lowered = jax.jit(_by_arrays(function)).lower(*logit, *self._example())
            cost: Any = lowered.cost_analysis()
            count += cost.get("flops", 0.0) + cost.get("transcendentals", 0.0)
        return count

    def _hooks(self) -> dict[str, list[Any]]:
        """The hooks that there are, each with the example of a logit that it takes."""
        logit = jax.ShapeDtypeStruct((), jnp.float32)
        every: dict[str, list[Any]] = {"score": [self.score, logit], "visible": [self.visible]}
        return {name: hook for name, hook in every.items() if hook[0] is not None}

    def _example(self) -> list[dict[str, jax.ShapeDtypeStruct]]:
        """What one query, one key and one head have."""

        def one(number: str, arrays: dict[str, Array], leading: int) -> dict[str, Any]:
            shapes = {
                n: jax.ShapeDtypeStruct(x.shape[leading:], x.dtype) for n, x in arrays.items()
            }
            return {number: jax.ShapeDtypeStruct((), jnp.int32), **shapes}

        sides = ("position", self.query, 3), ("position", self.key, 3), ("index", self.head, 1)
        return [one(*side) for side in sides]

    def resharded(self, queries: Axes, keys: Axes, compute: Compute) -> "Pattern":
        """Returns the pattern with its arrays sharded as queries, keys and heads are.

        Args: the logical axes of queries and of keys; whose sharding it is.
        """
        heads = queries[1]

        def split(arrays: dict[str, Array], axes: Axes) -> dict[str, Array]:
            return {
                name: compute.reshard(x, (*axes, *(None,) * (x.ndim - len(axes))))
                for name, x in arrays.items()
            }

        return dataclasses.replace(
            self,
            query=split(self.query, queries[:3]),
            key=split(self.key, ("batch", heads, keys[2])),
            head=split(self.head, (heads,)),
            sink=None if self.sink is None else compute.reshard(self.sink, (heads,)),
        )

    def of(self, queries: Callable[[Array], Array], keys: Callable[[Array], Array]) -> "Pattern":
        """Returns the pattern of other queries and keys, as ``Mask.of`` does."""
        return dataclasses.replace(
            self,
            query={name: queries(x) for name, x in self.query.items()},
            key={name: keys(x) for name, x in self.key.items()},
        )


def _by_arrays(function: Callable) -> Callable:
    """Returns a hook that takes the attributes of its last three arguments as dictionaries."""

    def called(*arguments: Any) -> Array:
        *logit, query, key, head = arguments
        # Keys after the query are masked, but what a hook makes of them may have no gradient.
        key = key | dict(position=jnp.minimum(key["position"], query["position"]))
        return function(*logit, *(SimpleNamespace(**x) for x in (query, key, head)))

    return called
