"""Arrays written to a safetensors file one after the other, so that not all are in memory at once.

The library's own writer asks for all of them. The format: eight bytes that give the length of a
header, the header as JSON, the arrays (https://huggingface.co/docs/safetensors, "Format").
"""

import dataclasses
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import safe_open

_NAMES = dict(
    float64="F64", float32="F32", float16="F16", bfloat16="BF16", int64="I64", int32="I32",
    int16="I16", int8="I8", uint64="U64", uint32="U32", uint16="U16", uint8="U8", bool="BOOL",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One array of the file, before its values are there."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # as numpy and ml_dtypes write it

    @property
    def size(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) * jnp.dtype(self.dtype).itemsize


def write(
    path: Path, tensors: list[Tensor], arrays: Iterable[np.ndarray], metadata: dict[str, str]
) -> None:
    """Writes a file, and makes sure that the library reads it.

    Args:
      path: of the file.
      tensors: what is in it.
      arrays: of the tensors, in their order.
      metadata: of the file, any texts.

    Raises:
      OSError: it cannot be written.
    """
    entries: dict[str, object] = {"__metadata__": metadata}
    start = 0
    for tensor in tensors:
        stop = start + tensor.size
        entries[tensor.name] = dict(
            dtype=_NAMES[tensor.dtype], shape=list(tensor.shape), data_offsets=[start, stop]
        )
        start = stop
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)  # so that the arrays begin at a multiple of 8
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor, array in zip(tensors, arrays, strict=True):
            if array.shape != tensor.shape or array.dtype.name != tensor.dtype:
                raise ValueError(f"{tensor} is not {array.dtype} {array.shape}")
            little = array.astype(array.dtype.newbyteorder("<"), copy=False)
            file.write(np.ascontiguousarray(little).reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())
    with safe_open(path, framework="np") as read:
        if set(read.keys()) != {tensor.name for tensor in tensors}:
            raise OSError(f"{path} does not hold what was written")
