"""Tiny networks for the tests of this room."""

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from configs import base
from model.axes import make_mesh
from model.config import ModelConfig
from model.parameter import declarations
from model.transformer import Transformer

BATCH, LENGTH = 2, 7

# As a user's functions are compiled; conftest.py leaves out what would make them fast.
OPTIMIZED: dict[str, Any] = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    "xla_cpu_parallel_codegen_split_count": 32,
}
if "xla_cpu_use_fusion_emitters" in os.environ.get("XLA_FLAGS", ""):
    OPTIMIZED["xla_cpu_use_fusion_emitters"] = True

# The kinds of network. Sizes differ from each other wherever they may, so that no two axes
# can be exchanged unseen.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "unrolled": dict(scan_layers=False),
    "grouped": dict(num_kv_heads=2),
    "multi-query": dict(num_kv_heads=1),
    "one head": dict(num_heads=1, num_kv_heads=1),
    "windowed": dict(window=(3,)),
    "dense and windowed": dict(window=(None, 3), num_layers=4),
    "dense and windowed, unrolled": dict(window=(None, 2), num_layers=4, scan_layers=False),
    "value rank of 1": dict(value_dim=1),
    "full value map": dict(value_map="full"),
    "full value map, grouped, biases": dict(value_map="full", num_kv_heads=2, biases=True),
    "learned positions": dict(positions="learned"),
    "no positions": dict(positions="none"),
    "other rotary base": dict(rotary_base=10.0),
    "query/key norm": dict(query_key_norm=True),
    "logit cap": dict(logit_cap=0.7),
    "layer norm": dict(norm="layernorm"),
    "biases": dict(norm="layernorm", biases=True, num_kv_heads=2),
    "large epsilon": dict(norm_epsilon=0.3, query_key_norm=True),
    "gelu_erf": dict(mlp="gelu_erf"),
    "swiglu": dict(mlp="swiglu", biases=True),
    "attention only": dict(mlp="none"),
    "parallel blocks": dict(parallel_blocks=True),
    "tied": dict(tie_embeddings=True),
    "GPT-2": dict(
        positions="learned", norm="layernorm", biases=True, tie_embeddings=True, max_length=9
    ),
}


def config(**changes: Any) -> ModelConfig:
    """Returns a tiny config in which every size is different."""
    sizes = dict(
        embed_dim=12,
        num_layers=2,
        num_heads=4,
        num_kv_heads=changes.get("num_heads", 4),
        head_dim=6,
        value_dim=5,
        mlp_dim=20,
        vocab_size=11,
        max_length=16,
        scan_layers=True,
    )
    return ModelConfig(**{**base.get_config().model, **sizes, **changes})


def abstract(shape: ModelConfig) -> Transformer:
    """Returns a network without values."""
    return jax.eval_shape(lambda: Transformer(shape, jax.random.key(0)))


def drawn(shape: ModelConfig, seed: int = 0) -> Transformer:
    """Returns a network whose every parameter is random, gains and biases too.

    The model's own start has biases of 0, gains of 1 and nearly uniform patterns, behind
    which a mistake could hide. Nothing is compiled.
    """
    model = abstract(shape)
    rng = np.random.default_rng(seed)
    values = []
    for declared in declarations(model):
        value = rng.standard_normal(declared.shape)
        if declared.kind == "matrix":
            fan_in = math.prod(declared.length(axis) for axis in declared.contracted)
            # Wide queries and keys make patterns that are far from uniform.
            wide = declared.path.endswith((".query", ".key"))
            value *= (1.5 if wide else 1.0) / math.sqrt(fan_in)
        elif declared.kind == "unembedding":
            value /= math.sqrt(shape.embed_dim)
        elif declared.kind == "embedding":
            value *= 0.5
        elif declared.kind == "gain":
            value = 1 + 0.3 * value
        else:
            value *= 0.3
        values.append(jnp.asarray(value, declared.dtype))
    return jax.tree.unflatten(jax.tree.structure(model), values)


def tokens(shape: ModelConfig, batch: int = BATCH, length: int = LENGTH, seed: int = 1):
    """Returns random tokens [B, T]."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, shape.vocab_size, (batch, length), dtype=np.int32)


def true_logits(model: Transformer, *args: Any, **kwargs: Any) -> np.ndarray:
    """Returns the logits of the true vocabulary, compiled."""
    found = np.asarray(jax.jit(lambda m, a, k: m(*a, **k))(model, args, kwargs))
    return found[..., : model.config.vocab_size]


def cross_entropy(model: Transformer, inputs: Any, labels: Any) -> jax.Array:
    """Returns the mean loss in nats; the padding's logits are far below every other."""
    logits = model(inputs)
    here = jnp.arange(logits.shape[-1])[None, None] == labels[..., None]
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - jnp.sum(logits * here, axis=-1))


def mesh(sizes: Mapping[str, int]):
    """Returns a mesh of as many of the eight devices as the sizes ask for."""
    whole = dict(data=1, fsdp=1, heads=1, context=1) | dict(sizes)
    return make_mesh(whole)


def replaced(model: nnx.Module, shape: ModelConfig) -> nnx.Module:
    """Returns the same parameters in a network that computes otherwise."""
    return jax.tree.unflatten(jax.tree.structure(abstract(shape)), jax.tree.leaves(model))


def changed(shape: ModelConfig, **changes: Any) -> ModelConfig:
    """Returns a config with other fields."""
    return dataclasses.replace(shape, **changes)
