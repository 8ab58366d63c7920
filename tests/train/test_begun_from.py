"""A run that begins with the parameters of another, whose network differs."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from configs import resolved
from configs.errors import UserError
from model.manifest import CONFIG, EMA, MODEL, TOKENIZER
from model.parameter import named_arrays
from model.saved import open_saved
from model.saving import save
from model.transformer import Transformer
from tests.model import small
from tests.train import tiny
from tests.train.altering import rewrite
from text import tokenizers
from train.begun_from import start_from

GROUPED = {"model.num_kv_heads": 4, "model.biases": True, "model.norm": "layernorm"}


def kept(folder, changes, tokenizer=None, ema=False):
    """Saves a network whose every parameter is random; returns its folder and itself."""
    config = tiny.config(changes)
    model = small.drawn(tiny.model_config(config))
    documents = {CONFIG: resolved.to_json(config)}
    if tokenizer is not None:
        documents[TOKENIZER] = tokenizer.to_json()
    items = {MODEL: named_arrays(model)}
    if ema:
        items[EMA] = {n: a.astype(np.float32) + 1 for n, a in named_arrays(model).items()}
    save(folder, items, documents).result()
    return folder, model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Returns the folder and the network of a config, saved once."""

    @functools.cache
    def of(**changes):
        folder = tmp_path_factory.mktemp("saved") / "model"
        return kept(folder, {n.replace("__", "."): v for n, v in changes.items()})

    return lambda changes: of(**{n.replace(".", "__"): v for n, v in changes.items()})


def begin(folder, changes, tokenizer=None, **sizes):
    """Returns the network that a run begins with, and what it is told."""
    config = tiny.config({**changes, "checkpoint.restore_from": str(folder)})
    mesh, shape = tiny.mesh(**sizes), tiny.model_config(config)
    with jax.set_mesh(mesh):
        abstract = jax.eval_shape(lambda key: Transformer(shape, key), jax.random.key(0))
        model, lines = start_from(
            open_saved(folder, "checkpoint.restore_from"), config, abstract, tokenizer, mesh
        )
    for found, wanted in zip(jax.tree.leaves(model), jax.tree.leaves(abstract), strict=True):
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
        assert found.sharding.spec == wanted.sharding.spec
    return model, lines


def fresh(changes, seed=0):
    """Returns what a fresh start draws."""
    config = tiny.config(changes)
    model = jax.jit(lambda key: Transformer(tiny.model_config(config), key))
    with jax.set_mesh(tiny.mesh()):
        return arrays(model(jax.random.key(seed)))


def arrays(model):
    return {name: np.asarray(array) for name, array in named_arrays(model).items()}


def check_logits(old, new, count=60):
    tokens = small.tokens(dataclasses.replace(old.config, vocab_size=count))
    expected, found = (small.true_logits(model, tokens)[..., :count] for model in (old, new))
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


EVERYTHING = {
    "model.num_kv_heads": 8,
    "model.value_map": "full",
    "model.tie_embeddings": False,
    "model.max_length": 32,
    "model.vocab_size": 200,
}


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (GROUPED, {}, []),
        (
            GROUPED | {"model.positions": "learned", "model.tie_embeddings": True},
            EVERYTHING,
            [
                "parameters as they were: 12 (2,864 elements)",
                "4 key/value heads repeated to 8: blocks.*.attention.key, .key_bias (1,088 el",
                "value_full is value_down value_up, update_bias has what heads write of value_b",
                "65 of 200 tokens by number, 135 are new: embedding",
                "65 of 200 tokens by number, 135 are new, begins as the embedding: unembedding",
                "the first 8 of 32 positions, the others are new: positions (512 elements)",
            ],
        ),
        (
            GROUPED,
            {"model.num_kv_heads": 8, "model.value_dim": 5, "length": 16},
            ["4 key/value heads -> 8, then rank 3 -> 5 with the same maps: new columns that write"],
        ),
        (
            GROUPED | {"model.value_map": "full"},
            {"model.value_map": "factored", "model.value_dim": 16},
            ["value_down value_up of the saved full maps by SVD, rank 16; relative error 0: block"],
        ),
    ],
    ids=["the same", "everything", "more rank", "factors"],
)
def test_what_is_exact_leaves_the_logits_as_they_are(saved, old, new, told):
    folder, model = saved(old)
    found, lines = begin(folder, old | new)
    assert lines[0] == f"parameters from {folder}"
    for line in told:
        assert any(said.startswith(f"  {line}") for said in lines), lines
    assert told or len(lines) == 1
    check_logits(model, found)
    if not new:
        tiny.assert_equal(arrays(found), arrays(model))


