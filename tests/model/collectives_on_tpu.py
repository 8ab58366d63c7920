"""Compiles the training step of four layers for chips that are not here; prints its collectives."""

import json
import re
from collections import Counter

import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from launch.compiled.collectives import collectives
from launch.compiled.program import Program
from launch.plan import step
from model.axes import MESH_AXES
from model.config import ModelConfig
from tests.train import tiny
from train.step import make_optimizer

LAYERS = 4
FIELDS = {
    "batch_size": 16,
    "length": 1024,
    "steps_per_call": 1,
    "model.embed_dim": 2048,
    "model.num_layers": LAYERS,
    "model.num_heads": 16,
    "model.head_dim": 128,
    "model.value_dim": 128,
    "model.mlp_dim": 8192,
    "model.vocab_size": 32_000,
    "model.dtype": "bfloat16",
    "model.attention_backend": "dense",
}


def program(mesh, residual="replicated"):
    """Returns the compiled text of a step, its state sharded as it is."""
    config = tiny.config(FIELDS | {"mesh.residual": residual})
    shape = ModelConfig.from_config(config.model, config.model.vocab_size, config.length)
    optimizer = make_optimizer(config, shape)
    state = step.abstract_state(config, shape, optimizer, mesh)
    return step.compiled_step(config, optimizer, state, mesh, False).as_text()


def by_layer(text, mesh):
    """Returns what a layer moves forward and backward, and what is moved once ("once").

    Single numbers, such as those of the gradient's norm, are left out of "once".

    "moved": kind, axes, type and shape of each, with how often; "scattered": the products whose
    results are scattered while they are computed, as collective permutes; "waited": how many are
    synchronous.
    """
    ways = {way: dict(moved=Counter(), waited=0) for way in ("forward", "backward")}
    scattered, once = {way: set() for way in ways}, []
    for c in collectives(Program(text, open_ended=1), dict(mesh.shape)):
        way = "backward" if "transpose(jvp" in c.op_name else "forward"
        if c.times < LAYERS:
            once += [[c.kind, ",".join(c.axes), *array] for array in c.operands if any(array[1])]
            continue
        if c.kind == "collective-permute":
            scattered[way].add(re.search(r"([a-z,]+->[a-z]+)/dot_general", c.op_name)[1])
            continue
        ways[way]["waited"] += c.times / LAYERS if not c.asynchronous else 0
        for kind, sizes in c.operands:
            moved = c.kind, ",".join(c.axes), kind, tuple(n for n in sizes if n > 1)
            ways[way]["moved"][moved] += c.times / LAYERS
    layers = {
        way: dict(
            moved=sorted(found["moved"].items()),
            waited=found["waited"],
            scattered=sorted(scattered[way]),
        )
        for way, found in ways.items()
    }
    return layers | dict(once=sorted(once))


if __name__ == "__main__":
    devices = np.array(topologies.get_topology_desc("v5e:2x4", "tpu").devices)
    report = {}
    for name, sizes, residual in (
        ("fsdp 8", (1, 8, 1, 1), "replicated"),
        ("fsdp 4, heads 2", (1, 4, 2, 1), "replicated"),
        ("heads 8, replicated", (1, 1, 8, 1), "replicated"),
        ("heads 8, sharded", (1, 1, 8, 1), "sharded"),
    ):
        mesh = Mesh(devices.reshape(sizes), MESH_AXES, axis_types=(AxisType.Explicit,) * 4)
        report[name] = by_layer(program(mesh, residual), mesh)
    print(json.dumps(report))
