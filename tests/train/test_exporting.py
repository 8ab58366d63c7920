"""Exported models against the arrays of the network, as the library reads them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from configs import resolved
from configs.errors import UserError
from configs.folders import as_folder
from model.layers import unstacked
from model.parameter import named_arrays, with_arrays
from model.saved import open_saved
from tests.train import saved_runs, tiny
from text import tokenizers
from train import exporting
from train.checkpoint import export
from train.saved_steps import open_one

TOKENS = tokenizers.train("char", ["a rose is a rose"])
SHAPES = {
    "alternating, unrolled": {"model.window": (None, 4), "model.scan_layers": False},
    "scanned, bfloat16": {"model.scan_layers": True, "model.param_dtype": "bfloat16"},
    "tied, positions": {"model.tie_embeddings": True, "model.positions": "learned"},
}


def tensors(folder):
    with safe_open(folder / "model.safetensors", framework="np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict


def stacked(found, model):
    """Returns a model with tensors of numbered layers, put together here."""
    config, arrays = model.config, {}
    for name, array in named_arrays(model).items():
        if name.startswith("blocks."):
            _, stack, rest = name.split(".", 2)
            numbers = range(int(stack), config.num_layers, len(config.window))
            arrays[name] = np.stack([found[f"blocks.{n}.{rest}"] for n in numbers])
        else:
            padding = array.shape[0] - found[name].shape[0]
            arrays[name] = np.concatenate(
                [found[name], np.zeros((padding, *array.shape[1:]), array.dtype)]
            )
    return with_arrays(model, {name: jnp.asarray(a) for name, a in arrays.items()})


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_tensors_have_their_layer_s_number_and_give_the_same_logits(tmp_path, console, changes):
    config = tiny.config({"model.num_layers": 4, "model.max_length": 16, **changes})
    sharded = saved_runs.model(config, 3, fsdp=2, heads=2)
    saved_runs.write(tmp_path / "a [run]", {5: sharded}, config, TOKENS)
    to = tmp_path / "deep" / "out %20"
    figures = export(console, str(tmp_path / "a [run]"), str(to))
    assert sorted(f.name for f in to.iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json"
    ]  # fmt: skip
    assert (to / "tokenizer.json").read_text() == TOKENS.to_json()
    assert (to / "config.json").read_text() == resolved.to_json(config)

    found = tensors(to)
    plain = saved_runs.model(config, 3)
    blocks = unstacked(plain.blocks)  # in the order of the network
    for number, block in enumerate(blocks):
        for name, array in named_arrays(block).items():
            np.testing.assert_array_equal(found[f"blocks.{number}.{name}"], array)
    others = {n: a for n, a in named_arrays(plain).items() if not n.startswith("blocks.")}
    assert len(found) == len(others) + len(blocks) * len(named_arrays(blocks[0]))
    assert found["embedding"].shape == (65, 16)
    for name, array in others.items():
        np.testing.assert_array_equal(found[name], array[: len(found[name])])
    assert figures["elements"] == sum(tensor.size for tensor in found.values())
    assert figures["bytes"] == sum(tensor.nbytes for tensor in found.values())

    logits = jax.jit(lambda model, tokens: model(tokens)[..., :65])
    tokens = jnp.arange(24, dtype=jnp.int32).reshape(3, 8)
    with jax.set_mesh(tiny.mesh()):
        expected, again = logits(plain, tokens), logits(stacked(found, plain), tokens)
    np.testing.assert_array_equal(again, expected)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of one step, its model, and its config."""
    config = tiny.config()
    model = saved_runs.model(config, 1)
    path = tmp_path_factory.mktemp("run")
    saved_runs.write(path, {5: model}, config)
    return path, model, config


def test_the_average_is_exported_rounded_to_another_dtype(run, tmp_path, console):
    path, model, _ = run
    export(console, str(path), str(tmp_path), ema=True, dtype="bfloat16")
    expected = (2 * np.asarray(model.norm.gain[...])).astype(jnp.bfloat16)
    found = tensors(tmp_path)
    np.testing.assert_array_equal(found["norm.gain"], expected)
    query = 2 * np.asarray(model.blocks[0].attention.query[...])[1]
    np.testing.assert_array_equal(found["blocks.1.attention.query"], query.astype(jnp.bfloat16))
    with safe_open(tmp_path / "model.safetensors", framework="np") as file:
        assert file.metadata() == dict(checkpoint=str(path / "checkpoints" / "5"), item="ema")
        assert {file.get_slice(n).get_dtype() for n in found} == {"BF16"}
    assert '"param_dtype": "bfloat16"' in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("ema", [False, True])
def test_a_saved_model_is_taken_by_checkpoint(run, tmp_path, console, ema):
    path, model, config = run
    to = tmp_path / "model"
    export(console, str(path), str(to), ema=ema, kind="model")
    saved = open_saved(to)
    assert (saved.step, resolved.difference(saved.config, config)) == (None, {})
    expected = {n: (1 + ema) * np.asarray(a) for n, a in named_arrays(model).items()}
    found = named_arrays(saved.load_model(tiny.mesh(heads=2)))
    tiny.assert_equal({n: np.asarray(a) for n, a in found.items()}, expected)
    made = json.loads((to / "manifest.json").read_text())["made"]
    assert made["exported"]["step"] == 5
    assert made["exported"]["item"] == ("ema" if ema else "model")
    # And it can be exported again.
    export(console, str(to), str(tmp_path / "again"))
    np.testing.assert_array_equal(
        tensors(tmp_path / "again")["embedding"], expected["embedding"][:65]
    )


def test_an_export_that_fails_leaves_nothing(run, tmp_path, console, monkeypatch):
    read, reads = exporting.read, []

    def failing(*arguments):
        reads.append(arguments)
        if len(reads) == 5:
            raise OSError(28, "No space left on device")
        return read(*arguments)

    monkeypatch.setattr(exporting, "read", failing)
    to = tmp_path / "out"
    with pytest.raises(UserError, match=r"--to=.*out cannot be written \(No space left"):
        export(console, str(run[0]), str(to))
    assert list(tmp_path.iterdir()) == []
    reads[:] = range(10)
    (tmp_path / ".out.part").mkdir()  # of one that was killed
    (tmp_path / ".out.part" / "model.safetensors").write_text("half")
    export(console, str(run[0]), str(to))
    assert [f.name for f in tmp_path.iterdir()] == ["out"]


def test_what_cannot_be_exported_is_refused(run, tmp_path, console):
    path = str(run[0])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("words")
    for name, sentence in (("full", "is not empty"), ("full/thesis.txt", "is a file")):
        with pytest.raises(UserError, match=f"--to=.*{name} {sentence}; name a folder that is not"):
            export(console, path, str(tmp_path / name))
    saved = open_one(path)
    with pytest.raises(UserError, match="no folder of this machine; name one, or give --as=model"):
        exporting.export_tensors(saved, as_folder("gs://bucket/model"), "model")
