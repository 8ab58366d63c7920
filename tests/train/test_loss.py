"""The loss by chunks: equal to SciPy's, with the gradients of the whole, on any mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp

from configs.errors import UserError
from model.axes import RESIDUAL, TOKENS
from model.transformer import Transformer
from tests.model import small
from train import loss
from train.batches import Batch

# 11 tokens of a vocabulary padded to 128.
SHAPE = small.config(embed_dim=8, num_heads=2, num_kv_heads=2, head_dim=4, mlp="none", num_layers=1)
ROWS, LENGTH = 4, 6


def drawn(shape=SHAPE):
    """Returns a model, a last residual, labels and weights of which some are zero."""
    rng = np.random.default_rng(0)
    x = 3 * rng.standard_normal((ROWS, LENGTH, shape.embed_dim)).astype(np.float32)
    labels = rng.integers(0, shape.vocab_size, (ROWS, LENGTH)).astype(np.int32)
    weights = (rng.random((ROWS, LENGTH)) * (rng.random((ROWS, LENGTH)) < 0.7)).astype(np.float32)
    return small.drawn(shape), *map(jnp.asarray, (x, labels, weights))


def true_logits(model, x):
    table = np.asarray(model.unembedding_table[...], np.float64)[: model.config.vocab_size]
    return np.asarray(x, np.float64) @ table.T


@pytest.mark.parametrize("chunk", [None, 1, 5, 24, 100])
@pytest.mark.parametrize("tied", [False, True])
def test_values_against_scipy(chunk, tied):
    model, x, labels, weights = drawn(small.config(embed_dim=8, tie_embeddings=tied))
    run = jax.jit(functools.partial(loss.summed_loss, chunk=chunk))
    total, nats = run(model, x, labels, weights, jnp.float32(0.3))
    logits = true_logits(model, x)
    picked = np.take_along_axis(log_softmax(logits, -1), np.asarray(labels)[..., None], -1)
    np.testing.assert_allclose(nats, -picked[..., 0], rtol=0, atol=1e-5)
    each = -picked[..., 0] + 0.3 * logsumexp(logits, -1) ** 2
    np.testing.assert_allclose(total, (np.asarray(weights) * each).sum(), rtol=1e-5)


def plain(model, x, labels, weights, z_loss):
    """The same with all logits in memory, for autodiff."""
    logits = x @ model.unembedding_table[...][: model.config.vocab_size].T
    total = jax.nn.logsumexp(logits, axis=-1)
    nats = total - jnp.take_along_axis(logits, labels[..., None], -1)[..., 0]
    return (weights * (nats + z_loss * jnp.square(total))).sum()


def differentiated(function, *arguments):
    return jax.jit(jax.grad(function, argnums=(0, 1)))(*arguments)


@pytest.mark.parametrize("chunk", [None, 5, 7])
def test_gradients_are_those_of_the_whole(chunk):
    arguments = (*drawn(), jnp.float32(0.3))

    def by_chunks(*arguments):
        # A factor shows that what comes from above is multiplied in.
        return 2 * loss.summed_loss(*arguments, chunk=chunk)[0]

    found = jax.tree.leaves(differentiated(by_chunks, *arguments))
    expected = jax.tree.leaves(differentiated(lambda *a: 2 * plain(*a), *arguments))
    for own, whole in zip(found, expected, strict=True):
        np.testing.assert_allclose(own, whole, rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize(
    "sizes", [dict(heads=8), dict(data=2, heads=2, context=2), dict(data=2, fsdp=2, heads=2)]
)
def test_on_a_mesh_it_is_the_same(sizes):
    model, x, labels, weights = drawn()

    def run(model, x, labels, weights):
        def total(model, x):
            return loss.summed_loss(model, x, labels, weights, jnp.float32(0.3), chunk=2)[0]

        return jax.value_and_grad(total, argnums=(0, 1))(model, x)

    value, expected = jax.jit(run)(model, x, labels, weights)
    with jax.set_mesh(small.mesh(sizes)):
        like = jax.eval_shape(lambda: Transformer(SHAPE, jax.random.key(0)))
        placed = jax.tree.map(lambda a, b: jax.device_put(a, b.sharding.spec), model, like)
        reshard = model.compute.reshard
        arrays = reshard(x, RESIDUAL), reshard(labels, TOKENS), reshard(weights, TOKENS)
        found_value, found = jax.jit(run)(placed, *arrays)
        np.testing.assert_allclose(found_value, value, rtol=1e-6)
        for own, whole in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(np.asarray(own), whole, rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize("gradients", [False, True])
def test_the_logits_of_all_tokens_are_never_in_memory(gradients):
    shape = small.config(vocab_size=50_000, max_length=2048)
    model = jax.eval_shape(lambda: Transformer(shape, jax.random.key(0)))
    tokens = jax.ShapeDtypeStruct((2, 2048), jnp.int32)
    x = jax.ShapeDtypeStruct((2, 2048, shape.embed_dim), jnp.float32)
    weights = jax.ShapeDtypeStruct((2, 2048), jnp.float32)

    def total(model, x, labels, weights):
        return loss.summed_loss(model, x, labels, weights, jnp.zeros(()))[0]

    run = jax.jit(jax.grad(total, argnums=(0, 1)) if gradients else total)
    compiled = run.lower(model, x, tokens, weights).compile()
    held = compiled.memory_analysis().temp_size_in_bytes
    whole = 4 * 4096 * shape.padded_vocab_size
    # A chunk's logits, their exponentials and the gradient of them.
    assert held < 4 * loss.device().logit_bytes < whole / 3


@pytest.mark.parametrize("sizes", [{}, dict(heads=8), dict(data=2, fsdp=2, heads=2)], ids=str)
def test_a_loss_of_ones_own_for_each_token(sizes):
    """Whole logits of the true vocabulary, in any chunks, on any mesh; by SciPy."""
    model, _, labels, weights = drawn()
    assert loss.by_name("tests.train.own_losses:short").__name__ == "loss"
    smooth = loss.by_name("tests.train.own_losses:smoothed")

    def plain_smooth(model, batch):
        x = model.last_residual(batch.tokens)
        logits = x @ model.unembedding_table[...][: model.config.vocab_size].T
        chances = jax.nn.log_softmax(logits)
        picked = jnp.take_along_axis(chances, batch.labels[..., None], -1)[..., 0]
        total = jax.nn.logsumexp(logits, axis=-1)
        each = -0.9 * picked - 0.1 * chances.mean(-1) + 0.3 * jnp.square(total)
        return (weights * each).sum()

    batch = Batch(labels, labels, weights > 0)
    expected = jax.jit(jax.value_and_grad(plain_smooth))(model, batch)

    def own(model, batch, weights):
        return smooth(model, batch, weights, jnp.float32(0.3), None, 5)[0]

    with jax.set_mesh(small.mesh(sizes)):
        like = jax.eval_shape(lambda: Transformer(SHAPE, jax.random.key(0)))
        there = jax.tree.map(lambda a, b: jax.device_put(a, b.sharding.spec), model, like)
        batch, weights_there = jax.tree.map(
            lambda a: model.compute.reshard(a, TOKENS), (batch, weights)
        )
        found = jax.jit(jax.value_and_grad(own))(there, batch, weights_there)
        for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            np.testing.assert_allclose(np.asarray(a), b, rtol=1e-5, atol=1e-5)


def test_chunks_are_whole_tiles():
    assert loss._chunk(1024, 50304) == 256
    assert loss._chunk(1000, 50304) == 256
    assert loss._chunk(100, 128) == 128
    assert loss._chunk(10_000, 2**30) == 128


def test_a_loss_that_is_none_is_refused():
    with pytest.raises(UserError, match="loss = 'cross_entropi' .*mean 'cross_entropy'"):
        loss.by_name("cross_entropi")
    with pytest.raises(UserError, match="loss = 'no.such:thing' cannot be imported"):
        loss.by_name("no.such:thing")
    for name in ("tests.train.own_losses:lonely", "math:log"):
        with pytest.raises(UserError, match=f"loss = '{name}' takes other arguments; write it of"):
            loss.by_name(name)
    model, _, labels, weights = drawn()
    arguments = model, Batch(labels, labels, weights > 0), weights, jnp.float32(0), None, 5
    for name, words in {
        "long": r"gives for one token \(11,\); return one number",
        "several": r"gives for one token .*'int32'",
        "whole": "gives for one token int32",
        "alone": r"returns \(\); return the sum to minimise",
        "unsummed": r"returns \[\(4, 6\), \(4, 6\)\]; return the sum",
    }.items():
        with pytest.raises(UserError, match=f"loss .*{words}"):
            loss.by_name(f"tests.train.own_losses:{name}")(*arguments)
