"""Saved models written for other programs, as safetensors, and as saved models of our own."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from configs import files, resolved
from configs.errors import UserError, disk_reason
from configs.folders import Folder, run_folder
from model import tensor_file
from model.axes import MESH_AXES, make_mesh
from model.manifest import CONFIG, EMA, MODEL, TOKENIZER
from model.parameter import Declaration, declarations
from model.saved import Saved
from model.saving import save
from model.tensor_file import Tensor
from model.transformer import Transformer
from train.differing import read
from train.provenance import provenance

TENSORS = "model.safetensors"


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written."""

    path: Folder
    source: Folder  # the step
    tensors: int
    elements: int
    bytes: int  # of the tensors
    dtypes: list[str]


def target(name: str) -> Folder:
    """Returns the folder of ``--to``, which is not there, or empty.

    Raises:
      UserError: something is there, or it cannot be used.
    """
    path = run_folder(name, "--to")
    if isinstance(path, Path):
        path = Path(os.path.realpath(path))  # a link is no folder to be replaced
        if path.exists() and not path.is_dir():
            raise UserError(f"--to={name} is a file; name a folder that is not there, or empty.")
    if files.names(path):
        raise UserError(f"--to={name} is not empty; name a folder that is not there, or empty.")
    return path


def export_tensors(saved: Saved, to: Folder, item: str, dtype: str | None = None) -> Exported:
    """Writes model.safetensors, config.json and tokenizer.json, all of them or nothing.

    A tensor a layer, with its number in the network, as "blocks.7.attention.query"; the rows that
    pad the vocabulary are left out. One array of the step, all layers of a parameter, is held at a
    time.

    Args:
      saved: the step, whose item is read.
      to: a folder of this machine, see ``target``.
      item: "model" or "ema".
      dtype: of floating-point tensors; None leaves them as they are stored.

    Raises:
      UserError: it cannot be written; an array cannot be read, or does not hold what was written.
    """
    if not isinstance(to, Path):
        raise UserError(f"--to={to} is no folder of this machine; name one, or give --as=model.")
    parts = list(_parts(saved, item, dtype))
    tensors = [tensor for _, pieces in parts for tensor in pieces]
    metadata = dict(checkpoint=str(saved.path), item=item)
    with _appearing(to) as folder:
        folder.mkdir()
        tensor_file.write(folder / TENSORS, tensors, _arrays(saved, item, parts), metadata)
        for name, text in _documents(saved, item, dtype).items():
            files.write_text(folder / name, text)
    return _exported(to, saved, tensors)


Part = tuple[Declaration, list[Tensor]]  # a parameter, and what becomes of it


def _parts(saved: Saved, item: str, dtype: str | None) -> Iterator[Part]:
    """Yields the tensors of each parameter, in the order of its layers."""
    config = saved.model_config
    with jax.set_mesh(_mesh()):
        abstract = jax.eval_shape(lambda key: Transformer(config, key), jax.random.key(0))
    held = saved.arrays(item)
    for declared in declarations(abstract):
        # An array that is missing is refused by name when it is read.
        stored = held.get(declared.path, {}).get("dtype", declared.dtype)
        cast = dtype if dtype and jax.numpy.issubdtype(stored, jax.numpy.floating) else stored
        declared = dataclasses.replace(declared, dtype=stored)
        shape = tuple(
            config.vocab_size if axis == "vocab" else size
            for axis, size in zip(declared.axes, declared.shape, strict=True)
        )
        if "layers" not in declared.axes:
            yield declared, [Tensor(declared.path, shape, cast)]
            continue
        blocks, stack, rest = declared.path.split(".", 2)
        numbers = range(int(stack), config.num_layers, config.period)
        yield declared, [Tensor(f"{blocks}.{n}.{rest}", shape[1:], cast) for n in numbers]


def _arrays(saved: Saved, item: str, parts: list[Part]) -> Iterator[np.ndarray]:
    """Yields the values of the tensors, having read one parameter after the other."""
    for declared, tensors in parts:
        about = dict(shape=declared.shape, dtype=declared.dtype)
        array = read(saved, item, declared.path, about)
        layers = array if "layers" in declared.axes else array[None]
        for layer, tensor in zip(layers, tensors, strict=True):
            true = layer[tuple(slice(size) for size in tensor.shape)]
            yield true.astype(jax.numpy.dtype(tensor.dtype), copy=False)


def export_model(saved: Saved, to: Folder, item: str, dtype: str | None = None) -> Exported:
    """Writes a saved model that every ``--checkpoint`` and ``checkpoint.restore_from`` takes.

    The whole model is held in memory.

    Arguments and errors are those of ``export_tensors``; ``to`` may be in an object store.
    """
    held = saved.arrays(item)
    abstract = {
        name: jax.ShapeDtypeStruct(tuple(about["shape"]), about["dtype"])
        for name, about in held.items()
    }
    arrays = saved.load(item, abstract, _mesh())
    if dtype is not None:
        floating = jax.numpy.floating
        arrays = {
            n: a.astype(dtype) if jax.numpy.issubdtype(a.dtype, floating) else a
            for n, a in arrays.items()
        }
    now = provenance(_mesh(), saved.config.seed)
    exported = dict(checkpoint=str(saved.path), step=saved.step, item=item)
    exported |= {name: now[name] for name in ("time", "command", "code")}
    made = saved.manifest.made | dict(exported=exported)
    with _appearing(to) as folder:
        save(folder, {MODEL: arrays}, _documents(saved, item, dtype), made=made).result()
    tensors = [Tensor(n, a.shape, a.dtype.name) for n, a in arrays.items()]
    return _exported(to, saved, tensors)


def _documents(saved: Saved, item: str, dtype: str | None) -> dict[str, str]:
    """Returns its plain files; the config says the dtype that its parameters have now."""
    config = saved.config.copy_and_resolve_references()
    if item == EMA:  # which is kept in float32
        config.model.param_dtype = "float32"
    if dtype is not None:
        config.model.param_dtype = dtype
    found = {CONFIG: resolved.to_json(config)}
    if saved.tokenizer is not None:
        found[TOKENIZER] = saved.tokenizer.to_json()
    return found


@contextlib.contextmanager
def _appearing(to: Folder) -> Iterator[Any]:
    """Yields a folder to make, which takes its name when all is there, and is deleted otherwise."""
    is_here = isinstance(to, Path)
    files.make_folder(to.parent, f"--to={to}")
    # In a store a model appears with its manifest, which is written last.
    part = to.parent / f".{to.name}.part" if is_here else to
    files.delete(part)  # of one that was stopped
    try:
        yield part
        if is_here:
            os.replace(part, to)
    except BaseException as error:
        files.delete(part)
        if not isinstance(error, OSError):
            raise
        raise UserError(
            f"--to={to} cannot be written ({disk_reason(error)}); free space, or name another "
            "folder."
        ) from error


def _exported(to: Folder, saved: Saved, tensors: list[Tensor]) -> Exported:
    elements = sum(int(np.prod(tensor.shape)) for tensor in tensors)
    size = sum(tensor.size for tensor in tensors)
    dtypes = sorted({tensor.dtype for tensor in tensors})
    return Exported(to, saved.path, len(tensors), elements, size, dtypes)


def _mesh() -> jax.sharding.Mesh:
    return make_mesh(dict.fromkeys(MESH_AXES, 1), devices=jax.devices("cpu")[:1])
