"""A stack of layers is transformed as each of its layers would be."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.train.updates import drawn
from train.transformations import by_layer

ADAFACTOR = optax.chain(
    optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms()
)


@pytest.mark.parametrize("layers", [1, 3, 140], ids=str)  # optax would factor 140 layers
def test_a_layer_is_transformed_alone(layers):
    shapes = {"matrix": (layers, 128, 129), "narrow": (layers, 130, 2), "gain": (layers, 1)}
    stack = by_layer(dict.fromkeys(shapes, 0), ADAFACTOR)
    arrays, *gradients = (jax.tree.map(jnp.asarray, drawn(shapes, seed)) for seed in range(3))
    state, expected = stack.init(arrays), ADAFACTOR.init({n: a[-1] for n, a in arrays.items()})
    for gradient in gradients:
        found, state = jax.jit(stack.update)(gradient, state, arrays)
        last = [{name: a[-1] for name, a in tree.items()} for tree in (gradient, arrays)]
        alone, expected = ADAFACTOR.update(last[0], expected, last[1])
        for name, update in alone.items():
            np.testing.assert_allclose(found[name][-1], update, rtol=1e-5, err_msg=name)


def test_the_state_of_a_stack_has_the_shapes_that_saved_ones_have():
    shapes = {"matrix": (4, 128, 129), "narrow": (4, 130, 2), "gain": (4, 1), "table": (128, 130)}
    arrays = jax.tree.map(jnp.asarray, drawn(shapes, 0))
    found = by_layer({name: 0 for name in shapes if name != "table"}, ADAFACTOR).init(arrays)
    before = jax.tree.map(jnp.shape, ADAFACTOR.init(arrays))
    assert jax.tree.map(jnp.shape, found) == before