LESS = {"model.num_kv_heads": 2, "model.value_dim": 2, "model.num_layers": 3}


@pytest.fixture(scope="module")
def less(saved):
    """The network of one device that begins with less of another."""
    return begin(saved(GROUPED)[0], GROUPED | LESS)


def test_what_is_approximate_is_the_best_of_its_kind_and_says_how_far_it_is(saved, less):
    old = arrays(saved(GROUPED)[1])
    found, lines = less
    new, drawn = arrays(found), fresh(GROUPED | LESS)

    def pooled(name, axis):
        array = old[f"blocks.0.attention.{name}"]
        parts = np.split(array, 2, axis=axis)
        return np.stack([part.mean(axis) for part in parts], axis)

    for name, axis in (("key", 2), ("key_bias", 1)):
        found = new[f"blocks.0.attention.{name}"]
        np.testing.assert_allclose(found[:2], pooled(name, axis), rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(found[2:], drawn[f"blocks.0.attention.{name}"][2:])
    keys = old["blocks.0.attention.key"]
    gone = keys - np.repeat(pooled("key", 2), 2, axis=2)
    error = np.linalg.norm(gone) / np.linalg.norm(keys)
    bias = old["blocks.0.attention.key_bias"]
    gone = bias - np.repeat(pooled("key_bias", 1), 2, axis=1)
    worst = max(error, np.linalg.norm(gone) / np.linalg.norm(bias))
    assert any(
        f"averaged to 2, all 2 layers, 1 new; relative error {worst:.2g}:" in line for line in lines
    )

    down, bias = pooled("value_down", 2), pooled("value_bias", 1)
    up = old["blocks.0.attention.value_up"]
    for layer in range(2):
        for g in range(2):
            maps = np.concatenate([down[layer, :, g], bias[layer, None, g]]) @ np.concatenate(
                list(up[layer, 4 * g : 4 * g + 4]), axis=1
            )
            u, s, vt = np.linalg.svd(maps, full_matrices=False)
            read = [new[f"blocks.0.attention.value_{n}"][layer] for n in ("down", "bias", "up")]
            found = np.concatenate([read[0][:, g], read[1][None, g]]) @ np.concatenate(
                list(read[2][4 * g : 4 * g + 4]), axis=1
            )
            np.testing.assert_allclose(found, (u[:, :2] * s[:2]) @ vt[:2], rtol=0, atol=2e-5)


@pytest.mark.parametrize("sizes", [dict(fsdp=2, heads=4), dict(fsdp=8), dict(heads=8)])
def test_on_any_mesh_it_is_the_same(saved, less, sizes):
    found, lines = begin(saved(GROUPED)[0], GROUPED | LESS, **sizes)
    expected = arrays(less[0])
    for name, array in arrays(found).items():
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-5, err_msg=name)
    assert lines == less[1]


