"""The computations of a compiled program, and how often each runs in a step.

XLA's own ``cost_analysis`` counts the body of a loop once. Here computations are walked from the
entry; how many times a loop goes round is read from its counter's start, step and limit where the
program does not say it, as those for TPUs do not.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

# Bytes of an element, by the name that XLA gives its type.
_SIZES = dict(
    **dict.fromkeys(("s4", "u4"), 0.5),
    **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2", "f8e4m3", "f8e4m3b11fnuz"), 1),
    **dict.fromkeys(("s16", "u16", "f16", "bf16"), 2),
    **dict.fromkeys(("s32", "u32", "f32"), 4),
    **dict.fromkeys(("s64", "u64", "f64", "c64"), 8),
    c128=16,
)
_CALLED = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
# What an instruction calls whose name begins so combines two numbers, and is no work of its own.
_COMBINING = ("reduce", "all-reduce", "sort", "scatter", "map", "select-and-scatter")
# Their operands, in place of names, are numbers.
_LITERAL = ("constant", "parameter", "iota")
# What passes a value on as it is.
_PASSING = ("copy", "bitcast", "convert", "copy-start", "copy-done")

Array = tuple[str, tuple[int, ...]]  # type and shape


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program."""

    name: str
    opcode: str
    type: str  # of its result, as it is written
    operands: tuple[str, ...]  # names of instructions of the same computation
    rest: str  # its attributes; before them what a literal holds

    @functools.cached_property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays of its result."""
        return tuple(
            (kind, tuple(int(n) for n in sizes.split(",") if n))
            for kind, sizes in re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", self.type)
            if kind in _SIZES
        )

    @property
    def bytes(self) -> float:
        """Bytes of its result."""
        return sum(_SIZES[kind] * math.prod(shape) for kind, shape in self.arrays)

    @property
    def op_name(self) -> str:
        """Where it comes from in the traced program."""
        return self.attribute(r'op_name="([^"]*)"') or ""

    @property
    def called(self) -> list[str]:
        """The computations that run when it does, but for a loop's condition."""
        names = _CALLED.findall(self.rest)
        for branches in _BRANCHES.findall(self.rest):
            names += re.findall(r"%([\w.\-]+)", branches)
        return names

    def attribute(self, pattern: str) -> str | None:
        """Returns the first group of a pattern in the attributes; None where it is not there."""
        found = re.search(pattern, self.rest)
        return found[1] if found else None


