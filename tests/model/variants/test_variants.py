"""Each variant equals a NumPy reference; on a mesh, cached, in blocks and differentiated too."""

import dataclasses
import inspect
import math

import jax
import numpy as np
import pytest

from configs.errors import UserError
from model import masks
from model.attention import variant
from model.axes import ShardingRules
from model.decoding import ready
from model.parameter import declarations
from model.tally import tally
from model.transformer import Transformer
from tests.model import reference, small
from tests.model.attending import COMPUTE

SIZES = dict(embed_dim=16, num_heads=8, num_kv_heads=2, head_dim=8)


def softmax(scores, extra=None):
    """Returns the softmax of what was not hidden, with one more term in the denominator."""
    weights = np.exp(scores)
    return weights / (weights.sum(-1, keepdims=True) + (0 if extra is None else np.exp(extra)))


def causal(scores):
    return np.where(np.tri(len(scores), dtype=bool), scores, -np.inf)


def summed(w, mixed):
    return sum(read @ w["value_up"][h] for h, read in enumerate(mixed))


def gated(w, x, q, k, v):
    gates = 1 / (1 + np.exp(-x @ w["gate"]))
    reads = [softmax(causal(a @ b.T / math.sqrt(8))) @ c for a, b, c in zip(q, k, v, strict=True)]
    return summed(w, [gates[:, h, None] * read for h, read in enumerate(reads)])


def alibi(w, x, q, k, v):
    far = np.arange(len(x))[:, None] - np.arange(len(x))[None]
    reads = []
    for h in range(8):
        scores = q[h] @ k[h].T / math.sqrt(8) - far / 2 ** (h + 1)
        reads.append(softmax(causal(scores)) @ v[h])
    return summed(w, reads)


def sinks(w, x, q, k, v):
    reads = [softmax(causal(q[h] @ k[h].T / math.sqrt(8)), w["sink"][h]) @ v[h] for h in range(8)]
    return summed(w, reads)


def temperature(w, x, q, k, v):
    heat = np.exp(w["log_temperature"])
    return summed(
        w, [softmax(causal(q[h] @ k[h].T / math.sqrt(8) / heat[h])) @ v[h] for h in range(8)]
    )


def differential(w, x, q, k, v):
    reads = []
    for h in range(8):
        even, odd = (
            softmax(causal(q[h][:, i::2] @ k[h][:, i::2].T / math.sqrt(4))) for i in (0, 1)
        )
        weight = math.exp(w["first"][h]) - math.exp(w["second"][h]) + 0.8
        read = (even - weight * odd) @ v[h]
        gains = reference.within(w, "mixed_norm")
        reads.append([0.2 * reference.norm("rmsnorm", 1e-5, row, gains) for row in read])
    return summed(w, np.array(reads))


def talking(w, x, q, k, v):
    logits = np.stack([a @ b.T / math.sqrt(8) for a, b in zip(q, k, strict=True)])
    mixed = np.einsum("hts,hg->gts", logits, w["talk"])
    return summed(w, [softmax(causal(m)) @ c for m, c in zip(mixed, v, strict=True)])


VARIANTS = {
    "gated:Gated": (gated, {}, {"gate": ("embed", "heads")}),
    "alibi:ALiBi": (alibi, dict(positions="none"), {}),
    "sinks:Sinks": (sinks, {}, {"sink": ("heads",)}),
    "temperature:Temperature": (temperature, {}, {"log_temperature": ("heads",)}),
    "differential:Differential": (
        differential,
        {},
        {"first": ("heads",), "second": ("heads",), "mixed_norm.gain": (None,)},
    ),
    "talking:Talking": (talking, {}, {"talk": ("heads", "talking")}),
}


def config(name, **changes):
    sizes = {**SIZES, "attention": f"model.variants.{name}", **VARIANTS[name][1]}
    return small.config(**{**sizes, **changes})


