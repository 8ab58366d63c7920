"""The same numbers on every mesh: parameters, logits, gradients and decoding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.attention import Multihead
from model.axes import ShardingRules
from model.transformer import Transformer
from tests.model import reference, small

MESHES = {
    "fsdp 8": dict(fsdp=8),
    "fsdp 2, heads 4": dict(fsdp=2, heads=4),
    "heads 8": dict(heads=8),
    "data 2, heads 2, context 2": dict(data=2, heads=2, context=2),
}
CONFIGS = {
    # 65 tokens, which no mesh divides.
    "plain": small.config(
        embed_dim=16, num_heads=8, num_layers=2, mlp_dim=24, vocab_size=65, remat="block"
    ),
    # Two groups of keys and values, which heads = 4 and heads = 8 do not divide.
    "grouped": small.config(
        embed_dim=16,
        num_heads=8,
        num_kv_heads=2,
        mlp_dim=24,
        window=(None, 3),
        positions="learned",
        norm="layernorm",
        biases=True,
        tie_embeddings=True,
        query_key_norm=True,
    ),
    "full value map": small.config(
        embed_dim=16, num_heads=8, mlp_dim=24, mlp="swiglu", value_map="full", scan_layers=False
    ),
}
ROWS, LENGTH = 8, 6


def batch(name):
    """Returns tokens, labels, positions and segments [B, T]: two documents a row."""
    tokens = small.tokens(CONFIGS[name], ROWS, LENGTH)
    positions = np.broadcast_to(np.array([0, 1, 2, 3, 0, 1], np.int32), tokens.shape)
    segments = np.broadcast_to(np.array([1, 1, 1, 1, 2, 2], np.int32), tokens.shape)
    return tokens, np.roll(tokens, -1, 1), positions, segments


def place(name):
    """Returns random parameters, sharded on the mesh that is set."""
    return jax.tree.map(
        lambda value, like: jax.device_put(value, like.sharding.spec),
        small.drawn(CONFIGS[name]),
        small.abstract(CONFIGS[name]),
    )


def split(x):
    """Returns an input [B, T], sharded on the mesh that is set."""
    return jax.device_put(x, ShardingRules().spec(("batch", "length"), x.shape))


@jax.jit
def differentiate(model, tokens, labels, positions, segments):
    def loss(model):
        logits = model(tokens, positions, segments)
        here = jnp.arange(logits.shape[-1])[None, None] == labels[..., None]
        each = jax.nn.logsumexp(logits, axis=-1) - jnp.sum(logits * here, axis=-1)
        return each.mean(), logits

    return jax.value_and_grad(loss, has_aux=True)(model)


def run(name, sizes):
    """Returns loss, logits and gradients on a mesh."""
    with jax.set_mesh(small.mesh(sizes)):
        model = place(name)
        (loss, logits), gradients = differentiate(model, *map(split, batch(name)))
        for value, gradient in zip(jax.tree.leaves(model), jax.tree.leaves(gradients), strict=True):
            assert gradient.sharding == value.sharding
        return (
            float(loss),
            np.asarray(logits)[..., : CONFIGS[name].vocab_size],
            reference.weights(gradients),
        )


@functools.cache
def on_one_device(name):
    return run(name, {})


@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        *(("plain", mesh) for mesh in MESHES),
        *(("grouped", mesh) for mesh in list(MESHES)[1:]),
        ("full value map", "data 2, heads 2, context 2"),
    ],
)
def test_gradients_do_not_depend_on_the_mesh(name, mesh):
    loss, logits, gradients = run(name, MESHES[mesh])
    expected_loss, expected_logits, expected = on_one_device(name)
    assert abs(loss - expected_loss) < 1e-6
    np.testing.assert_allclose(logits, expected_logits, rtol=0, atol=1e-5)
    for path, gradient in expected.items():
        np.testing.assert_allclose(gradients[path], gradient, rtol=0, atol=1e-5, err_msg=path)


EXACT = small.changed(CONFIGS["plain"], embed_dim=32, max_length=256)
NARROW = small.changed(EXACT, dtype="bfloat16")


def gradients_of(shape, sizes):
    tokens = np.full((8, 256), 3, np.int32)
    with jax.set_mesh(small.mesh(sizes)):
        model = jax.tree.map(
            lambda value, like: jax.device_put(value, like.sharding.spec),
            small.drawn(shape),
            small.abstract(shape),
        )
        there = split(tokens)
        return reference.weights(jax.jit(jax.grad(small.cross_entropy))(model, there, there))


@functools.cache
def gradients_on_one_device(shape):
    return gradients_of(shape, {})


@pytest.mark.parametrize(
    "sizes", [dict(fsdp=8), dict(heads=4, fsdp=2), dict(heads=2, context=2)], ids=str
)
def test_gradients_in_bfloat16_are_as_near_to_the_truth_as_on_one_device(sizes):
    """One token takes all positions: what would be summed in bfloat16 would lose most of it."""
    truth, alone = gradients_on_one_device(EXACT), gradients_on_one_device(NARROW)
    found = gradients_of(NARROW, sizes)
    # All keys are alike, so that no pattern can change: what is left of these is rounding.
    zero = {path for path, whole in truth.items() if np.linalg.norm(whole) < 1e-6}
    assert zero == {"blocks.0.attention.query", "blocks.0.attention.key"}
    for path in truth.keys() - zero:
        whole = truth[path]
        norm = np.linalg.norm(whole)
        own, one = (np.linalg.norm(g[path] - whole) / norm for g in (found, alone))
        assert own < 1.5 * one + 0.01, path


def test_a_mesh_of_one_device_computes_what_no_mesh_computes():
    config = CONFIGS["plain"]
    tokens, _, positions, segments = batch("plain")
    found = small.true_logits(small.drawn(config), tokens, positions, segments)
    np.testing.assert_allclose(found, on_one_device("plain")[1], rtol=0, atol=1e-6)


def initial(config, options):
    start = jax.jit(lambda key: Transformer(config, key), compiler_options=options)
    return reference.weights(start(jax.random.key(7)))


@functools.cache
def initial_without_mesh(config, optimized):
    return initial(config, small.OPTIMIZED if optimized else None)


@pytest.mark.parametrize("sizes", MESHES.values(), ids=MESHES)
def test_initial_parameters_do_not_depend_on_the_mesh(sizes):
    config = CONFIGS["grouped"]
    with jax.set_mesh(small.mesh(sizes)):
        found = initial(config, None)
    for path, value in initial_without_mesh(config, optimized=False).items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", MESHES.values(), ids=MESHES)
def test_initial_parameters_do_not_depend_on_the_mesh_when_optimized(sizes):
    """Shards of 3 or 21 columns, which end within a vector register."""
    config = small.config(
        embed_dim=24, num_heads=8, head_dim=6, mlp_dim=168, value_dim=7, mlp="swiglu"
    )
    with jax.set_mesh(small.mesh(sizes)):
        found = initial(config, small.OPTIMIZED)
    for path, value in initial_without_mesh(config, optimized=True).items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)


@pytest.mark.parametrize("name", ["plain", "grouped"])
def test_decoding_on_a_mesh_equals_the_forward_pass(name):
    with jax.set_mesh(small.mesh(MESHES["fsdp 2, heads 4"])):
        model, tokens = place(name), batch(name)[0]
        expected = small.true_logits(model, split(tokens))
        decode = jax.jit(lambda model, *given: model.decode(*given))
        cache = jax.jit(lambda m: m.empty_cache(ROWS, LENGTH))(model)
        every = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), tokens.shape)
        for here in (slice(0, 5), slice(5, 6)):
            slot = np.int32(here.start)
            logits, cache = decode(model, tokens[:, here], every[:, here], slot, cache)
            found = np.asarray(logits)[..., : CONFIGS[name].vocab_size]
            np.testing.assert_allclose(found, expected[:, here], rtol=0, atol=1e-5)


class Forgetful(Multihead):
    """Sums over heads without saying how the sum is sharded."""

    def write(self, x, mixed):
        gathered = self.compute.reshard(self.value_up[...], ("heads", None, None))
        return jnp.einsum("bhtr,hrd->btd", mixed, gathered)


def test_a_missing_annotation_is_an_error_before_anything_runs():
    config = small.changed(CONFIGS["plain"], attention="tests.model.test_mesh:Forgetful")
    tokens = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32)
    # Without a mesh there is nothing to say.
    assert jax.eval_shape(lambda m, t: m(t), small.abstract(config), tokens).shape[-1] == 128
    with jax.set_mesh(small.mesh(MESHES["fsdp 2, heads 4"])):
        model = small.abstract(config)
        # JAX does not export its class.
        with pytest.raises(Exception, match="out_sharding") as error:
            jax.eval_shape(lambda m, t: m(t), model, tokens)
    assert error.type.__name__ == "ShardingTypeError"
