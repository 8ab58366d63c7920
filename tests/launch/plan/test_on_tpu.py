"""GPT-3 planned for TPUs that are not here."""

import json
import subprocess
import sys

import pytest

from configs import gpt3


def planned(tmp_path, *arguments):
    """Runs the command; returns how it ended, and its figures where it has some."""
    path = tmp_path / "plan.json"
    done = subprocess.run(
        [sys.executable, "-m", "launch.plan", f"--json={path}", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    return done, json.loads(path.read_text()) if path.exists() else None


@pytest.mark.extras
def test_175b_on_a_slice_of_v5p_recomputes_and_sends_no_more_than_it_must(tmp_path, extra):
    extra("libtpu")
    done, figures = planned(
        tmp_path,
        *("--config=configs/gpt3.py:175b", "--topology=v5p:4x4x8", "--config.model.window=(None,)"),
        *("--config.mesh.heads=8", "--config.batch_size=128", "--config.optim.accumulate=1"),
        "--config.model.remat=offload",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert figures["mesh"] == dict(data=1, fsdp=16, heads=8, context=1)
    # Six N D of matrices, and the forward pass once more without the last product of each half.
    matrices = 175e9 * 128 * 2048 / 128
    assert 6 * matrices < figures["products"] < 7.5 * matrices
    assert sum(w["bytes"] for w in figures["wire"]) < 560e9
    assert figures["memory"]["peak"] < 31e9
    assert figures["memory"]["parameters"] == pytest.approx(4 * 174.6e9 / 128, rel=0.01)


@pytest.mark.extras
def test_175b_need_recompute_no_product(tmp_path, extra):
    extra("libtpu")
    done, figures = planned(
        tmp_path,
        *("--config=configs/gpt3.py:175b", "--topology=v5p:4x4x8", "--config.model.window=(None,)"),
        *("--config.batch_size=128", "--config.optim.accumulate=1"),
        "--config.model.gradient_reduce_dtype=bfloat16",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert figures["mesh"] == dict(data=1, fsdp=32, heads=4, context=1)
    assert figures["products"] < 2.16e15
    assert sum(w["bytes"] for w in figures["wire"]) < 440e9
    assert figures["memory"]["peak"] < 85e9


@pytest.mark.extras
def test_175b_fits_256_small_chips(tmp_path, extra):
    extra("libtpu")
    done, figures = planned(
        tmp_path,
        *("--config=configs/gpt3.py:175b", "--topology=v5e:16x16", "--config.model.window=(None,)"),
        *("--config.batch_size=256", "--config.optim.accumulate=4", "--config.mesh.heads=16"),
        "--config.model.remat=offload",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert figures["memory"]["peak"] < 15.75 * 2**30


@pytest.mark.extras
@pytest.mark.parametrize("row", gpt3.ROWS)
def test_every_row_fits_the_chips_that_it_names(tmp_path, extra, row):
    extra("libtpu")
    topology = gpt3.ROWS[row].topology
    done, figures = planned(tmp_path, f"--config=configs/gpt3.py:{row}", f"--topology={topology}")
    assert done.returncode == 0, done.stderr[-2000:]
    assert figures["memory"]["peak"] < 0.9 * figures["memory"]["available"]
    # Nothing is recomputed; kernels are not among the products.
    assert figures["products"] < figures["counted"]


@pytest.mark.extras
def test_what_does_not_fit_says_what_it_needs(tmp_path, extra):
    extra("libtpu")
    done, _ = planned(
        tmp_path,
        *("--config=configs/gpt3.py:175b", "--topology=v5e:4x4", "--config.optim.accumulate=1"),
    )
    assert done.returncode == 2
    assert "needs" in done.stderr
    assert "where a chip has 15.75GiB" in done.stderr
