"""What differs between two saved steps, against what was changed."""

import shutil

import jax
import numpy as np
import pytest

from model.parameter import named_arrays
from model.saved import open_saved
from tests.train import saved_runs, tiny
from train import differing
from train.checkpoint import diff
from train.saved_steps import open_one


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of a step: the second has a marked query, another seed and a wider MLP."""
    path = tmp_path_factory.mktemp("runs")
    fields = {"model.num_layers": 1}
    changed = {"seed": 5, "model.mlp_dim": 32, "model.norm": "layernorm"}
    configs = tiny.config(fields), tiny.config({**fields, **changed})
    a, b = (saved_runs.model(config, 1) for config in configs)
    query = b.blocks[0].attention.query
    b.blocks[0].attention.query[...] = query[...].at[0, 3, 2, 1].add(0.5)
    saved_runs.write(path / "a", {4: a}, configs[0])
    saved_runs.write(path / "b", {6: b}, configs[1])
    shutil.rmtree(path / "b" / "checkpoints" / "6" / "optimizer")
    (path / "b" / "checkpoints" / "6" / "state.json").unlink()
    return path, a, b


def test_configs_provenance_arrays_and_values_that_differ_are_told(runs, console):
    path, a, b = runs
    found = diff(console, open_one(str(path / "a")), open_one(str(path / "b")), values=True)
    assert found["config"] == {
        "seed": (0, 5),
        "model.mlp_dim": (24, 32),
        "model.norm": ("rmsnorm", "layernorm"),
    }
    assert found["made"]["step"] == (4, None)
    assert found["made"]["seed"] == (0, 5)
    assert "packages.jax" not in found["made"]
    up = found["arrays"]["model"]["blocks.0.mlp.up"]
    assert [about["shape"] for about in up] == [[1, 16, 24], [1, 16, 32]]
    assert found["arrays"]["optimizer"]["count"] == (dict(shape=[], dtype="int32"), None)
    ours, theirs = named_arrays(a), named_arrays(b)
    assert {n for n, (had, _) in found["arrays"]["model"].items() if had is None} == (
        theirs.keys() - ours.keys()
    )

    rows = {(row["item"], row["name"]): row for row in found["values"]}
    assert {name for item, name in rows if item == "model"} == {
        name for name in ours.keys() & theirs.keys() if ours[name].shape == theirs[name].shape
    }
    was, now = (float(m.blocks[0].attention.query[0, 3, 2, 1]) for m in (a, b))
    row = rows["model", "blocks.0.attention.query"]
    assert not row["equal"]
    assert row["absolute"] == abs(now - was)
    assert row["relative"] == abs(now - was) / max(abs(now), abs(was))
    assert rows["model", "embedding"] == dict(
        item="model", name="embedding", equal=True, absolute=0.0, relative=0.0
    )
    words = console.export_text()
    assert "equal bits" in words
    assert "blocks.0.mlp.up" in words


def test_a_step_does_not_differ_from_itself(runs, console):
    path, *_ = runs
    a = str(path / "a")
    found = diff(console, open_one(a), open_one(f"{a}/checkpoints/4"), values=True)
    assert (found["config"], found["made"], found["arrays"]) == ({}, {}, {})
    assert all(row["equal"] for row in found["values"])
    words = console.export_text()
    assert "arrays' shapes and dtypes are the same" in words
    count = len(found["values"])
    assert f"{count} of {count} arrays of the same shape have equal bits" in words


def test_the_key_of_a_generator_is_read_as_its_numbers(runs):
    saved = open_saved(runs[0] / "a")
    about = saved.arrays("optimizer")["key"]
    expected = np.asarray(jax.random.key_data(saved_runs.KEY))
    np.testing.assert_array_equal(differing.read(saved, "optimizer", "key", about), expected)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1.0, np.nan, np.inf], [1.0, np.nan, np.inf], (True, 0.0, 0.0)),
        ([1.0, 0.0], [1.0, -0.0], (False, 0.0, 0.0)),
        ([1.0, np.nan], [1.0, 2.0], (False, np.nan, np.nan)),
        ([4.0, 1.0], [3.0, 1.5], (False, 1.0, 0.5 / 1.5)),
        ([], [], (True, 0.0, 0.0)),
    ],
)
def test_largest_differences(a, b, expected, monkeypatch):
    for piece in (1, 100):
        monkeypatch.setattr(differing, "_PIECE", piece)
        found = differing.compared(np.float32(a), np.float32(b))
        np.testing.assert_allclose(found, expected, rtol=1e-6)
