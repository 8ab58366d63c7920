"""Logical axes, the table that maps them to mesh axes, and the mesh."""

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping, Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, PartitionSpec
from ml_collections import ConfigDict

from configs.errors import UserError
from model.config import ModelConfig

MESH_AXES = ("data", "fsdp", "heads", "context")
MOST_HOST_DEVICES = 2048  # each is several threads

Axes = tuple[str | None, ...]
MeshAxes = tuple[str, ...]

# Logical axes of activations.
TOKENS: Axes = ("batch", "length")
RESIDUAL: Axes = ("batch", "residual_length", None)  # the stream between blocks
WHOLE_RESIDUAL: Axes = ("batch", "length", None)  # as a product reads it
QUERIES: Axes = ("batch", "heads", "length", None)
KEYS: Axes = ("batch", "kv_heads", "length", None)
WHOLE_KEYS: Axes = ("batch", "kv_heads", None, None)  # of all the sequence, for any query
SPREAD: Axes = ("batch", "spread_heads", None, None)  # of all the sequence, fewer heads a device


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """The mesh axes over which each logical axis is sharded; ``()`` is not split at all.

    Parameters name their axes in their declaration, activations where they are made.
    """

    batch: MeshAxes = ("data", "fsdp")
    length: MeshAxes = ("context",)
    residual_length: MeshAxes = ("context",)  # with "heads" too where mesh.residual is "sharded"
    embed: MeshAxes = ("fsdp",)  # of parameters; the residual stream is not split
    heads: MeshAxes = ("heads",)
    kv_heads: MeshAxes = ("heads",)
    spread_heads: MeshAxes = ("heads", "context")  # where sequences are exchanged for heads
    mlp: MeshAxes = ("heads",)
    vocab: MeshAxes = ("heads",)
    layers: MeshAxes = ()
    context_attention: str = "auto"  # see model.context

    @classmethod
    def of(cls, mesh: ConfigDict) -> "ShardingRules":
        """Returns the rules that ``config.mesh`` asks for."""
        sharded = mesh.residual == "sharded"
        return cls(
            residual_length=("context", "heads") if sharded else ("context",),
            context_attention=mesh.context_attention,
        )

    def spec(self, axes: Axes, shape: Sequence[int] | None = None) -> PartitionSpec | None:
        """Returns how an array with these logical axes is sharded over the current mesh.

        Axes that the table lacks are not split; where there is a shape, neither is a dimension that
        its mesh axes do not divide (grouped key/value heads, or a batch of one prompt). It is None
        where no mesh is set, or each shard is computed by itself.
        """
        taken = [m for axis in axes for m in getattr(self, axis or "", ())]
        if twice := {m for m in taken if taken.count(m) > 1}:
            raise UserError(
                f"the axes {axes} of an array split two dimensions over mesh.{twice.pop()}; write "
                "None for one of them, as for the width of activations."
            )
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or mesh.are_all_axes_manual:
            return None
        sizes = dict(mesh.shape)
        parts: list[MeshAxes | None] = []
        for i, axis in enumerate(axes):
            over = tuple(m for m in getattr(self, axis or "", ()) if sizes.get(m, 1) > 1)
            shards = math.prod(sizes[m] for m in over)
            fits = shape is None or shape[i] % shards == 0
            parts.append(over if over and fits else None)
        return PartitionSpec(*parts)


def spec_of(x: jax.Array) -> PartitionSpec | None:
    """Returns how an array is sharded over the mesh that is set; None where ``spec`` gives None."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.are_all_axes_manual else jax.typeof(x).sharding.spec


def axes_of(part: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Returns the mesh axes of one part of a spec."""
    return (part,) if isinstance(part, str) else part or ()


def mesh_axes(parts: Iterable[str | tuple[str, ...] | None]) -> set[str]:
    """Returns the mesh axes of some parts of a spec."""
    return {axis for part in parts for axis in axes_of(part)}


def platform() -> str:
    """Returns what programs are made for: the kind of device of the mesh that is set.

    Without a mesh it is what jax runs on. A mesh may have devices that are not here, such as
    those of a TPU's topology that a program is only compiled for.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def device_kind() -> str:
    """Returns the same device's kind, as jax names it: "TPU v5 lite", say."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.devices()[0].device_kind if device is None else device.device_kind


def split_host(count: int | None) -> None:
    """Splits a CPU into ``config.host_devices``; no array may have been made before.

    Raises:
      UserError: it is below 1 or too many, or jax has begun with another number.
    """
    if count is None:
        return
    if not 1 <= count <= MOST_HOST_DEVICES:
        raise UserError(
            f"config.host_devices = {count} must be at least 1 and at most {MOST_HOST_DEVICES:,}."
        )
    # A second step in flight takes a thread that a collective of the first waits for.
    os.environ.setdefault("NPROC", str(max(4 * count, os.cpu_count() or 1)))
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as error:
        if (begun := len(jax.devices("cpu"))) != count:
            raise UserError(
                f"config.host_devices = {count} comes too late: jax has begun with {begun}; "
                "set it in the config of a new process."
            ) from error


