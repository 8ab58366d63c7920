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
            return jnp.square(model.last_residual(tokens).astype(jnp.float32)).mean()

        return jax.jit(jax.grad(loss)).lower(model, tokens).compile().as_text()


def computations(text):
    """Returns the lines of each computation, by its name."""
    found, name = {}, None
    for line in text.splitlines():
        if start := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            name = start[1]
            found[name] = []
        elif name and " = " in line:
            found[name].append(line.strip())
    return found


def shape(line):
    """Returns the sizes of the largest array that a line makes, without axes of one."""
    arrays = re.findall(r"(?:bf16|f32)\[([\d,]*)\]", line.split(" = ")[1].split("(%")[0])
    sizes = [tuple(int(n) for n in a.split(",") if n not in ("", "1")) for a in arrays]
    return max(sizes, key=np.prod, default=())


def read(text):
    """Returns what the loop over layers moves, forward and backward.

    Collectives that are not synchronous begin in lines named "async-collective-start"; a product
    whose result is scattered while it is computed is a loop or chain of collective permutes.
    """
    parts = computations(text)
    bodies = [b for b in re.findall(r"while\(.*?body=%([\w.\-]+)", text) if "windowed" not in b]
    found = {}
    for body in dict.fromkeys(bodies):
        lines = parts[body]
        ways = Counter("transpose(jvp" in line for line in lines if "/while/body/" in line)
        way = "backward" if ways[True] > ways[False] else "forward"
        started = [line for line in lines if line.startswith("%async-collective-start")]
        gathers = [line for line in lines if re.search(r" all-gather\(", line)]
        fused = [
            line
            for line in lines
            for called in re.findall(r"calls=%([\w.\-]+)", line)
            if "async" not in line.split(" = ")[0] and "async" not in called
            if any(re.search(r" all-reduce\(", inner) for inner in parts.get(called, ()))
        ]
        sums = [line for line in lines if re.search(r" all-reduce\(", line)] + fused
        products = {
            name
            for line in lines
            if "collective-permute-start" in line
            for name in re.findall(r"closed_call/([a-z,]+->[a-z]+)/dot_general", line)
        }
        scattered = [
            re.search(r"closed_call/([a-z,]+->[a-z]+)/", line)[1]
            for line in lines
            if re.search(r"body=%\S*windowed_dot_general_body_rs", line)
        ]
        assert way not in found, "the program has more loops than two"
        found[way] = dict(
            synchronous=len(gathers),
            asynchronous=len(started),
            gathered=sorted(Counter(shape(line) for line in gathers + started).items()),
            scattered=sorted(scattered),
            permuted=sorted(products),
            summed=sorted(Counter(shape(line) for line in sums).items()),
        )
    return found


def by_layer(text, mesh):
    """Returns what a layer moves forward and backward: kind, axes, type and shape, how often."""
    ways = {"forward": Counter(), "backward": Counter()}
    for c in collectives(Program(text), dict(mesh.shape)):
        way = "backward" if "transpose(jvp" in c.op_name else "forward"
        for kind, sizes in c.operands:
            moved = c.kind, ",".join(c.axes), kind, tuple(n for n in sizes if n > 1)
            if c.times >= SHAPE.num_layers:
                ways[way][moved] += c.times / SHAPE.num_layers
    return {way: sorted(moved.items()) for way, moved in ways.items()}


if __name__ == "__main__":
    devices = np.array(topologies.get_topology_desc("v5e:2x4", "tpu").devices)
    report = {}
    for name, sizes in {"fsdp 8": (1, 8, 1, 1), "fsdp 4, heads 2": (1, 4, 2, 1)}.items():
        mesh = Mesh(devices.reshape(sizes), MESH_AXES, axis_types=(AxisType.Explicit,) * 4)
        report[name] = read(program(mesh))
    mesh = Mesh(devices.reshape(1, 1, 8, 1), MESH_AXES, axis_types=(AxisType.Explicit,) * 4)
    for residual in ("replicated", "sharded"):
        report[f"heads 8, {residual}"] = by_layer(program(mesh, residual), mesh)
    print(json.dumps(report))