@pytest.mark.parametrize("name", VARIANTS)
def test_a_layer_equals_the_reference(name):
    shape = config(name)
    model = small.drawn(shape)
    x = np.random.default_rng(5).standard_normal((1, 7, 16)).astype(np.float32)
    positions = np.arange(7, dtype=np.int32)[None]

    @jax.jit
    def update(layer, x, positions):
        mask = masks.causal(x.shape[1], None, COMPUTE)
        return layer.write(x, layer.attend(layer.project(x, positions), mask))

    found = update(jax.tree.map(lambda leaf: leaf[0], model.blocks[0].attention), x, positions)
    w = reference.within(reference.layer(reference.weights(model), shape, 0), "attention")

    def turned(rows):
        if shape.positions == "none":
            return rows
        return np.stack([reference.turn(row, p, 10_000.0) for p, row in enumerate(rows)])

    row = x[0].astype(np.float64)
    q = [turned(row @ w["query"][:, h]) for h in range(8)]
    k = [turned(row @ w["key"][:, h // 4]) for h in range(8)]
    v = [row @ w["value_down"][:, h // 4] for h in range(8)]
    expected = VARIANTS[name][0](w, row, q, k, v)
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=1e-5 * (1 + abs(expected).max()))


@pytest.mark.parametrize("name", VARIANTS)
def test_it_is_short_and_declares_what_it_adds(name):
    cls = variant(f"model.variants.{name}")
    assert len(inspect.getsource(inspect.getmodule(cls)).splitlines()) < 80
    before = {d.path for d in declarations(small.abstract(config(name, attention="multihead")))}
    after = {d.path: d for d in declarations(small.abstract(config(name)))}
    prefix = "blocks.0.attention."
    added = {p.removeprefix(prefix): after[p].axes[1:] for p in after if p not in before}
    assert added == VARIANTS[name][2]


@pytest.mark.parametrize("name", VARIANTS)
def test_cached_decoding_equals_the_forward_pass(name):
    """A chunk, then one token and then two, in rows whose first chunks have unequal lengths."""
    shape = config(name, scan_layers=False)
    model, tokens = small.drawn(shape), small.tokens(shape)
    expected = small.true_logits(model, tokens)
    decode = jax.jit(lambda model, *given: model.decode(*given))
    decoder, cache = ready(model), model.empty_cache(2, 8)
    index = np.array([[0, 1, 2, 3, 4, 5, 6], [0, 1, -1, 2, 3, 4, 5]], np.int32)
    there = np.take_along_axis(tokens, np.maximum(index, 0), 1)
    for part in (slice(0, 3), slice(3, 4), slice(4, 7)):
        given = there[:, part], index[:, part], np.int32(part.start), cache
        logits, cache = decode(decoder, *given)
        for row in range(2):
            real = index[row, part] >= 0
            found = np.asarray(logits)[row, real, : shape.vocab_size]
            truth = expected[row, index[row, part][real]]
            np.testing.assert_allclose(found, truth, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_on_a_mesh_values_and_gradients_are_those_of_one_device(name):
    shape = config(name, num_layers=1, mlp="none")
    tokens = small.tokens(shape, batch=4, length=6)

    @jax.jit
    def run(key, tokens):
        model = Transformer(shape, key)
        return jax.value_and_grad(small.cross_entropy)(model, tokens, tokens)

    def on(sizes):
        with jax.set_mesh(small.mesh(sizes)):
            split = jax.device_put(tokens, ShardingRules().spec(("batch", "length"), tokens.shape))
            return jax.tree.leaves(run(jax.random.key(1), split))

    for found, expected in zip(on(dict(fsdp=2, heads=4)), on({}), strict=True):
        expected = np.asarray(expected)
        most = 1e-5 * (1 + np.abs(expected).max())
        np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=most)


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "talking:Talking"])
def test_blockwise_learns_alike(monkeypatch, name):
    monkeypatch.setattr("model.backends.blocks.BLOCK", 3)
    shape = config(name, window=(5,), attention_backend="blockwise")
    model, tokens = small.drawn(shape), small.tokens(shape)
    other = small.replaced(model, dataclasses.replace(shape, attention_backend="dense"))
    gradient = jax.jit(jax.grad(small.cross_entropy))
    found, expected = (gradient(m, tokens, tokens) for m in (model, other))
    for own, whole in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(own, whole, rtol=0, atol=2e-5)


def test_talking_heads_refuse_a_backend_without_whole_patterns():
    with pytest.raises(UserError, match="model.attention_backend = 'blockwise' .*'dense'"):
        small.abstract(config("talking:Talking", attention_backend="blockwise"))


def test_differential_attention_needs_pairs_in_both_halves():
    with pytest.raises(UserError, match="model.head_dim = 6 must be a multiple of 4"):
        small.abstract(config("differential:Differential", head_dim=6))


def test_the_tally_counts_what_a_variant_computes():
    """Operations of one pair of query and key, by hand."""
    plain = tally(config("gated:Gated", attention="multihead"), 7)
    layers, heads, keys = 2, 8, 4  # 4 keys are seen on average
    assert plain.attention_pattern_flops == 2 * layers * heads * keys * (8 + 5)
    # A slope times a distance, two subtractions, and a conversion of the distance.
    alibi = tally(config("alibi:ALiBi"), 7)
    added = alibi.attention_pattern_flops - plain.attention_pattern_flops
    assert layers * heads * keys * 3 <= added <= layers * heads * keys * 5
    # Two patterns of half the width, and the values twice.
    differential = tally(config("differential:Differential"), 7)
    assert differential.attention_pattern_flops == 2 * layers * heads * keys * (8 + 2 * 5)
    # Each head's logits go to each head.
    talking = tally(config("talking:Talking"), 7)
    assert talking.attention_pattern_flops == 2 * layers * heads * keys * (8 + 5 + heads)
    assert talking.head_parts["talk"] == 8
    assert tally(config("sinks:Sinks"), 7).attention_pattern_flops == (
        plain.attention_pattern_flops
    )
