"""An MLP of a reader's own: a mixture of experts, of which each token takes the best two."""

import jax
import jax.numpy as jnp
from flax import nnx

from model.axes import RESIDUAL

EXPERTS = 4


class Mixture(nnx.Module):
    """``sum over the best two experts of chance * gelu(x up[e]) down[e]``; all are computed."""

    def __init__(self, config, declare, compute):
        """Declares EXPERTS pairs of matrices, and the router [D, E]."""
        d, f = config.embed_dim, config.mlp_dim
        self.compute = compute
        axes = ("experts", "embed", "mlp")
        self.up = declare.matrix("up", (EXPERTS, d, f), axes, "embed", stacked="experts")
        axes = ("experts", "mlp", "embed")
        self.down = declare.matrix("down", (EXPERTS, f, d), axes, "mlp", stacked="experts")
        self.router = declare.matrix("router", (d, EXPERTS), ("embed", "experts"), "embed")

    def __call__(self, x):
        """Returns the update that the experts write."""
        einsum, hidden_axes = self.compute.einsum, ("batch", None, "length", "mlp")
        routes = einsum("btd,de->bte", x, self.router, axes=RESIDUAL, dtype="float32")
        best = jax.lax.top_k(routes, 2)[0][..., -1:]
        chance = jax.nn.softmax(jnp.where(routes >= best, routes, -jnp.inf))
        hidden = jax.nn.gelu(einsum("btd,edf->betf", x, self.up, axes=hidden_axes))
        hidden = hidden * chance.swapaxes(1, 2)[..., None].astype(hidden.dtype)
        return einsum("betf,efd->btd", hidden, self.down, axes=RESIDUAL)