class Program:
    """A compiled program, as one of its devices runs it."""

    def __init__(self, text: str, open_ended: int | None = None):
        """Reads the text of a compiled module.

        Args:
          text: of it.
          open_ended: how many times loops go round whose counter does not start, step and end at
            constants; None: there are none.

        Raises:
          ValueError: there is such a loop, and it is not said how often it goes round.
        """
        self.open_ended = open_ended
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.roots: dict[str, Instruction] = {}
        self.entry = name = ""
        for line in text.splitlines():
            if start := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
                name = start[2]
                self.computations[name] = {}
                self.entry = name if start[1] else self.entry
            elif line == "}":
                name = ""
            elif name and (instruction := _instruction(line)):
                self.computations[name][instruction.name] = instruction
                if line.lstrip().startswith("ROOT "):
                    self.roots[name] = instruction
        self.times = self._times()

    def __iter__(self) -> Iterator[tuple[str, Instruction, float]]:
        """Yields each instruction with its computation and how often it runs."""
        for name, times in self.times.items():
            for instruction in self.computations[name].values():
                yield name, instruction, times

    def operands(self, computation: str, instruction: Instruction) -> list[Instruction]:
        """Returns the instructions that make an instruction's operands."""
        return [self.computations[computation][name] for name in instruction.operands]

    def calling(self, opcode: str) -> set[str]:
        """Returns the computations that instructions of an opcode call."""
        every = (i for lines in self.computations.values() for i in lines.values())
        return {called for i in every if i.opcode == opcode for called in i.called}

    def cycles(self) -> float:
        """Returns the cycles that a TPU's compiler estimates; collectives and kernels have none."""
        fused = self.calling("fusion")
        return sum(
            times * int(i.attribute(r'estimated_cycles":"(\d+)') or 0)
            for name, i, times in self
            if name not in fused
        )

    def _times(self) -> dict[str, float]:
        """How often each computation runs, callers before what they call."""
        order: list[str] = []
        seen = {self.entry}
        stack = [(self.entry, iter(self._callees(self.entry)))]
        while stack:
            name, rest = stack[-1]
            following = next((callee for callee, _ in rest if callee not in seen), None)
            if following is None:
                order.append(name)
                stack.pop()
            else:
                seen.add(following)
                stack.append((following, iter(self._callees(following))))
        times = dict.fromkeys(reversed(order), 0.0)
        times[self.entry] = 1.0
        for name in times:
            for callee, count in self._callees(name):
                times[callee] += times[name] * count
        return times

    def _callees(self, name: str) -> list[tuple[str, int]]:
        """What a computation calls, and how often each time that it runs."""
        return [
            (callee, self._rounds(name, i) if i.opcode == "while" else 1)
            for i in self.computations[name].values()
            if not i.opcode.startswith(_COMBINING)
            for callee in i.called
        ]

    def _rounds(self, computation: str, loop: Instruction) -> int:
        try:
            return self.trips(computation, loop)
        except ValueError:
            if self.open_ended is None:
                raise
            return self.open_ended

    def trips(self, computation: str, loop: Instruction) -> int:
        """Returns how many times a loop of a computation goes round.

        Raises:
          ValueError: its counter does not start, step and end at constants.
        """
        if known := loop.attribute(r'known_trip_count":\{"n":"(\d+)"'):
            return int(known)
        condition = self.computations[loop.attribute(r"condition=%([\w.\-]+)") or ""]
        body = loop.attribute(r"body=%([\w.\-]+)") or ""
        compare = next((i for i in condition.values() if i.opcode == "compare"), None)
        direction = compare.attribute(r"direction=(\w+)") if compare else None
        if compare is None or direction not in ("LT", "LE", "NE"):
            raise ValueError(f"the loop {loop.name} does not count up to a limit")
        counter, limit = (condition[name] for name in compare.operands)
        index = int(counter.attribute(r"index=(\d+)") or 0)
        (begin,) = self.operands(computation, loop)
        if begin.opcode != "tuple":
            raise ValueError(f"the loop {loop.name} does not begin with values that are seen")
        start = self._constant(computation, self.operands(computation, begin)[index])
        step = self._step(body, self.operands(body, self.roots[body])[index])
        end = _number(limit) + (direction == "LE")
        return max(0, math.ceil((end - start) / step))

    def _constant(self, computation: str, i: Instruction) -> int:
        while i.opcode in _PASSING:
            (i,) = self.operands(computation, i)
        return _number(i)

    def _step(self, computation: str, i: Instruction) -> int:
        """What is added to a loop's counter each time."""
        while i.opcode in _PASSING:
            (i,) = self.operands(computation, i)
        place = None
        if i.opcode == "get-tuple-element":
            place = int(i.attribute(r"index=(\d+)") or 0)
            (i,) = self.operands(computation, i)
        if i.opcode == "fusion":
            inner = i.called[0]
            root = self.roots[inner]
            return self._step(inner, root if place is None else self.operands(inner, root)[place])
        if i.opcode != "add":
            raise ValueError(f"{i.name} ({i.opcode}) does not count a loop")
        operands = self.operands(computation, i)
        return sum(
            _number(o) if o.opcode == "constant" else self._step(computation, o)
            for o in operands
            if o.opcode in ("constant", "add")
        )


def _number(i: Instruction) -> int:
    if i.opcode != "constant":
        raise ValueError(f"{i.name} ({i.opcode}) is no constant")
    return int(i.attribute(r"^(-?\d+)") or 0)


def _instruction(line: str) -> Instruction | None:
    """Reads a line; None where it holds no instruction."""
    start = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = ", line)
    if start is None:
        return None
    text = line[start.end() :]
    end = _closing(text) if text.startswith("(") else text.index(" ")
    kind, text = text[:end], text[end:].lstrip()
    opcode = text.partition("(")[0]
    text = text[len(opcode) :]
    end = _closing(text)
    inside, rest = text[1 : end - 1], text[end:].lstrip(", ")
    if opcode in _LITERAL:
        return Instruction(start[1], opcode, kind, (), f"{inside}, {rest}")
    return Instruction(start[1], opcode, kind, tuple(re.findall(r"%([\w.\-]+)", inside)), rest)


def _closing(text: str) -> int:
    """Returns where what follows the parenthesis begins that a text opens with."""
    depth = 0
    for place in re.finditer(r"[()]", text):
        depth += 1 if place[0] == "(" else -1
        if depth == 0:
            return place.end()
    return len(text)
