"""What a compiled step says of itself: memory, operations, wire, and the time that they allow."""

import dataclasses
from collections import defaultdict
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from configs.chips import Chip
from launch.compiled.collectives import SLICES, collectives
from launch.compiled.operations import product_operations
from launch.compiled.program import Program
from launch.plan.activations import activation_bytes
from launch.plan.estimate import Setting, kept_of_layer
from launch.plan.step import shard_bytes
from model.axes import MESH_AXES
from model.config import ModelConfig
from model.tally import tally
from train.step import TrainState


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device."""

    parameters: int
    optimizer: int
    averages: int  # the moving average, and float32 weights behind narrower parameters
    batches: int
    temporaries: int  # gradients, activations and what products are made of
    gradients: int  # of the temporaries, where all are held at once; summed over microbatches: f32
    activations: int  # of the temporaries: what the forward pass keeps for the backward one
    peak: int
    available: float | None  # as published
    host: int = 0  # of a microbatch's activations, in the host's memory


@dataclasses.dataclass(frozen=True)
class Wire:
    """Bytes that one device sends in a step by one kind of collective over some mesh axes."""

    kind: str
    axes: str
    asynchronous: bool
    bytes: float


@dataclasses.dataclass(frozen=True)
class Figures:
    """Of one device and one step, unless it says otherwise."""

    devices: int
    mesh: dict[str, int]
    tokens: int  # of all devices
    memory: Memory
    products: float  # operations of matrix products, without those inside kernels
    counted: float  # operations by the tally: forward and backward once, attention included
    traffic: float  # bytes that are read from memory and written to it, at least
    host_traffic: float  # bytes that go to the host's memory and back
    cycles: float  # that the compiler estimates, without collectives and kernels
    wire: list[Wire]
    seconds: dict[str, float]  # that each bound allows at the published peaks


def figures(
    config: ConfigDict,
    model_config: ModelConfig,
    state: TrainState,
    compiled: Any,
    mesh: Mesh,
    chip: Chip | None,
    documents: bool,
) -> Figures:
    """Reads a compiled step.

    Args:
      config: whole.
      model_config: of its model.
      state: the shapes of its state.
      compiled: as of ``launch.plan.step.compiled_step``.
      mesh: that it is compiled for.
      chip: what is published of it; None where nothing is.
      documents: whether a row has several.
    """
    sizes = dict(mesh.shape)
    # A call takes as many steps as it is told; these are the figures of one.
    program = Program(compiled.as_text(), open_ended=1)
    sent: defaultdict[tuple[str, str, bool], float] = defaultdict(float)
    slices = len({getattr(device, "slice_index", 0) for device in mesh.devices.flat})
    for c in collectives(program, sizes, slices):
        sent[c.kind, " x ".join(c.axes) or "one device", c.asynchronous] += c.wire
    wire = [
        Wire(*key, bytes=count) for key, count in sorted(sent.items(), key=lambda x: -x[1]) if count
    ]
    tokens = config.batch_size * config.length
    counted = tally(model_config, config.length).training_flops * tokens / mesh.size
    products = product_operations(program)
    kept = activation_bytes(config, model_config, state, mesh, documents)
    memory = _memory(config, state, compiled, mesh, chip, *kept)
    traffic = _traffic(config, model_config, memory, sizes)
    seconds = {}
    if chip is not None:
        between = sum(w.bytes for w in wire if w.axes == SLICES)
        at_once = sum(w.bytes for w in wire if w.asynchronous) - between
        alone = sum(w.bytes for w in wire if not w.asynchronous)
        seconds = dict(
            compute=max(products, counted) / chip.flops,
            memory=traffic / chip.bandwidth,
            wire_synchronous=alone / chip.wire,
            wire_asynchronous=at_once / chip.wire,
        )
        if chip.network is not None and slices > 1:
            seconds["network"] = between / chip.network
        beside = [second for name, second in seconds.items() if name != "wire_synchronous"]
        seconds["step"] = max(beside) + seconds["wire_synchronous"]
    return Figures(
        devices=mesh.size,
        mesh=sizes,
        tokens=tokens,
        memory=memory,
        traffic=traffic,
        host_traffic=2.0 * config.optim.accumulate * memory.host,
        products=products,
        counted=counted,
        cycles=program.cycles(),
        wire=wire,
        seconds=seconds,
    )


def _traffic(config: ConfigDict, shape: ModelConfig, memory: Memory, mesh: dict[str, int]) -> float:
    """Returns the bytes that cross between a device and its memory in a step, at least.

    The state is read and written once; of each microbatch gradients and activations are written and
    read, those that are kept and, where blocks are computed again, the results of their products;
    and the matrices of its heads, gathered and in the type of products, are read in each pass:
    forward, backward twice, and once more where blocks are computed again.
    """
    again = shape.remat in ("block", "offload")
    sizes, microbatches = tuple(mesh[axis] for axis in MESH_AXES), config.optim.accumulate
    setting = Setting(sizes, config.mesh.residual, shape.remat, microbatches)
    of_layer = kept_of_layer(config, shape, setting)
    products = shape.num_layers * (of_layer["matmuls"] - of_layer["block"]) if again else 0
    itemsize = jnp.dtype(shape.param_dtype).itemsize
    gathered = memory.parameters * mesh["fsdp"] / itemsize * jnp.dtype(shape.dtype).itemsize
    passes = 4 if again else 3
    of_microbatch = 2 * (memory.gradients + memory.activations + products) + passes * gathered
    state = memory.parameters + memory.optimizer + memory.averages
    return 2 * state + microbatches * of_microbatch


def _memory(
    config: ConfigDict,
    state: TrainState,
    compiled: Any,
    mesh: Mesh,
    chip: Chip | None,
    activations: int,
    host: int,
) -> Memory:
    analysis = compiled.memory_analysis()
    arguments, peak = analysis.argument_size_in_bytes, analysis.peak_memory_in_bytes
    if mesh.devices.flat[0].platform == "cpu":  # whose peak leaves the temporaries out
        new = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
        peak = arguments + new + analysis.temp_size_in_bytes
    parameters, optimizer = shard_bytes(state.model), shard_bytes((state.optimizer, state.recent))
    averages = shard_bytes((state.master, state.ema))
    of_one = 4 if config.optim.accumulate > 1 else jnp.dtype(config.model.param_dtype).itemsize
    gradients = parameters * of_one // jnp.dtype(config.model.param_dtype).itemsize
    return Memory(
        parameters=parameters,
        optimizer=optimizer,
        averages=averages,
        batches=arguments - parameters - optimizer - averages,
        temporaries=peak - arguments,
        gradients=gradients,
        activations=activations,
        peak=peak,
        available=None if chip is None else chip.memory,
        host=host,
    )
