"""How the next token is drawn from its logits."""

import dataclasses
import math
from typing import no_type_check

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from configs.errors import UserError


@no_type_check  # as a pytree it also holds shapes and shardings
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampler:
    """How a token is drawn; plain numbers, so that changing one recompiles nothing."""

    temperature: Float[Array, ""] | float = 0.8  # divides the logits; 0 takes the likeliest token
    top_k: Int[Array, ""] | int = 0  # only the likeliest k tokens; 0 for all
    # Only the likeliest tokens that together reach this probability; 1 for all (Holtzman et al.
    # 2020, "nucleus sampling").
    top_p: Float[Array, ""] | float = 1.0
    vocab_size: Int[Array, ""] | int = 0  # only tokens below it; 0 for all that the model has

    def check(self) -> None:
        """Raises UserError where a number is out of its range."""
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"--temperature={self.temperature} must be finite and at least 0.")
        if self.top_k < 0:
            raise UserError(f"--top_k={self.top_k} must be at least 0; 0 takes all tokens.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top_p={self.top_p} must be above 0 and at most 1.")

    def allowed(self, logits: Float[Array, "B V"]) -> Bool[Array, "B V"]:
        """Returns the tokens that may be drawn; the likeliest always may."""

        def some(logits: Array) -> Array:
            order = jnp.argsort(logits, axis=-1, descending=True)
            rank = jnp.argsort(order, axis=-1)
            heat = jnp.maximum(self.temperature, 1e-6)
            chance = jax.nn.softmax(jnp.take_along_axis(logits, order, -1) / heat, axis=-1)
            before = jnp.cumsum(chance, axis=-1) - chance
            within = jnp.take_along_axis(before, rank, -1) < self.top_p
            few = jnp.where(self.top_k > 0, self.top_k, logits.shape[-1])
            return (within & (rank < few)) | (rank == 0)

        # Sorting a large vocabulary takes longer than the rest of a token.
        plain = (jnp.asarray(self.top_k) <= 0) & (jnp.asarray(self.top_p) >= 1)
        return jax.lax.cond(plain, lambda logits: jnp.ones(logits.shape, bool), some, logits)

    def draw(
        self, logits: Float[Array, "B V"], key: PRNGKeyArray, index: Int[Array, "B"]
    ) -> Int[Array, "B"]:
        """Draws the token at place ``index`` of each row from its logits.

        With the same ``key`` a row's draws depend on its own number and places alone.
        """
        known = (jnp.arange(logits.shape[-1]) < self.vocab_size) | (self.vocab_size == 0)
        logits = jnp.where(known[None], logits, -jnp.inf)

        def by_chance(logits: Array) -> Array:
            heat = jnp.maximum(self.temperature, 1e-6)
            # An infinity over a large heat may be one times zero.
            drawable = self.allowed(logits) & (logits > -jnp.inf)
            chosen = jnp.where(drawable, logits / heat, -jnp.inf)
            fold = jax.vmap(jax.random.fold_in, (None, 0))
            keys = jax.vmap(jax.random.fold_in)(fold(key, jnp.arange(logits.shape[0])), index)
            return jax.vmap(jax.random.categorical)(keys, chosen)

        greedy = jnp.asarray(self.temperature) == 0
        return jax.lax.cond(greedy, lambda logits: logits.argmax(-1), by_chance, logits)
