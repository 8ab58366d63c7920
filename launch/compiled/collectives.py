"""The collectives of a compiled program: over which axes of the mesh, how often, how much wire."""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Int

from launch.compiled.program import Array, Instruction, Program

_CHANNEL = r"channel_id=(\d+)"
_START = "async-collective-start"  # the fusion that begins one, where a TPU's names it
SLICES = "slices"  # the axis across them, which is a part of the mesh's first
KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective, as one device takes part in it."""

    kind: str  # one of KINDS; between slices also "one-to-one", which passes on
    axes: tuple[str, ...]  # of the mesh, along which its groups lie; or that across slices
    size: int  # devices of a group
    operand_bytes: float
    operands: tuple[Array, ...]
    times: float  # that it runs in a step
    asynchronous: bool  # other instructions may run meanwhile
    op_name: str  # where it comes from in the traced program

    @property
    def wire(self) -> float:
        """Bytes that a device sends in a step, on a ring.

        An all-gather passes on what n - 1 others have, a reduce-scatter sums over as many parts, an
        all-reduce is both (Thakur et al. 2005, "Optimization of collective communication
        operations in MPICH").
        """
        n = self.size
        factor = {"all-gather": n - 1, "all-reduce": 2 * (n - 1) / n}
        factor |= dict.fromkeys(("collective-permute", "one-to-one"), 1.0)
        return self.times * self.operand_bytes * factor.get(self.kind, (n - 1) / n)


def collectives(program: Program, mesh: Mapping[str, int], slices: int = 1) -> list[Collective]:
    """Returns the collectives of a program.

    Args:
      program: of many devices.
      mesh: the size of each axis, in the order in which the devices are numbered.
      slices: that a network joins; what they send each other is over the axis ``SLICES``.
    """
    found = list(_between_slices(program, slices))
    callers = {called: (where, i) for where, i, _ in program for called in i.called}
    fused, every = program.calling("fusion"), list(_every(program))
    begun = set()

    def chain(kind: str, name: str, i: Instruction) -> tuple:
        """What a fusion and those that go on with its collective have in common."""
        return kind, i.attribute(_CHANNEL), callers[name][0] if name in callers else ""

    def starts(name: str) -> bool:
        return name in callers and callers[name][1].name.startswith(_START)

    # Of a TPU's fusions several go on with what one began, in loops inside as well.
    parts = Counter(chain(kind, name, i) for name, i, _, kind in every if name in fused)
    started = {chain(kind, name, i)[:2] for name, i, _, kind in every if starts(name)}
    for name, i, times, kind in every:
        link = chain(kind, name, i)
        if name in fused:
            if link in begun or (link[:2] in started and not starts(name)):
                continue
            begun.add(link)
        caller = callers[name][1] if name in callers else None
        overlapping = caller is not None and (
            caller.opcode == "async-start"
            or (name in fused and ("async" in caller.name or parts[link] > 1))
        )
        if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"  # a TPU's, as a fusion that cuts the sum at once
        operands = program.operands(name, i)
        groups = _groups(kind, i, math.prod(mesh.values()))
        found.append(
            Collective(
                kind=kind,
                axes=_axes(groups, mesh),
                size=groups.shape[1],
                operand_bytes=sum(operand.bytes for operand in operands),
                operands=tuple(array for operand in operands for array in operand.arrays),
                times=times,
                asynchronous=i.opcode.endswith("-start") or overlapping,
                op_name=i.op_name or (caller.op_name if caller else ""),
            )
        )
    return found


def _between_slices(program: Program, slices: int) -> Iterator[Collective]:
    """Yields what slices send each other: a device's part, through its host."""
    for name, i, times in program:
        kind = i.attribute(r'_xla_megascale_transfer_type="(\w+)"') or ""
        if i.opcode == "send" and kind:
            (operand, *_) = program.operands(name, i)
            yield Collective(
                kind=kind.lower().replace("_", "-"),
                axes=(SLICES,),
                size=slices,
                operand_bytes=operand.bytes,
                operands=operand.arrays,
                times=times,
                asynchronous=True,
                op_name=i.op_name,
            )


def _every(program: Program) -> Iterator[tuple[str, Instruction, float, str]]:
    """Yields what may be a collective, or a part of one, with its kind."""
    for name, i, times in program:
        for kind in KINDS:
            if i.opcode in (kind, f"{kind}-start"):
                yield name, i, times, kind


def _groups(kind: str, i: Instruction, count: int) -> Int[np.ndarray, "groups devices"]:
    """Returns the devices of each group, or of each pair that permutes."""
    if kind == "collective-permute":
        written = i.attribute(r"source_target_pairs=\{(\{.*?\})\}") or ""
        pairs = np.array(re.findall(r"\{(\d+),(\d+)\}", written), int).reshape(-1, 2)
        return pairs[pairs[:, 0] != pairs[:, 1]]
    if listed := i.attribute(r"replica_groups=\{(\{.*?\})\}"):
        return np.array([[int(n) for n in group.split(",")] for group in listed[1:-1].split("},{")])
    # [8,16]<=[16,8]T(1,0)
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", i.rest)
    if iota:
        return _iota(iota[2]).reshape([int(n) for n in iota[1].split(",")])
    # mesh['a'=16,'b'=8], device_ids=([16,8]T(1,0)) {'a'}
    named = re.search(
        r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?\]?(?:T\(.*?\))?)\))? \{(.*?)\}", i.rest
    )
    if named:
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        devices = _iota(named[2]) if named[2] else np.arange(math.prod(sizes.values()))
        grid, names = devices.reshape([*sizes.values()]), [*sizes]
        last = [names.index(name) for name in re.findall(r"'(\w+)'", named[3])]
        first = [n for n in range(len(names)) if n not in last]
        size = math.prod(grid.shape[n] for n in last)
        return grid.transpose(first + last).reshape(-1, size)
    return np.arange(count)[None]


def _iota(text: str) -> np.ndarray:
    """Reads [16,8]T(1,0): as many numbers in order, in that shape, transposed."""
    sizes, turned = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text).groups()  # type: ignore[union-attr]
    shape = [int(n) for n in sizes.split(",")]
    array = np.arange(math.prod(shape)).reshape(shape)
    return array.transpose([int(n) for n in turned.split(",")]) if turned else array


def _axes(groups: np.ndarray, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """Returns the axes along which the devices of a group differ."""
    places = np.stack(np.unravel_index(groups, tuple(mesh.values())), -1)
    differ = (places != places[:, :1]).any((0, 1))
    return tuple(axis for axis, differs in zip(mesh, differ, strict=True) if differs)
