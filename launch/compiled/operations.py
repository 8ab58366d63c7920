"""Floating-point operations of the matrix products in a compiled program."""

import math
import re

import numpy as np

from launch.compiled.program import Instruction, Program


def product_operations(program: Program) -> float:
    """Returns the operations of all products that a device computes in a step, loops counted.

    Kernels, such as splash attention, are not in it: the program does not say what they do.
    """
    total = 0.0
    for name, i, times in program:
        if i.opcode in ("dot", "convolution"):
            left, right = (operand.arrays[0][1] for operand in program.operands(name, i))
            count = _dot if i.opcode == "dot" else _convolution
            total += times * count(i, left, right)
    return total


def _dot(i: Instruction, left: tuple[int, ...], right: tuple[int, ...]) -> float:
    del right
    summed = i.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or ""
    return 2.0 * math.prod(i.arrays[0][1]) * math.prod(left[int(n)] for n in summed.split(",") if n)


def _convolution(i: Instruction, left: tuple[int, ...], right: tuple[int, ...]) -> float:
    """Returns a convolution's operations, without those on padding.

    TPUs compute every product as one: the batch of a batched product is a window that slides over
    padding, of which one place in each counts.
    """
    of_left, of_right, of_result = re.split("_|->", i.attribute(r"dim_labels=([^,\s]+)") or "")
    result = i.arrays[0][1]
    fields = dict(part.split("=") for part in (i.attribute(r"window=\{([^}]*)\}") or "").split())
    ranks = sum(label.isdigit() for label in of_left)

    def each(name: str, default: str) -> list[str]:
        return fields[name].split("x") if name in fields else [default] * ranks

    pairs = 1
    for n in range(ranks):
        size, stride = int(each("size", "1")[n]), int(each("stride", "1")[n])
        low = int(each("pad", "0_0")[n].split("_")[0])
        spread, gap = int(each("lhs_dilate", "1")[n]), int(each("rhs_dilate", "1")[n])
        last = (left[of_left.index(str(n))] - 1) * spread
        outs = np.arange(result[of_result.index(str(n))])
        place = outs[:, None] * stride + np.arange(size)[None] * gap - low
        pairs *= int(((place >= 0) & (place <= last) & (place % spread == 0)).sum())
    groups = int(i.attribute(r"feature_group_count=(\d+)") or 1)
    batches = int(i.attribute(r"batch_group_count=(\d+)") or 1)
    features, batch = left[of_left.index("f")] / groups, left[of_left.index("b")] / batches
    return 2.0 * pairs * features * batch * right[of_right.index("o")]