def make_mesh(
    sizes: dict[str, int], field: str = "config.mesh", devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Returns a mesh with explicit axes ``data``, ``fsdp``, ``heads`` and ``context``.

    One of the sizes may be -1 and takes the devices that are left. An axis of a TPU's mesh lies on
    whole axes of its torus where it can. Of several slices, which a data-centre network joins, each
    has its share of ``data``, whose traffic is the least.

    Args:
      sizes: of the axes.
      field: that gives them, for errors.
      devices: to use; all of jax's when None.

    Raises:
      UserError: the sizes do not multiply to the number of devices, or slices do not divide
        ``data``.
    """
    devices = jax.devices() if devices is None else devices
    shape = [int(sizes[axis]) for axis in MESH_AXES]
    written = " x ".join(f"{axis}={size}" for axis, size in zip(MESH_AXES, shape, strict=True))
    if any(size < 1 and size != -1 for size in shape) or shape.count(-1) > 1:
        raise UserError(f"{field} ({written}) must hold positive sizes, at most one of them -1.")
    known = math.prod(size for size in shape if size != -1)
    filled = [len(devices) // known if size == -1 else size for size in shape]
    count, wrong = math.prod(filled), ""
    if count > len(devices):
        wrong = f"needs {count} devices and there are {len(devices)}"
    elif -1 in shape and count != len(devices):
        wrong = f"does not divide {len(devices)} devices"
    elif jax.process_count() > 1 and count != len(devices):
        wrong = f"uses {count} of {len(devices)} devices, but every process needs a share"
    slices = len({getattr(device, "slice_index", 0) for device in devices[:count]})
    if filled[0] % slices:
        wrong = f"needs mesh.data to be a multiple of the {slices} slices"
    if wrong:
        host = "--host_devices" if field == "--mesh" else "config.host_devices"
        more = f", or split the CPU by {host}" if devices[0].platform == "cpu" else ""
        raise UserError(f"{field} ({written}) {wrong}; change a size of {field}{more}.")
    types = (AxisType.Explicit,) * len(MESH_AXES)
    split = dict(allow_split_physical_axes=True)
    if slices > 1:
        inside, across = [filled[0] // slices, *filled[1:]], [slices, 1, 1, 1]
        grid = mesh_utils.create_hybrid_device_mesh(inside, across, devices[:count], **split)
    else:
        grid = mesh_utils.create_device_mesh(filled, devices[:count], **split)
    return Mesh(grid, MESH_AXES, axis_types=types)


def notes(sizes: Mapping[str, int], config: ModelConfig) -> list[str]:
    """Returns what a run should know of a mesh of these sizes, by axis: a line each."""
    groups, shards = config.num_kv_heads, sizes["heads"]
    if groups % shards:
        return [
            f"model.num_kv_heads = {groups} is not divisible by mesh.heads = {shards}: keys and "
            "values, with their parameters, are replicated over it"
        ]
    return []


def check_mesh(
    mesh: Mesh, config: ModelConfig, batch_size: int, length: int, residual: str = "replicated"
) -> None:
    """Checks that a model and microbatches of ``batch_size`` sequences can be sharded over a mesh.

    ``residual`` is ``config.mesh.residual``.

    Raises:
      UserError: a size does not divide; the sentence names the field.
    """
    check_sizes(dict(mesh.shape), config, batch_size, length, residual)


def check_sizes(
    sizes: dict[str, int], config: ModelConfig, batch_size: int, length: int, residual: str
) -> None:
    """Checks the same of the sizes of a mesh, by axis."""
    rows = sizes["data"] * sizes["fsdp"]
    needs = [
        ("batch_size / optim.accumulate", batch_size, "mesh.data x mesh.fsdp", rows),
        ("model.embed_dim", config.embed_dim, "mesh.fsdp", sizes["fsdp"]),
        ("model.num_heads", config.num_heads, "mesh.heads", sizes["heads"]),
        ("model.mlp_dim", config.mlp_dim, "mesh.heads", sizes["heads"]),
        ("the padded vocabulary", config.padded_vocab_size, "mesh.heads", sizes["heads"]),
        ("length", length, "mesh.context", sizes["context"]),
    ]
    if residual == "sharded":
        shards = sizes["context"] * sizes["heads"]
        needs.append(("length", length, "mesh.context x mesh.heads (mesh.residual)", shards))
    for name, size, axis, shards in needs:
        if size % shards:
            raise UserError(
                f"{name} = {size} is not divisible by {axis} = {shards}; change one of them."
            )
