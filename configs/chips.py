"""Published figures of accelerators."""

from typing import NamedTuple

GIB = 2**30


class Chip(NamedTuple):
    """What one of jax's devices can do, by the chip's maker."""

    name: str  # as a topology names it
    kind: str  # how jax's ``device_kind`` begins
    flops: float  # bfloat16 operations a second, dense
    memory: float  # bytes
    memory_bandwidth: float  # bytes a second
    wire: float  # bytes a second that it sends, over all of its links together


# Google Cloud's TPU system pages, of which half the bidirectional bandwidth between chips is
# what a chip sends; NVIDIA's data sheets of the A100 and the H100 (SXM), and their NVLink.
CHIPS = (
    Chip("v4", "TPU v4", 275e12, 32 * GIB, 1200e9, 300e9),
    Chip("v5e", "TPU v5 lite", 197e12, 16 * GIB, 819e9, 200e9),
    Chip("v5p", "TPU v5", 459e12, 95 * GIB, 2765e9, 600e9),
    Chip("v6e", "TPU v6 lite", 918e12, 32 * GIB, 1640e9, 400e9),
    Chip("tpu7x", "TPU7x", 2307e12 / 2, 96 * GIB, 7380e9 / 2, 300e9),  # two devices a chip
    Chip("a100", "NVIDIA A100", 312e12, 80e9, 2039e9, 300e9),
    Chip("h100", "NVIDIA H100", 989e12, 80e9, 3350e9, 450e9),
)


def peak_flops(device_kind: str) -> float | None:
    """Returns operations a second of one device, or None where no peak is published here."""
    return next((chip.flops for chip in CHIPS if device_kind.startswith(chip.kind)), None)
