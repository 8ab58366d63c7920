"""Compiles splash attention, and a network of it, for chips that are not here; prints JSON."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding

from model.axes import MESH_AXES, ShardingRules
from model.backends import choice
from model.compute import Compute
from model.heads import Heads
from model.masks import causal
from model.pattern import Pattern
from model.transformer import Transformer
from tests.model import small

KINDS = {
    "plain": dict(),
    "documents, window, grouped": dict(groups=2, window=700, documents=True, length=2048),
    "multi-query, R != K, cap, odd length": dict(
        groups=1, width=80, rank=48, cap=30.0, length=1000
    ),
    "short": dict(length=100),
}


def kernels(mesh, dtype, groups=8, width=64, rank=64, length=1024, window=None, cap=None, **more):
    """Returns how many kernels a value with its gradients is compiled to."""
    rules = ShardingRules()
    compute = Compute(dtype, "float32", rules)

    def shape(axes, sizes, kind=dtype):
        return jax.ShapeDtypeStruct(
            sizes, kind, sharding=NamedSharding(mesh, rules.spec(axes, sizes))
        )

    heads, keys = ("batch", "heads", "length", None), ("batch", "kv_heads", "length", None)
    q = shape(heads, (4, 8, length, width))
    k = shape(keys, (4, groups, length, width))
    v = shape(keys, (4, groups, length, rank))
    documents = shape(("batch", None), (4, length), jnp.int32) if more.get("documents") else None

    def run(q, k, v, documents):
        mask = causal(length, documents, compute).within(window)
        attend = choice.BACKENDS["splash"]
        out, pull = jax.vjp(
            lambda *qkv: attend(Heads(*qkv), mask, Pattern(cap=cap), compute), q, k, v
        )
        return out, pull(out)

    compiled = jax.jit(run).lower(q, k, v, documents).compile()
    return compiled.as_text().count('custom_call_target="tpu_custom_call"')


def network():
    """Returns how many kernels the gradients of a scanned network are compiled to, and a line."""
    config = small.config(
        embed_dim=256,
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,
        value_dim=64,
        max_length=1024,
        dtype="bfloat16",
        scan_layers=None,
        attention_backend="auto",
    )
    model = jax.eval_shape(lambda: Transformer(config, jax.random.key(0)))
    spec = model.compute.rules.spec(("batch", "length"), (4, 1024))
    tokens = jax.ShapeDtypeStruct((4, 1024), jnp.int32, sharding=spec)
    compiled = jax.jit(jax.grad(small.cross_entropy)).lower(model, tokens, tokens).compile()
    count = compiled.as_text().count('custom_call_target="tpu_custom_call"')
    return count, model.attention_line(4, 1024)


if __name__ == "__main__":
    topology = topologies.get_topology_desc("v5e:2x4", "tpu")
    devices = np.array(topology.devices).reshape(2, 2, 2, 1)
    mesh = Mesh(devices, MESH_AXES, axis_types=(AxisType.Explicit,) * 4)
    with jax.set_mesh(mesh):
        counts = {
            f"{kind}, {dtype}": kernels(mesh, dtype, **changes)
            for kind, changes in KINDS.items()
            for dtype in ("float32", "bfloat16")
        }
        count, said = network()
    print(json.dumps(dict(kernels=counts, network=count, said=said)))
