"""The whole network against the NumPy reference, and its modes against each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.parameter import parameters
from tests.model import reference, small


@pytest.mark.parametrize("variant", small.VARIANTS)
def test_logits_equal_the_reference(variant):
    config = small.config(**small.VARIANTS[variant])
    model, tokens = small.drawn(config), small.tokens(config)
    expected = reference.logits(config, reference.weights(model), tokens)
    np.testing.assert_allclose(small.true_logits(model, tokens), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", ["plain", "learned positions", "dense and windowed", "grouped"])
def test_documents_with_restarting_positions_equal_the_reference(variant):
    config = small.config(**small.VARIANTS[variant])
    model, tokens = small.drawn(config), small.tokens(config)
    segments = np.array([[1, 1, 1, 2, 2, 2, 2], [1, 2, 2, 2, 2, 2, 3]], np.int32)
    positions = np.array([[0, 1, 2, 0, 1, 2, 3], [0, 0, 1, 2, 3, 4, 0]], np.int32)
    expected = reference.logits(config, reference.weights(model), tokens, positions, segments)
    found = small.true_logits(model, tokens, positions, segments)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    # A document in company has the logits that it has alone.
    alone = reference.logits(config, reference.weights(model), tokens[:1, 3:])
    np.testing.assert_allclose(found[:1, 3:], alone, rtol=0, atol=1e-5)


def test_bfloat16_is_near_the_reference():
    config = small.config(dtype="bfloat16", biases=True, norm="layernorm")
    model, tokens = small.drawn(config), small.tokens(config)
    expected = reference.logits(config, reference.weights(model), tokens)
    found = small.true_logits(model, tokens)
    assert found.dtype == np.float32
    assert 1e-4 < np.abs(found - expected).max() < 0.1


def test_bfloat16_parameters_stay_bfloat16():
    config = small.config(param_dtype="bfloat16", query_key_norm=True)
    model, tokens = small.drawn(config), small.tokens(config)
    assert {param.dtype.name for param in parameters(model).values()} == {"bfloat16"}
    expected = reference.logits(config, reference.weights(model), tokens)
    np.testing.assert_allclose(small.true_logits(model, tokens), expected, rtol=0, atol=1e-5)


def test_padding_of_the_vocabulary_is_never_the_likeliest():
    config = small.config()
    model, tokens = small.drawn(config), small.tokens(config)
    logits = np.asarray(model(jnp.asarray(tokens)))
    assert logits.shape == (small.BATCH, small.LENGTH, 128)
    assert (logits[..., config.vocab_size :] == np.finfo(np.float32).min).all()
    assert (logits[..., : config.vocab_size] > -1e3).all()


LABELS = np.roll(small.tokens(small.config()), -1, axis=1)


differentiate = jax.jit(jax.value_and_grad(small.cross_entropy))


def loss_and_gradients(model, tokens):
    found, gradients = differentiate(model, tokens, LABELS)
    return float(found), reference.weights(gradients)


@pytest.mark.parametrize("variant", ["GPT-2", "swiglu", "query/key norm", "full value map"])
def test_gradients_equal_differences_of_the_reference(variant):
    config = small.config(**small.VARIANTS[variant])
    model, tokens = small.drawn(config), small.tokens(config)
    exact, rng, step = reference.weights(model), np.random.default_rng(3), 1e-5
    found, gradients = loss_and_gradients(model, tokens)

    def loss(weights):
        return reference.loss(reference.logits(config, weights, tokens), LABELS)

    assert abs(found - loss(exact)) < 1e-5
    for name, gradient in gradients.items():
        # Along one random direction in the space of this parameter.
        direction = rng.standard_normal(gradient.shape)
        ahead = loss({**exact, name: exact[name] + step * direction})
        behind = loss({**exact, name: exact[name] - step * direction})
        slope = (ahead - behind) / (2 * step)
        np.testing.assert_allclose(
            np.sum(gradient * direction), slope, rtol=1e-4, atol=2e-6, err_msg=name
        )
        if not name.endswith("key_bias"):  # adds the same to all of a query's scores
            assert np.abs(gradient).max() > 1e-6, name


@pytest.mark.parametrize(
    "changes",
    [
        dict(remat="block"),
        dict(remat="matmuls"),
        dict(remat="offload"),
        dict(scan_layers=False),
        dict(scan_layers=False, remat="block"),
        dict(scan_layers=False, remat="matmuls"),
    ],
    ids=str,
)
def test_how_it_is_computed_changes_no_gradient(changes):
    config = small.config(num_layers=4, window=(None, 3), num_kv_heads=2)
    model, tokens = small.drawn(config), small.tokens(config)
    expected_loss, expected = loss_and_gradients(model, tokens)
    other = small.replaced(model, small.changed(config, **changes))
    found_loss, found = loss_and_gradients(other, tokens)
    assert abs(found_loss - expected_loss) < 1e-6
    for name, gradient in expected.items():
        np.testing.assert_allclose(found[name], gradient, rtol=0, atol=2e-6, err_msg=name)


def saved_for_backward(config):
    """Returns the number of residuals that the backward pass keeps, in elements."""
    model = small.abstract(config)
    tokens = jax.ShapeDtypeStruct((4, 16), jnp.int32)
    _, backward = jax.eval_shape(
        lambda m, t: jax.vjp(lambda m: small.cross_entropy(m, t, t), m), model, tokens
    )
    return sum(leaf.size for leaf in jax.tree.leaves(backward))


@pytest.mark.parametrize("scan_layers", [True, False])
def test_remat_keeps_less(scan_layers):
    kept = {
        remat: saved_for_backward(small.config(scan_layers=scan_layers, remat=remat))
        for remat in ("none", "matmuls", "block")
    }
    assert kept["block"] < kept["matmuls"] < kept["none"]


@pytest.mark.parametrize("scan_layers", [True, False])
def test_dropout_needs_a_key_and_follows_it(scan_layers):
    config = small.config(dropout=0.5, scan_layers=scan_layers)
    model, tokens = small.drawn(config), small.tokens(config)
    forward = jax.jit(lambda m, t, k: m(t, key=k))
    without = small.true_logits(small.replaced(model, small.config()), tokens)
    np.testing.assert_array_equal(small.true_logits(model, tokens), without)
    one, again, other = (
        np.asarray(forward(model, tokens, jax.random.key(seed))) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0.1


def test_dropout_keeps_the_mean():
    compute = small.abstract(small.config()).compute
    drop = jax.jit(lambda key: compute.dropout(jnp.ones((99, 99)), 0.25, key, (None, None)))
    kept = np.asarray(drop(jax.random.key(0)))
    np.testing.assert_allclose(np.unique(kept), [0, 4 / 3], rtol=1e-6)
    assert abs(kept.mean() - 1) < 0.03
