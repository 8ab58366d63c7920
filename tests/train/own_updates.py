"""Optimizers of a user's own, as ``optim.name`` names them."""

import jax
import jax.numpy as jnp
import optax


def heavy_ball(numbers, declarations):
    """Momentum, and nothing for gains."""
    frozen = [name for name, d in declarations.items() if d.kind == "gain"]

    def freeze(updates, _):
        return {n: jnp.zeros_like(u) if n in frozen else u for n, u in updates.items()}

    return optax.chain(optax.trace(numbers.b1), optax.stateless(freeze))


def noisy(numbers, declarations):
    """Keeps the key of a random generator."""
    del declarations
    return optax.chain(optax.scale_by_adam(numbers.b1, numbers.b2), optax.add_noise(0.01, 0.5, 3))


def whitened(numbers, declarations):
    """Contracts and reshapes across whatever axes are sharded."""
    del numbers, declarations

    def whiten(updates, _):
        flat = {name: u.reshape(u.shape[0], -1) for name, u in updates.items()}
        return {name: (f @ f.T @ f).reshape(updates[name].shape) for name, f in flat.items()}

    return optax.stateless(whiten)


def nothing(numbers, declarations):
    """Forgets to return it."""


number = 3


def signs(numbers, declarations):
    """Keeps no state."""
    del numbers, declarations
    return optax.stateless(lambda updates, _: {n: jnp.sign(u) for n, u in updates.items()})


def trusted(numbers, declarations):
    """Scales by norms of parameters, each layer's its own."""
    del numbers, declarations
    return optax.scale_by_trust_ratio()


def spanning(numbers, declarations):
    """A norm of all parameters together, and a state that is not finite-proof without it."""
    del declarations
    clipped = optax.chain(optax.clip_by_global_norm(0.5), optax.trace(numbers.b1))
    return optax.apply_if_finite(clipped, 3)


def shortened(numbers, declarations):
    """Forgets the last parameter."""
    del numbers, declarations
    return optax.stateless(lambda updates, _: dict(list(updates.items())[:-1]))


def lonely(numbers):
    """Takes too little."""
    return optax.trace(numbers.b1)


def bursting(numbers, declarations):
    """An update that is not finite after three steps, though its gradient is."""
    del numbers, declarations

    def update(updates, count, parameters=None):
        del parameters
        factor = jnp.where(count == 3, jnp.inf, 0.1)
        return jax.tree.map(lambda u: u * factor, updates), count + 1

    return optax.GradientTransformation(lambda parameters: jnp.zeros((), jnp.int32), update)
