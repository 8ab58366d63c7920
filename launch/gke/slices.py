"""The slices that node pools of GKE have: chips of a host, and so how many hosts.

Source: "Plan TPUs in GKE", https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus
"""

import dataclasses
import math
import re

from configs.errors import UserError, nearest

# Those whose chips lie in a plane; a host has 4 of them, or of the smaller ones 1 or 8.
_PLANES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_FLAT = ("tpu-v5-lite-podslice", "tpu-v6e-slice")
_SOLID = ("tpu-v4-podslice", "tpu-v5p-slice", "tpu7x")  # three axes, 4 chips of each host
ACCELERATORS = (*_FLAT, *_SOLID)


@dataclasses.dataclass(frozen=True)
class Slice:
    """A TPU's slice in a node pool."""

    accelerator: str  # as the label cloud.google.com/gke-tpu-accelerator
    topology: str  # as the label cloud.google.com/gke-tpu-topology
    chips: int  # of each host

    @property
    def hosts(self) -> int:
        """Returns how many hosts it has."""
        return math.prod(map(int, self.topology.split("x"))) // self.chips


def tpu_slice(accelerator: str, topology: str, chips: int = 0) -> Slice:
    """Returns a slice.

    Args:
      accelerator: one of ``ACCELERATORS``.
      topology: chips along each axis, ``2x4`` or ``2x2x4``.
      chips: of each host; 0: as many as a host can have.

    Raises:
      UserError: GKE has none such.
    """
    if accelerator not in ACCELERATORS:
        raise UserError(
            f"--accelerator={accelerator!r} is no TPU of GKE{nearest(accelerator, ACCELERATORS)}; "
            f"use one of {', '.join(ACCELERATORS)}, or nvidia-... for GPUs."
        )
    if accelerator in _FLAT:
        if topology not in _PLANES:
            raise UserError(
                f"--topology={topology!r} is none of {accelerator}; use one of "
                f"{', '.join(_PLANES)}."
            )
        sizes = {"1x1": (1,), "2x2": (4,), "2x4": (8, 4)}.get(topology, (4,))
    else:
        if not _is_solid(topology):
            raise UserError(
                f"--topology={topology!r} is none of {accelerator}; use 2x2x1, or three axes that "
                "do not get smaller, each 2 or a multiple of 4, such as 2x2x4."
            )
        sizes = (4,)
    if chips and chips not in sizes:
        raise UserError(
            f"--chips_per_host={chips} is not what hosts of {accelerator} {topology} have; use "
            f"{' or '.join(map(str, sizes))}."
        )
    return Slice(accelerator, topology, chips or sizes[0])


def _is_solid(topology: str) -> bool:
    if not re.fullmatch(r"[1-9]\d{0,2}(x[1-9]\d{0,2}){2}", topology):
        return False
    axes = [int(axis) for axis in topology.split("x")]
    even = all(axis == 2 or axis % 4 == 0 for axis in axes)
    return topology == "2x2x1" or (even and axes == sorted(axes))
