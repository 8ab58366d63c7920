"""Compiles the gradient of four layers for chips that are not here; prints its collectives."""

import json
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh
from ml_collections import ConfigDict

from launch.compiled.collectives import collectives
from launch.compiled.program import Program
from model.axes import MESH_AXES, TOKENS, ShardingRules
from model.transformer import Transformer
from tests.model import small
from train.loss import summed_loss

ROWS, LENGTH, WIDTH = 16, 1024, 2048
SHAPE = small.config(
    embed_dim=WIDTH,
    num_layers=4,
    num_heads=16,
    num_kv_heads=16,
    head_dim=128,
    value_dim=128,
    mlp_dim=4 * WIDTH,
    vocab_size=32_000,
    max_length=LENGTH,
    dtype="bfloat16",
    scan_layers=None,
)


def program(mesh, residual="replicated"):
    """Returns the compiled text of the gradient, each parameter sharded as it is."""
    rules = ShardingRules.of(ConfigDict(dict(residual=residual, context_attention="auto")))
    with jax.set_mesh(mesh):
        model = jax.eval_shape(lambda: Transformer(SHAPE, jax.random.key(0), rules))
        spec = model.compute.rules.spec(TOKENS, (ROWS, LENGTH))
        tokens = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32, sharding=spec)

        def loss(model, tokens):
            weights = jnp.ones(tokens.shape) / tokens.size
            x = model.last_residual(tokens)
            return summed_loss(model, x, tokens, weights, jnp.zeros(()))[0]

        return jax.jit(jax.grad(loss)).lower(model, tokens).compile().as_text()


def by_layer(text, mesh):
    """Returns what a layer moves forward and backward, and what is moved once ("once").

    "moved": kind, axes, type and shape of each, with how often; "scattered": the products whose
    results are scattered while they are computed, as collective permutes; "waited": how many are
    synchronous.
    """
    ways = {way: dict(moved=Counter(), waited=0) for way in ("forward", "backward")}
    scattered, once = {way: set() for way in ways}, []
    for c in collectives(Program(text), dict(mesh.shape)):
        way = "backward" if "transpose(jvp" in c.op_name else "forward"
        if c.times < SHAPE.num_layers:
            once += [[c.kind, ",".join(c.axes), *array] for array in c.operands]
            continue
        if c.kind == "collective-permute":
            scattered[way].add(re.search(r"([a-z,]+->[a-z]+)/dot_general", c.op_name)[1])
            continue
        ways[way]["waited"] += c.times / SHAPE.num_layers if not c.asynchronous else 0
        for kind, sizes in c.operands:
            moved = c.kind, ",".join(c.axes), kind, tuple(n for n in sizes if n > 1)
            ways[way]["moved"][moved] += c.times / SHAPE.num_layers
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
