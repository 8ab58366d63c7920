"""Rotary positions: queries and keys turned by their position."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def rotate(
    x: Float[Array, "B H T K"], positions: Int[Array, "B T"], base: float
) -> Float[Array, "B H T K"]:
    """Turns each pair of coordinates by an angle that grows with the position.

    Coordinates i and i + K/2 make a pair, whose angle at position p is
    ``p * base**(-2i / K)`` radians (Su et al. 2021, "RoFormer", equation 15; the pairing is
    that of GPT-NeoX); the longest wavelength is ``2 pi base`` tokens. Scores of turned queries and
    keys depend on distances alone.
    """
    half = x.shape[-1] // 2
    frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[:, None, :, None].astype(jnp.float32) * frequency.reshape(1, 1, 1, half)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
