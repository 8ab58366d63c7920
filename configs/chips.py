"""Published figures of accelerators."""

from typing import NamedTuple

GIB = 2**30


class Chip(NamedTuple):
    """What one of jax's devices can do, by the chip's maker."""

    name: str  # as a topology names it
    kind: str  # how jax's ``device_kind`` begins
    flops: float  # bfloat16 operations a second, dense
    memory: float  # bytes
    wire: float  # bytes a second that it sends, over all of its links together
    bandwidth: float  # bytes a second between it and its memory
    network: float | None = None  # bytes a second to other slices, its share of its host's

    @property
    def is_tpu(self) -> bool:
        """Tells whether it is Google's."""
        return self.kind.startswith("TPU")


# Google Cloud's TPU system pages: a chip sends half the bidirectional bandwidth between chips; for
# a v4 it is a pod's all-reduce bandwidth; a v5e's share of the network is that of its pod. NVIDIA's
# data sheets of the A100 and the H100 (SXM).
# A device's own kind is the first here that its kind begins with.
CHIPS = (
    # Two devices a chip. Jouppi et al. (2020), A domain-specific supercomputer for training deep
    # neural networks.
    Chip("v2", "TPU v2", 46e12 / 2, 8 * GIB, 4 * 496e9 / 8 / 2, 700e9 / 2),
    Chip("v3", "TPU v3", 123e12 / 2, 16 * GIB, 4 * 656e9 / 8 / 2, 900e9 / 2),
    Chip("v4", "TPU v4", 275e12, 32 * GIB, 270e9, 1200e9),
    Chip("v5e", "TPU v5 lite", 197e12, 16 * GIB, 200e9, 819e9, 6.4e12 / 8 / 256),
    Chip("v5p", "TPU v5", 459e12, 95 * GIB, 600e9, 2765e9, 50e9 / 8),
    Chip("v6e", "TPU v6 lite", 918e12, 32 * GIB, 400e9, 1638e9, 100e9 / 8),
    # Two devices a chip.
    Chip("tpu7x", "TPU7x", 2307e12 / 2, 96 * GIB, 300e9, 7380e9 / 2, 100e9 / 8 / 2),
    Chip("a100", "NVIDIA A100", 312e12, 80e9, 300e9, 2039e9),
    Chip("h100", "NVIDIA H100", 989e12, 80e9, 450e9, 3350e9),
)


def peak_flops(device_kind: str) -> float | None:
    """Returns operations a second of one device, or None where no peak is published here."""
    return next((chip.flops for chip in CHIPS if device_kind.startswith(chip.kind)), None)
