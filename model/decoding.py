"""A model made ready to decode: what every token would do again is done once."""

import copy

import jax
import jax.numpy as jnp
from flax import nnx

from model.axes import platform
from model.parameter import parameters
from model.stacks import unstacked
from model.transformer import Transformer

# Kinds of parameters that are operands of products and nothing else.
MULTIPLIED = ("matrix", "unembedding")


def ready(model: Transformer) -> Transformer:
    """Returns the same network with its weights cast and, on a CPU, its layers apart.

    Matrices take the dtype of activations, as they would at every use; gains, biases and tables
    that are looked up stay as they are. Layers stay stacked on accelerators, and where
    ``model.scan_layers`` says so. What is changed has memory of its own.

    Args:
      model: of parameters; one that is ready is returned as it is.
    """
    dtype, stays = model.config.dtype, not model.stacked or _stays_stacked(model)
    multiplied = [p for _, p in parameters(model) if p.kind in MULTIPLIED]
    multiplied.append(model.unembedding_table)
    if stays and all(param.dtype == dtype for param in multiplied):
        return model
    return _ready(model)


@jax.jit
def _ready(model: Transformer) -> Transformer:
    dtype = model.config.dtype

    def cast(param: nnx.Param) -> nnx.Variable:
        return param.replace(param[...].astype(dtype)) if param.kind in MULTIPLIED else param

    made = copy.copy(jax.tree.map(cast, model, is_leaf=lambda x: isinstance(x, nnx.Param)))
    if model.unembedding is None and model.embedding.dtype != dtype:
        multiplied = model.embedding.replace(model.embedding[...].astype(dtype))
        made.unembedding = nnx.data(multiplied)
    if model.stacked and not _stays_stacked(model):
        layers = unstacked(list(made.blocks), model.config.num_layers // model.config.period)
        made.blocks = nnx.List([block for layer in layers for block in layer])
        made.stacked = False
    return made


def one_row_options(dtype: str) -> dict[str, str]:
    """Returns the options with which to compile a program whose products have one row each.

    On a CPU the products of 16-bit matrices are sums of elements there, and XLA's library of
    kernels would write each term to memory first.

    Args:
      dtype: of activations.
    """
    if platform() != "cpu" or jnp.dtype(dtype).itemsize != 2:
        return {}
    return {"xla_cpu_experimental_ynn_fusion_type": ""}


def _stays_stacked(model: Transformer) -> bool:
    wanted = model.config.scan_layers
    return platform() != "cpu" if wanted is None else wanted
