"""What slices of TPUs there are: sizes, topologies, hosts and runtime images by generation.

Sources: the pages "TPU v2", "TPU v3", "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e" of the Cloud TPU
documentation (sizes, shapes, virtual machines of a slice), "TPU software versions" (the images for
JAX), "Cloud TPU Multislice overview" (from v4 on). TPU7x is reached through GKE alone.
"""

import dataclasses
import math
import re
from collections.abc import Callable

from configs.errors import UserError, nearest


def _cubes(most: int) -> Callable[[int], bool]:
    """Sizes in cores of a torus: parts of one cube of 4x4x4 chips, or whole cubes."""
    return lambda cores: cores in (8, 16, 32, 64) or (cores % 128 == 0 and 0 < cores <= most)


@dataclasses.dataclass(frozen=True)
class Generation:
    """A kind of chip, and the slices that it comes in."""

    name: str  # as an accelerator type begins
    image: str  # that JAX is installed on
    unit: str  # what a size counts: cores, or chips
    allowed: Callable[[int], bool]  # tells whether there is a slice of so many
    sizes: str  # the same in words
    slices: bool  # whether several may be joined by the network
    dimensions: int = 0  # of its topologies; 0 where none can be asked for
    planes: tuple[str, ...] = ()  # its topologies, where they are few


_PLANES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CHIPS = (1, 4, 8, 16, 32, 64, 128, 256)
_PARTS = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")  # of a cube


def _old(name: str, *sizes: int) -> Generation:
    words = f"{', '.join(map(str, sizes[:-1]))} or {sizes[-1]} cores"
    return Generation(name, "tpu-ubuntu2204-base", "cores", sizes.__contains__, words, False)


def _torus(name: str, image: str, most: int) -> Generation:
    words = f"8, 16, 32 or 64 cores, or a multiple of 128 up to {most}"
    return Generation(name, image, "cores", _cubes(most), words, True, 3)


def _plane(name: str, image: str) -> Generation:
    words = f"{', '.join(map(str, _CHIPS[:-1]))} or {_CHIPS[-1]} chips"
    return Generation(name, image, "chips", _CHIPS.__contains__, words, True, 2, _PLANES)


GENERATIONS = {
    found.name: found
    for found in (
        _old("v2", 8, 32, 128, 256, 512),
        _old("v3", 8, 32, 128, 256, 512, 1024, 2048),
        _torus("v4", "tpu-ubuntu2204-base", 8192),
        _plane("v5litepod", "v2-alpha-tpuv5-lite"),
        _torus("v5p", "v2-alpha-tpuv5", 12288),
        _plane("v6e", "v2-alpha-tpuv6e"),
    )
}

# A host has 8 cores, or 4 chips; one of a v5e or v6e that is alone has up to 8 chips.
_CORES_A_HOST = 8
_CHIPS_A_HOST = 4
_CHIPS_ALONE = 8


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """A slice: of a type, or of a topology that takes the place of the type's size."""

    type: str  # v5litepod-8
    topology: str = ""  # 2x4

    @property
    def generation(self) -> Generation:
        """Returns the kind of its chips."""
        return GENERATIONS[self.type.partition("-")[0]]

    @property
    def size(self) -> int:
        """Returns how many cores it has, or chips where those are counted."""
        if not self.topology:
            return int(self.type.partition("-")[2])
        chips = math.prod(int(n) for n in self.topology.split("x"))
        return chips if self.generation.unit == "chips" else 2 * chips

    @property
    def name(self) -> str:
        """Returns the type with the size that it really has."""
        return f"{self.generation.name}-{self.size}"

    @property
    def hosts(self) -> int:
        """Returns how many virtual machines it has, on each of which the program runs."""
        if self.generation.unit == "cores":
            return max(1, self.size // _CORES_A_HOST)
        return 1 if self.size <= _CHIPS_ALONE else self.size // _CHIPS_A_HOST

    def words(self) -> list[str]:
        """Returns the flags that ask gcloud for it.

        A plane of chips has one topology for each size, so that the size says it; gcloud takes
        ``--type`` and ``--topology`` for the others.
        """
        if self.topology and not self.generation.planes:
            return [f"--type={self.generation.name}", f"--topology={self.topology}"]
        return [f"--accelerator-type={self.name}"]


def accelerator(type_: str, topology: str = "", slices: int = 1) -> Accelerator:
    """Returns the slice that the flags describe.

    Args:
      type_: generation and size, ``v5litepod-8``.
      topology: chips along each axis; ``""`` leaves it to the size.
      slices: how many are joined.

    Raises:
      UserError: there is none.
    """
    if not type_:
        raise UserError("--type is missing; name one, for example --type=v5litepod-8.")
    name, _, size = type_.partition("-")
    if name in ("tpu7x", "v7x", "ironwood"):
        raise UserError(
            f"--type={type_} is a TPU7x, which Google Cloud gives through Kubernetes alone; use "
            "python -m launch.gke, or another type."
        )
    if name not in GENERATIONS:
        raise UserError(
            f"--type={type_} is no TPU type{nearest(name, GENERATIONS)}; use one "
            f"of {', '.join(GENERATIONS)} with a size, such as v5litepod-8."
        )
    kind = GENERATIONS[name]
    if not re.fullmatch(r"[1-9]\d{0,5}", size):
        raise UserError(f"--type={type_} needs a size after one hyphen, such as {name}-8.")
    if not topology and not kind.allowed(int(size)):
        raise UserError(
            f"--type={type_} is no slice that there is; a {name} comes with {kind.sizes}."
        )
    if topology:
        _check_topology(kind, topology)
    if slices > 1 and not kind.slices:
        raise UserError(
            f"--slices={slices} is not for a {name}, whose slices no network joins; take one "
            "slice, or a v4 or newer."
        )
    return Accelerator(type_, topology)


def _check_topology(kind: Generation, topology: str) -> None:
    if not re.fullmatch(r"[1-9]\d{0,3}(x[1-9]\d{0,3}){1,2}", topology):
        raise UserError(f"--topology={topology} is no topology; they look like 2x4 or 2x2x4.")
    if not kind.dimensions:
        raise UserError(
            f"--topology={topology} is not for a {kind.name}, which comes by its size; leave it "
            "out."
        )
    if kind.planes:
        if topology not in kind.planes:
            raise UserError(
                f"--topology={topology} is none of a {kind.name}; they are "
                f"{', '.join(kind.planes)}."
            )
        return
    axes = [int(n) for n in topology.split("x")]
    cubes = len(axes) == 3 and axes == sorted(axes) and not any(n % 4 for n in axes)
    if topology not in _PARTS and not (cubes and kind.allowed(2 * math.prod(axes))):
        raise UserError(
            f"--topology={topology} is none of a {kind.name}; they are {', '.join(_PARTS)}, or "
            "three multiples of 4 in rising order."
        )
