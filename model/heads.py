"""What the heads of a layer make of the residual: queries, keys, values, and a variant's more."""

import dataclasses
from typing import no_type_check

import jax
from jaxtyping import Array, Float

from configs.errors import UserError


@no_type_check  # as a pytree it also holds shapes and shardings
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Heads:
    """Queries, keys and values of some tokens; keys and values also of those before, if cached."""

    query: Float[Array, "B H T K"]
    key: Float[Array, "B G S K"]  # of G groups; query head h reads group ``h // (H / G)``
    value: Float[Array, "B Gv S R"]  # of as many groups, or of one for all heads
    # More arrays that each query and each key has, by name; a cache remembers those of keys.
    by_query: dict[str, Float[Array, "B h T ..."]] = dataclasses.field(default_factory=dict)
    by_key: dict[str, Float[Array, "B h S ..."]] = dataclasses.field(default_factory=dict)

    def with_keys(self, **arrays: Float[Array, "B h S ..."]) -> "Heads":
        """Returns the same with more arrays that each key has, named but "key" and "value"."""
        for name in {"key", "value"} & {*arrays}:
            raise UserError(f"with_keys: {name!r} is taken, by the keys and values; name it else.")
        _check("with_keys", arrays, self.key)
        return dataclasses.replace(self, by_key={**self.by_key, **arrays})

    def with_queries(self, **arrays: Float[Array, "B h T ..."]) -> "Heads":
        """Returns the same with more arrays that each query has."""
        _check("with_queries", arrays, self.query)
        return dataclasses.replace(self, by_query={**self.by_query, **arrays})

    @property
    def remembered(self) -> dict[str, Float[Array, "B h S ..."]]:
        """What later tokens read, by name."""
        return {"key": self.key, "value": self.value, **self.by_key}

    def remembering(self, arrays: dict[str, Array]) -> "Heads":
        """Returns the same queries with the keys and values, and more by key, of ``remembered``."""
        more = dict(arrays)
        key, value = more.pop("key"), more.pop("value")
        return dataclasses.replace(self, key=key, value=value, by_key=more)


def _check(function: str, arrays: dict[str, Array], like: Array) -> None:
    """Checks that arrays have the rows and tokens of queries or keys."""
    rows, _, tokens, _ = like.shape
    for name, x in arrays.items():
        if x.ndim < 3 or (x.shape[0], x.shape[2]) != (rows, tokens):
            shape = f"({rows}, heads or 1, {tokens})"
            raise UserError(f"{function}: {name} {x.shape} must have a shape that begins {shape}.")
