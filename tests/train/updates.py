"""Declarations, random parameters and gradients for the tests of optimizers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from model.parameter import Declaration, declarations
from model.transformer import Transformer
from tests.train import tiny
from train.numbers import Numbers
from train.optimizer import Optimizer

# Any other attribute of a declaration follows from its kind and rank here.
KINDS = {
    "weight": "matrix",
    "stack": "matrix",
    "table": "embedding",
    "out": "unembedding",
    "gain": "gain",
    "b": "bias",
}
SHAPES = {"weight": (6, 4), "table": (5, 3), "out": (5, 3), "gain": (4,), "b": (4,)}


def optimizer_of(name, declared, **optim):
    """Returns an optimizer with a constant rate, unless ``optim`` says otherwise."""
    fields = dict(name=name, schedule="constant") | optim
    config = tiny.config({f"optim.{field}": value for field, value in fields.items()})
    return Optimizer(config.optim, declared)


def taking(optimizer):
    """Returns the compiled update: (gradients, state, arrays, numbers, step) to (arrays, state)."""
    return jax.jit(lambda *arguments: take(optimizer, *arguments))


def take(optimizer, gradients, state, arrays, numbers, step):
    """Returns arrays and state after an update."""
    updates, state = optimizer.chain(numbers, step).update(gradients, state, arrays)
    return optax.apply_updates(arrays, updates), dict(state)


def declared(shapes=SHAPES):
    return [
        Declaration(
            path=name,
            shape=shape,
            axes=("layers",) * (len(shape) == 3) + ("embed", "mlp")[: len(shape)],
            kind=KINDS[name],
            contracted=("embed",) if KINDS[name] == "matrix" else (),
            dtype="float32",
        )
        for name, shape in shapes.items()
    ]


def drawn(shapes, seed):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def numbers(**optim):
    """Returns numbers without warm-up, unless they say otherwise."""
    fields = {"optim.warmup_steps": 0}
    return Numbers.of(tiny.config(fields | {f"optim.{n}": value for n, value in optim.items()}))


def network(fields, **axes):
    """Returns declarations and random parameters of a model, and gradients, on a mesh or none."""
    shape = tiny.model_config(tiny.config(fields))

    def abstract():
        return jax.eval_shape(lambda: Transformer(shape, jax.random.key(0)))

    found = declarations(abstract())
    shapes = {d.path: d.shape for d in found}
    trees = [drawn(shapes, seed) for seed in (0, 1, 2)]
    if not axes:
        return found, [jax.tree.map(jnp.asarray, tree) for tree in trees]
    leaves = jax.tree.leaves(abstract())
    places = {d.path: leaf.sharding for d, leaf in zip(found, leaves, strict=True)}
    return found, [
        {name: jax.device_put(value, places[name].spec) for name, value in tree.items()}
        for tree in trees
    ]
