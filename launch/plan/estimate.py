"""What a setting of mesh, remat and microbatches needs, counted before anything is compiled.

Cheap and rough: it orders the settings of a search, and the compiler has the last word.
"""

import dataclasses
import itertools
from collections.abc import Iterator

import jax.numpy as jnp
from ml_collections import ConfigDict

from configs.chips import Chip
from configs.errors import UserError
from model.axes import MESH_AXES, check_sizes
from model.config import ModelConfig
from model.tally import Tally

# Policies from what computes least to what holds least.
REMAT = ("none", "matmuls", "block", "offload")
# An estimate may be wrong by so much before the compiler is not asked.
MARGIN = 1.25


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a search tries."""

    mesh: tuple[int, ...]  # sizes of data, fsdp, heads, context
    residual: str
    remat: str
    accumulate: int

    @property
    def fields(self) -> dict[str, int | str]:
        """The config's fields, by their dotted names."""
        found: dict[str, int | str] = {
            f"mesh.{axis}": size for axis, size in zip(MESH_AXES, self.mesh, strict=True)
        }
        found |= {"mesh.residual": self.residual, "model.remat": self.remat}
        return found | {"optim.accumulate": self.accumulate}

    @property
    def flags(self) -> str:
        """The command line's flags: all, since the config may set any of them otherwise."""
        return " ".join(f"--config.{name}={value}" for name, value in self.fields.items())


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Of one device and one step."""

    memory: float  # bytes
    wire: float  # bytes sent
    operations: float

    def seconds(self, chip: Chip | None) -> float:
        """Returns the time that the peaks allow, where a quarter of the less is not hidden.

        Without a chip, a byte that is sent stands for a hundred operations.
        """
        flops, wire = (1.0, 0.01) if chip is None else (chip.flops, chip.wire)
        less, more = sorted((self.operations / flops, self.wire / wire))
        return more + less / 4


def settings(config: ConfigDict, model_config: ModelConfig, devices: int) -> Iterator[Setting]:
    """Yields every setting that divides over a number of devices."""
    sizes = [n for n in range(1, devices + 1) if devices % n == 0]
    for mesh in itertools.product(sizes, repeat=len(MESH_AXES)):
        data, fsdp, heads, context = mesh
        if data * fsdp * heads * context != devices:
            continue
        most = config.batch_size // (data * fsdp)
        for accumulate in (n for n in range(1, most + 1) if config.batch_size % n == 0):
            for residual in ("replicated", "sharded") if heads > 1 else ("replicated",):
                named = dict(zip(MESH_AXES, mesh, strict=True))
                rows = config.batch_size // accumulate
                try:
                    check_sizes(named, model_config, rows, config.length, residual)
                except UserError:
                    continue
                for remat in REMAT:
                    yield Setting(mesh, residual, remat, accumulate)


def kept_of_layer(config: ConfigDict, shape: ModelConfig, setting: Setting) -> dict[str, float]:
    """Returns the bytes of a layer's activations that a device keeps of a microbatch, by remat."""
    data, fsdp, heads, context = setting.mesh
    size = jnp.dtype(shape.dtype).itemsize
    tokens = config.batch_size // setting.accumulate * config.length / (data * fsdp * context)
    residual = tokens * shape.embed_dim * size / (heads if setting.residual == "sharded" else 1)
    per_head = (shape.num_heads + shape.num_kv_heads) * (shape.head_dim + shape.value_dim)
    gates = 2 if shape.mlp == "swiglu" else 1
    products = tokens * size * (per_head + gates * shape.mlp_dim) / heads
    return {
        "none": 3 * (products + 2 * residual),
        "matmuls": products + 3 * residual,
        "block": residual,
        "offload": 0.0,
    }


def estimate(config: ConfigDict, shape: ModelConfig, counted: Tally, setting: Setting) -> Estimate:
    """Returns what a setting needs.

    Weights are all-gathered over ``fsdp`` for each pass of a microbatch and their gradients
    reduce-scattered; each layer's two sums over ``heads`` and those of the backward pass move the
    residual stream; over ``context`` keys and values go round, or a quarter of that is exchanged.

    Args:
      config: whole.
      shape: of its model.
      counted: the tally of that.
      setting: what to set in it.
    """
    data, fsdp, heads, context = setting.mesh
    parameters = counted.parameter_bytes / jnp.dtype(shape.param_dtype).itemsize
    width, size = shape.embed_dim, jnp.dtype(shape.dtype).itemsize
    kept = jnp.dtype(shape.param_dtype).itemsize
    moments = 1 if config.optim.name in ("lion", "muon") else 2
    state = parameters * (kept + 4 * moments) / (fsdp * heads)
    gradients = parameters * (kept if setting.accumulate == 1 else 4) / (fsdp * heads)
    tokens = config.batch_size // setting.accumulate * config.length / (data * fsdp * context)
    of_layer = kept_of_layer(config, shape, setting)
    layer = parameters / shape.num_layers * size / heads
    activations = shape.num_layers * of_layer[setting.remat] + of_layer["matmuls"] + 2 * layer
    recomputed = setting.remat in ("block", "offload")

    passes = 3 if recomputed else 2
    of_weights = parameters * size / heads * passes * (fsdp - 1) / fsdp
    wide = jnp.dtype(shape.gradient_reduce_dtype or shape.accumulation_dtype).itemsize
    of_weights += parameters * wide / heads * (fsdp - 1) / fsdp
    of_replicas = 2 * parameters * wide / (heads * fsdp) * (data - 1) / data
    sums = 6 if recomputed else 4
    more = 1.5 if setting.residual == "sharded" else 1
    stream = tokens * width * size
    of_heads = sums * more * shape.num_layers * stream * 2 * (heads - 1) / heads
    keys = shape.num_kv_heads * (shape.head_dim + shape.value_dim) / heads
    of_context = (passes + 1) * shape.num_layers * tokens * size * keys * (context - 1) / 2
    wire = setting.accumulate * (of_weights + of_replicas + of_heads + of_context)
    in_all = counted.training_flops * config.batch_size * config.length
    operations = in_all / (data * fsdp * heads * context) * (4 / 3 if recomputed else 1)
    return Estimate(state + gradients + activations, wire, operations)