def test_a_part_alone_is_taken_and_the_rest_is_as_for_a_fresh_start(tmp_path):
    """Of the average: the attention of the first layer, in another dtype and other stacks."""
    folder, model = kept(tmp_path / "model", {"model.mlp_dim": 8}, ema=True)
    changes = {"model.param_dtype": "bfloat16", "model.window": (None, 3), "seed": 3}
    taken = {
        "checkpoint.restore_only": ("*.attention.*", "norm.gain"),
        "checkpoint.restore_layers": 1,
        "checkpoint.restore_ema": True,
    }
    found, lines = begin(folder, changes | taken, fsdp=2, heads=2)
    expected, old = fresh(changes, seed=3), arrays(model)
    for name in ("query", "key", "value_down", "value_up"):
        name = f"blocks.0.attention.{name}"
        expected[name] = np.asarray(old[name][:1] + 1, expected[name].dtype)
    expected["norm.gain"] = np.asarray(old["norm.gain"] + 1, expected["norm.gain"].dtype)
    tiny.assert_equal(arrays(found), expected)
    assert lines == [
        f"the average of the parameters from {folder}",
        "  parameters as they were: 1 (16 elements)",
        "  the first 1 of 2 layers, 1 new: blocks.*.attention.key, .query, .value_down, "
        ".value_up (1,792 elements)",
        "  new: blocks.*.attention_norm.gain, blocks.*.mlp.down, .up, blocks.*.mlp_norm.gain and 6 "
        "more (7,488 elements)",
        "  left: blocks.*.attention_norm.gain, blocks.*.mlp.down, .up, blocks.*.mlp_norm.gain "
        "and 2 more (4,672 elements)",
        "  cast from float32 to bfloat16",
        "  the same parameters compute otherwise: model.window (None,) -> (None, 3)",
    ]


def test_tokens_keep_their_rows_by_their_text(tmp_path):
    before, after = (tokenizers.train("char", [text]) for text in ("abcdefgh", "hgxfdcba!"))
    folder, model = kept(tmp_path / "model", {"model.vocab_size": 8}, before)
    changes = {"model.vocab_size": 9}
    found, lines = begin(folder, changes, after)
    letters = list("abcdfgh")
    old, new = (np.array([t.encode(x)[0] for x in letters]) for t in (before, after))
    assert (old != new).any()
    picked = np.random.default_rng(0).integers(0, len(letters), (2, 7))
    logits = [
        small.true_logits(m, ids[picked].astype(np.int32))
        for m, ids in ((model, old), (found, new))
    ]
    np.testing.assert_allclose(logits[1][..., new], logits[0][..., old], rtol=0, atol=1e-5)
    assert (
        "  7 of 9 tokens by their text, 2 are new: embedding, unembedding (4,096 elements)" in lines
    )
    drawn = fresh(changes)["embedding"]
    others = [i for i in range(128) if i not in new]
    np.testing.assert_array_equal(arrays(found)["embedding"][others], drawn[others])


@pytest.mark.parametrize(
    ("changes", "letters", "sentence"),
    [
        ({}, "xyz", "no token of this run's; set data.tokenizer=.*tokenizer.json"),
        (
            {"checkpoint.restore_only": ("*.atention.*",)},
            "ab",
            r"atention.* mean 'blocks.0.attention",
        ),
        ({"checkpoint.restore_ema": True}, "ab", "no average of the parameters for .*restore_ema"),
        ({"model.mlp_dim": 25}, "ab", r"mlp.down as \(2, 24, 16\)"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path_factory, changes, letters, sentence):
    before, after = (tokenizers.train("char", [text]) for text in ("abc", letters))
    folder = tmp_path_factory.getbasetemp() / "refused"
    if not folder.exists():
        kept(folder, {"model.vocab_size": 3}, before)
    with pytest.raises(UserError, match=sentence):
        begin(folder, {"model.vocab_size": 3} | changes, after)


def test_a_saved_class_that_has_gone_is_named(tmp_path):
    folder, _ = kept(tmp_path / "model", {})
    text = (folder / "config.json").read_text().replace('"multihead"', '"gone_class:Gone"')
    rewrite(folder, "config.json", text)
    changes = {"checkpoint.restore_only": ("*.mlp.*",)}
    with pytest.raises(
        UserError, match=r"config of .*model cannot be built any more: .*gone_class"
    ):
        begin(folder, changes)


def test_what_to_take_is_refused_where_there_is_nothing_to_take_it_from():
    with pytest.raises(UserError, match="restore_layers = 2 .*restore_from, which is empty"):
        resolved.check(tiny.config({"checkpoint.restore_layers": 2}))
