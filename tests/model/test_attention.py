"""One layer of attention against the reference; full and factored value maps; variants by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.errors import UserError
from configs.ranges import CHOICES
from model import masks
from model.attention import Multihead, variant
from model.backends import choice
from model.devices import choice as devices
from model.heads import Heads
from model.mlp import MLP
from model.pattern import Pattern
from model.transformer import Transformer
from tests.model import reference, small
from tests.model.attending import COMPUTE

LAYERS = {
    "multi-head": {},
    "grouped": dict(num_kv_heads=2, biases=True),
    "multi-query": dict(num_kv_heads=1),
    "windowed": dict(window=(3,)),
    "wide values": dict(value_dim=17),
    "full value map": dict(value_map="full", biases=True),
    "without positions": dict(positions="none", logit_cap=0.5),
    "query/key norm": dict(query_key_norm=True, num_kv_heads=2),
}


def first_layer(model):
    """Returns the attention of layer 0, unstacked."""
    return jax.tree.map(lambda leaf: leaf[0], model.blocks[0].attention)


@pytest.mark.parametrize("kind", LAYERS)
def test_layer_equals_the_reference(kind):
    config = small.config(**LAYERS[kind])
    model = small.drawn(config)
    x = np.random.default_rng(5).standard_normal((2, 6, config.embed_dim)).astype(np.float32)
    positions = np.array([[0, 1, 2, 3, 4, 5], [0, 1, 0, 1, 2, 3]], np.int32)
    segments = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 2, 2, 2, 2]], np.int32)

    @jax.jit
    def update(layer, x, positions, segments):
        mask = masks.causal(x.shape[1], segments, COMPUTE).within(config.window[0])
        return layer.write(x, layer.attend(layer.project(x, positions), mask))

    found = update(first_layer(model), x, positions, segments)
    heads = reference.within(reference.layer(reference.weights(model), config, 0), "attention")
    for b in range(2):
        expected = reference.attention(
            config, heads, x[b].astype(np.float64), positions[b], segments[b], config.window[0]
        )
        np.testing.assert_allclose(found[b], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("groups", [4, 2])
def test_factored_equals_full_where_full_is_the_product(groups):
    config = small.config(num_kv_heads=groups)
    factored = small.drawn(config)
    full = small.drawn(small.changed(config, value_map="full"))
    for name in ("query", "key"):
        setattr(full.blocks[0].attention, name, getattr(factored.blocks[0].attention, name))
    heads = factored.blocks[0].attention
    down = np.repeat(np.asarray(heads.value_down[...], np.float64), 4 // groups, axis=2)
    up = np.asarray(heads.value_up[...], np.float64)
    full.blocks[0].attention.value_full[...] = np.einsum("ldhr,lhre->lhde", down, up).astype("f4")
    for name in ("attention_norm", "mlp_norm", "mlp"):
        setattr(full.blocks[0], name, getattr(factored.blocks[0], name))
    for name in ("embedding", "norm", "unembedding"):
        setattr(full, name, getattr(factored, name))
    tokens = small.tokens(config)
    a, b = small.true_logits(factored, tokens), small.true_logits(full, tokens)
    assert np.abs(a).max() > 0.5
    np.testing.assert_allclose(a, b, rtol=0, atol=3e-6)


def test_each_head_is_its_own_matrices():
    config = small.config()
    shapes = {
        name: param.shape
        for name, param in vars(first_layer(small.drawn(config))).items()
        if name in ("query", "key", "value_down", "value_up")
    }
    assert shapes == {
        "query": (12, 4, 6),
        "key": (12, 4, 6),
        "value_down": (12, 4, 5),
        "value_up": (4, 5, 12),
    }


def test_variant_by_name():
    assert variant("multihead") is Multihead
    assert variant("model.attention:Multihead") is Multihead


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("multihaed", "model.attention = 'multihaed' .*mean 'multihead'"),
        ("no.such.module:Class", "model.attention = .* cannot be imported"),
        ("model.attention:Missing", "model.attention = .* cannot be imported"),
        ("model.norms:Norm", "model.attention = .* has no project; write it, of 2"),
        ("json:JSONDecoder", "model.attention = .* is no nnx.Module"),
    ],
)
def test_unknown_variants_are_named(name, sentence):
    with pytest.raises(UserError, match=sentence):
        variant(name)


def taken(name, queries, keys):
    q, k = (jax.ShapeDtypeStruct((2, 4, n, 8), jnp.float32) for n in (queries, keys))
    mask = masks.causal(keys, None, COMPUTE)
    return choice.select(name, Heads(q, k, k), mask, Pattern(), COMPUTE)


def test_an_unknown_backend_is_named():
    assert taken("dense", 2048, 2048) == "dense"
    assert {*CHOICES["model.attention_backend"]} == {"auto", *choice.BACKENDS}
    with pytest.raises(UserError, match=r"model.attention_backend cannot be 'dens' .*mean 'dense'"):
        Transformer(small.config(attention_backend="dens"), jax.random.key(0))


@pytest.mark.parametrize(
    ("device", "queries", "keys", "expected"),
    [
        ("cpu", 64, 64, "pieces"),
        ("cpu", 512, 512, "pieces"),
        ("cpu", 513, 513, "blockwise"),
        ("cpu", 1, 4096, "dense"),
        ("rocm", 512, 512, "dense"),
        ("rocm", 1024, 1024, "blockwise"),
    ],
)
def test_auto_goes_by_device_and_shape(monkeypatch, device, queries, keys, expected):
    monkeypatch.setattr(devices, "platform", lambda: device)
    assert taken("auto", queries, keys) == expected


def test_each_run_of_a_process_says_its_backend():
    model = small.abstract(small.config())
    lines = [model.attention_line(2, 7) for _ in range(2)]
    assert lines == ["attention: pieces (auto, for 7 tokens on a cpu)"] * 2


class Unwritten(Multihead):
    """Returns what heads read in the place of updates."""

    def write(self, x, mixed):
        return mixed


class Tuple(Multihead):
    """Returns keys and values in the place of heads."""

    def project(self, x, positions):
        heads = super().project(x, positions)
        return heads.query, heads.key, heads.value


class Unread(Multihead):
    """Forgets to return what heads read."""

    def attend(self, heads, mask):
        super().attend(heads, mask)


class Hooked(Multihead):
    """Returns a hook in the place of a pattern."""

    def pattern(self, heads, mask):
        return lambda logit, query, key, head: logit


class OneRow(nnx.Module):
    """An MLP whose update would stretch to all rows of a batch."""

    def __init__(self, config, declare, compute):
        """Declares nothing."""

    def __call__(self, x):
        """Returns the first row."""
        return x[:1]


class Wide(MLP):
    """Gives its updates in the type of sums."""

    def __call__(self, x):
        return super().__call__(x).astype(jnp.float32)


@pytest.mark.parametrize("scan", [False, True])
def test_the_residual_keeps_its_type_whatever_updates_have(scan):
    config = small.config(mlp=f"{__name__}:Wide", dtype="bfloat16", scan_layers=scan)
    tokens = jax.ShapeDtypeStruct((2, 7), jnp.int32)
    residual = jax.eval_shape(
        lambda model, tokens: model.last_residual(tokens), small.abstract(config), tokens
    )
    assert residual.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(attention=f"{__name__}:Unwritten"), r"model.attention = .* \(2, 4, 7, 5\)"),
        (dict(mlp=f"{__name__}:OneRow"), r"model.mlp = .* \(1, 7, 12\)"),
        (dict(attention=f"{__name__}:Tuple"), r"model.attention = .* project returns tuple"),
        (dict(attention=f"{__name__}:Unread"), r"model.attention = .* attend returns NoneType"),
        (dict(attention=f"{__name__}:Hooked"), r"model.attention: pattern returns function"),
    ],
)
def test_what_a_part_must_not_return_is_refused(fields, words):
    config = small.config(**fields)
    tokens = jax.ShapeDtypeStruct((2, 7), jnp.int32)
    with pytest.raises(UserError, match=rf"{words}; return "):
        jax.eval_shape(lambda model, tokens: model(tokens), small.abstract(config), tokens)
