"""How the blocks of a network follow each other: scanned, or unrolled."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from model.axes import RESIDUAL, TOKENS
from model.block import BLOCK_INPUT, Block
from model.cache import Layer
from model.compute import PRODUCT, Compute
from model.config import ModelConfig
from model.devices.choice import device
from model.heads import Heads
from model.masks import Mask

# What the backward pass finds, by the name of ``config.remat``; the rest is computed again, and
# parameters are gathered again.
_POLICIES = {
    "block": jax.checkpoint_policies.nothing_saveable,
    "matmuls": jax.checkpoint_policies.save_only_these_names(PRODUCT),
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[BLOCK_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def scanned(config: ModelConfig) -> bool:
    """Returns whether layers are scanned; where the config does not say, by device and depth."""
    if config.scan_layers is not None:
        return config.scan_layers
    return config.num_layers > device().unrolled


def unstacked(stacks: Sequence[Block]) -> list[Block]:
    """Returns each layer of stacks of blocks, in the order of the network.

    All are cut at once, so that their gradients are joined at once, and not padded and added.
    """
    leaves, structure = jax.tree.flatten(list(stacks))
    count = leaves[0].shape[0]
    parts = [jax.lax.split(leaf, (1,) * count, axis=0) for leaf in leaves]
    periods = [[part[i].squeeze(0) for part in parts] for i in range(count)]
    return [block for period in periods for block in jax.tree.unflatten(structure, period)]


def projected(stack: Block, rows: int, length: int, compute: Compute) -> Any:
    """Returns ``Heads`` of the shapes and types that a stack of blocks makes of so many tokens."""

    def project(block: Block) -> Heads:
        x = jnp.zeros((rows, length, block.config.embed_dim), compute.dtype)
        positions = jnp.zeros((rows, length), jnp.int32)
        return block.attention.project(
            compute.reshard(x, RESIDUAL), compute.reshard(positions, TOKENS)
        )

    return jax.eval_shape(jax.vmap(project), stack)


def run(
    config: ModelConfig,
    blocks: Sequence[Block],
    x: Float[Array, "B T D"],
    positions: Int[Array, "B T"],
    mask: Mask,
    cache: Sequence[Layer | None] | None = None,
    key: PRNGKeyArray | None = None,
    layers: Sequence[Block] | None = None,
) -> tuple[Float[Array, "B T D"], list[Layer | None]]:
    """Returns the residual stream after all blocks, and what they remember.

    Args:
      blocks: stacks of blocks; stack i has the layers i, i + p, i + 2p, ... of a period of p.
      cache: of each stack where layers are scanned, else of each layer.
      key: of dropout; None does not drop.
      layers: the blocks cut apart, where they are not scanned; cut here when None.
    """
    keys = None if key is None else jax.random.split(key, config.num_layers)
    none: list[Any] = [None] * config.num_layers
    scans, period = scanned(config), config.period

    def remat(function: Callable) -> Callable:
        if config.remat == "none":
            return function
        return jax.checkpoint(function, policy=_POLICIES[config.remat], prevent_cse=not scans)

    one = remat(Block.__call__)

    def several(x: Array, part: tuple) -> tuple[Array, list]:
        written = []
        for block, remembered, drop in zip(*part, strict=True):
            x, after = one(block, x, positions, mask, remembered, drop)
            written.append(after)
        return x, written

    if scans:
        drops = none[:period] if keys is None else [keys[i::period] for i in range(period)]
        return jax.lax.scan(several, x, (list(blocks), cache or none[:period], drops))
    written = []
    drops = none if keys is None else list(keys)
    cut = unstacked(blocks) if layers is None else layers
    for i, (block, remembered, drop) in enumerate(zip(cut, cache or none, drops, strict=True)):
        inputs = x, positions, mask, remembered, drop
        if layers is None:
            x, after = device().layer(one, block, blocks[i % period], i // period, inputs)
        else:
            x, after = one(block, *inputs)
        written.append(after)
    return x, written
