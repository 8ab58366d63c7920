"""Muon takes one matrix a head, as optax does alone with it, with and without a mesh."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from model.attention import Multihead
from tests.train import tiny
from tests.train.updates import network, numbers, optimizer_of, taking

# Rows and columns of each matrix of a parameter; the letters before the arrow number matrices.
MATRICES = {
    "attention.query": "ldhk->lhdk",
    "attention.key": "ldgk->lgdk",
    "attention.value_down": "ldgr->lgdr",
    "attention.value_up": "lhrd->lhrd",
    "attention.value_full": "lhde->lhde",
    "mlp.up": "ldf->ldf",
    "mlp.gate": "ldf->ldf",
    "mlp.down": "lfd->lfd",
}
MAPS = {
    "factored": {"model.mlp": "swiglu", "model.biases": True},
    "full": {"model.value_map": "full"},
}


MUON = dict(muon_learning_rate=0.1, weight_decay=0.2, clip=0.0, muon_momentum=0.9)


@functools.cache
def muon_steps(value_map, on_mesh):
    """Returns parameters after two steps, on a mesh or none."""
    axes = dict(fsdp=2, heads=4) if on_mesh else {}
    with jax.set_mesh(tiny.mesh(**axes)) if on_mesh else contextlib.nullcontext():
        return _muon_steps(MAPS[value_map], axes)


def _muon_steps(fields, axes):
    found, (arrays, *gradients) = network(fields, **axes)
    optimizer = optimizer_of("muon", found)
    start, state = arrays, jax.jit(optimizer.init)(arrays)
    update = taking(optimizer)
    for step, gradient in enumerate(gradients):
        arrays, state = update(gradient, state, arrays, numbers(**MUON), jnp.int32(step))
    for name, array in arrays.items():
        assert array.sharding == start[name].sharding, name
    return {name: np.asarray(a) for name, a in arrays.items()}


@jax.jit
def alone(matrix, *gradients):
    """Returns a matrix after optax's own Muon has seen it and nothing else."""
    muon = optax.contrib.muon(0.1, beta=0.9, weight_decay=0.2)
    params = {"w": matrix}
    state = muon.init(params)
    for gradient in gradients:
        moves, state = muon.update({"w": gradient}, state, params)
        params = optax.apply_updates(params, moves)
    return params["w"]


@pytest.mark.parametrize("value_map", MAPS)
@pytest.mark.parametrize("on_mesh", [False, True], ids=["no mesh", "2x4"])
def test_muon_takes_each_head_s_matrix_alone(value_map, on_mesh):
    found = muon_steps(value_map, on_mesh)
    _, (start, *gradients) = network(MAPS[value_map])
    seen = set()
    for path in found:
        for name, pattern in MATRICES.items():
            if not path.endswith(name):
                continue
            seen.add(name)

            def cut(array, pattern=pattern):
                matrices = np.einsum(pattern, np.asarray(array))
                return matrices.reshape(-1, *matrices.shape[-2:])

            matrices = zip(*(cut(tree[path]) for tree in (start, *gradients)), strict=True)
            expected = np.stack([alone(*parts) for parts in matrices])
            np.testing.assert_allclose(cut(found[path]), expected, rtol=0, atol=2e-5, err_msg=path)
    assert seen >= ({"attention.value_full"} if value_map == "full" else {"mlp.gate"})
    assert len(seen) == (5 if value_map == "full" else 7)


def test_muon_leaves_all_but_matrices_to_adamw():
    given = numbers(**MUON)
    found, (start, *gradients) = network(MAPS["factored"])
    after = muon_steps("factored", False)
    others = [d for d in found if d.kind != "matrix"]
    assert {d.kind for d in others} == {"embedding", "unembedding", "gain", "bias"}
    adamw = optimizer_of("adamw", others)
    arrays = {d.path: start[d.path] for d in others}
    state, update = adamw.init(arrays), taking(adamw)
    for step, gradient in enumerate(gradients):
        own = {d.path: gradient[d.path] for d in others}
        arrays, state = update(own, state, arrays, given, jnp.int32(step))
    for name, value in arrays.items():
        np.testing.assert_allclose(after[name], value, rtol=0, atol=1e-6, err_msg=name)


class Gated(Multihead):
    """A variant with a matrix and a gain of its own."""

    def __init__(self, config, declare, compute):
        super().__init__(config, declare, compute)
        h, d = config.num_heads, config.embed_dim
        self.gate = declare.matrix(
            "gate", (d, h, d), ("embed", "heads", "update"), "embed", stacked="heads"
        )
        self.strength = declare.gain("strength", (h,), ("heads",))


def test_a_variant_s_own_parameters_join_the_groups():
    fields = {"model.attention": f"{Gated.__module__}:Gated"}
    found, (arrays, gradients, _) = network(fields)
    optimizer = optimizer_of("muon", found)
    state = optimizer.init(arrays)
    own = "blocks.0.attention."
    flat = {jax.tree_util.keystr(k) for k, _ in jax.tree_util.tree_leaves_with_path(state["muon"])}
    assert any(own + "gate" in key for key in flat)
    assert not any(own + "strength" in key for key in flat)
    given = numbers(**MUON)
    after, _ = taking(optimizer)(gradients, state, arrays, given, jnp.int32(0))
    for h in range(8):
        start, gradient = (np.asarray(t[own + "gate"])[:, :, h] for t in (arrays, gradients))
        expected = 0.98 * start - 0.1 * _orthogonal(gradient)
        np.testing.assert_allclose(after[own + "gate"][:, :, h], expected, rtol=0, atol=2e-5)


def test_a_matrix_that_mixes_heads_is_one_matrix_and_no_stack():
    found, (arrays, gradients, _) = network({"model.attention": "model.variants.talking:Talking"})
    optimizer = optimizer_of("muon", found)
    given = numbers(**MUON)
    after, _ = taking(optimizer)(gradients, optimizer.init(arrays), arrays, given, jnp.int32(0))
    talk = "blocks.0.attention.talk"
    expected = 0.98 * arrays[talk] - 0.1 * _orthogonal(np.asarray(gradients[talk]))
    np.testing.assert_allclose(after[talk], expected, rtol=0, atol=2e-5)


def _orthogonal(stack):
    """Newton and Schulz's iteration as Jordan et al. (2024) write it, on each square matrix."""
    found = []
    for x in stack.astype(np.float64):
        x = x / np.linalg.norm(x)
        for _ in range(5):
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        found.append(x)
    return np.stack(found)
