"""A picture of how heads, batch, sequence and parameters lie on the chips of a mesh, as SVG."""

import colorsys
from html import escape

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from model.axes import ShardingRules
from model.compute import Compute
from model.config import ModelConfig
from model.zigzag import shards

_FONT = "font-family='system-ui, sans-serif'"
_LEFT, _TOP = 250, 150  # pixels, for what stands beside and above the chips


def picture(config: ConfigDict, shape: ModelConfig, mesh: Mesh, title: str) -> str:
    """Returns an SVG with a square for each chip.

    Rows are shards of heads and of the sequence, columns are shards of the batch. Chips of one
    colour have the same heads; the darker, the later their part of each parameter (``fsdp``). In a
    square stands where the chip is in its torus, where it is known.

    Args:
      config: whole.
      shape: of its model.
      mesh: as of ``make_mesh``.
      title: above it.
    """
    data, fsdp, heads, context = mesh.devices.shape
    rows, columns = heads * context, data * fsdp
    side = max(14, min(64, 1100 // columns, 900 // rows))
    width = max(_LEFT + columns * side + 90, 760)
    height = _TOP + rows * side + 130
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' "
        f"viewBox='0 0 {width} {height}'>",
        f"<title>{escape(title)}</title>",
        f"<rect width='{width}' height='{height}' fill='white'/>",
        _text(20, 32, title, 16, weight="bold"),
    ]
    for line, words in enumerate(_legend(config, shape, mesh)):
        parts.append(_text(20, _TOP + rows * side + 34 + 20 * line, words, 13))

    with jax.set_mesh(mesh):
        compute = Compute.of(shape, ShardingRules.of(config.mesh))
        zigzag = shape.dropout == 0 and shards(shape, compute, config.length) > 0
    batch, length = config.batch_size // config.optim.accumulate, config.length
    every = -(-16 // side)  # so that labels do not lie on each other
    for column in range(0, columns, every):
        label = f"sequences {_range(column, columns, batch)}"
        parts.append(_turned(_LEFT + (column + 0.5) * side, _TOP - 10, label))
    for row in range(rows):
        h, c = divmod(row, context)
        y = _TOP + (row + 0.5) * side
        label = f"heads {_range(h, heads, shape.num_heads)}"
        label += f", tokens {_tokens(c, context, length, zigzag)}" if context > 1 else ""
        if row % every == 0:
            parts.append(_text(_LEFT - 10, y + 3, label, 12, anchor="end"))
        for column in range(columns):
            d, f = divmod(column, fsdp)
            device = mesh.devices[d, f, h, c]
            x = _LEFT + column * side
            parts.append(
                f"<rect x='{x}' y='{_TOP + row * side}' width='{side - 2}' height='{side - 2}' "
                f"rx='2' fill='{_colour(h, heads, f, fsdp)}'><title>"
                f"{escape(_of_chip(device, d, f, h, c))}</title></rect>"
            )
            coords = getattr(device, "coords", None)
            if coords is not None and side >= 26:
                where = ",".join(map(str, coords))
                parts.append(_text(x + side / 2 - 1, y + 3, where, side // 5 + 2, anchor="middle"))
    return "\n".join([*parts, "</svg>", ""])


def _legend(config: ConfigDict, shape: ModelConfig, mesh: Mesh) -> list[str]:
    data, fsdp, heads, context = mesh.devices.shape
    layers = f"all {shape.num_layers} layers" if shape.num_layers > 1 else "the layer"
    lines = [
        f"Each chip has {layers}: {shape.num_heads // heads} of {shape.num_heads} heads"
        + (f", and 1/{fsdp} of their matrices (darker: later parts)" if fsdp > 1 else "")
        + (f"; {data} replicas" if data > 1 else "")
        + ".",
        f"It computes {config.batch_size // (data * fsdp)} of {config.batch_size} sequences a step"
        + (f", in {config.optim.accumulate} microbatches" if config.optim.accumulate > 1 else "")
        + (f", {config.length // context:,} of {config.length:,} tokens each" * (context > 1))
        + ".",
    ]
    if heads > 1:
        how = (
            "each sum over heads is scattered over tokens and gathered again"
            if config.mesh.residual == "sharded"
            else "each sum over heads is an all-reduce"
        )
        lines.append(f"Down a column, {how}.")
    if fsdp > 1:
        lines.append("Along a row, weights are all-gathered and gradients reduce-scattered.")
    if shape.num_kv_heads % heads:
        lines.append(f"The {shape.num_kv_heads} groups of keys are replicated over heads.")
    return lines


def _of_chip(device: object, data: int, fsdp: int, heads: int, context: int) -> str:
    place = getattr(device, "coords", None)
    at = f" at {tuple(place)}" if place is not None else ""
    slice_ = getattr(device, "slice_index", None)
    of_slice = f", slice {slice_}" if slice_ is not None else ""
    return f"data {data}, fsdp {fsdp}, heads {heads}, context {context}{at}{of_slice}"


def _range(shard: int, shards: int, size: int) -> str:
    """Returns "24-47": what a shard has of so many things."""
    first, last = shard * size // shards, (shard + 1) * size // shards - 1
    return f"{first}" if first >= last else f"{first:,}-{last:,}"


def _tokens(shard: int, shards: int, length: int, zigzag: bool) -> str:
    """Returns which tokens a shard of the sequence has: two pieces in the order of a ring."""
    if not zigzag:
        return _range(shard, shards, length)
    pieces = shard, 2 * shards - 1 - shard
    return " and ".join(_range(piece, 2 * shards, length) for piece in pieces)


def _colour(heads: int, of_heads: int, fsdp: int, of_fsdp: int) -> str:
    light = 0.86 - 0.34 * (fsdp / max(of_fsdp - 1, 1) if of_fsdp > 1 else 0)
    red, green, blue = colorsys.hls_to_rgb((0.58 + heads / of_heads) % 1, light, 0.55)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


def _text(
    x: float, y: float, words: str, size: float, anchor: str = "start", weight: str = "normal"
) -> str:
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' font-size='{size}' text-anchor='{anchor}' "
        f"font-weight='{weight}' fill='#222' {_FONT}>{escape(words)}</text>"
    )


def _turned(x: float, y: float, words: str, size: float = 12) -> str:
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' font-size='{size}' fill='#222' {_FONT} "
        f"transform='rotate(-45 {x:.1f} {y:.1f})'>{escape(words)}</text>"
    )
