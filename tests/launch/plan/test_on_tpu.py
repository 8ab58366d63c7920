"""GPT-3 planned for TPUs that are not here."""

import json
import subprocess
import sys

import pytest

from configs import gpt3
from tests.train.processes import running


def planned(tmp_path, *arguments):
    """Runs the command; returns how it ended, and its figures where it has some."""
    path = tmp_path / "plan.json"
    done = subprocess.run(
        [sys.executable, "-m", "launch.plan", f"--json={path}", *arguments],
        env=running.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=360,  # more is of no use to who tries settings
    )
    return done, json.loads(path.read_text()) if path.exists() else None


# Of 175b with all layers dense: what is set, what a chip may send and hold, how many operations of
# products it may take, 6 for each parameter and token being 2.145e15, and how many of the
# compiler's cycles.
GIVEN = {
    "all recomputed": (
        "--topology=v5p:4x4x8 --config.batch_size=128 --config.optim.accumulate=1 "
        "--config.mesh.heads=8 --config.model.remat=offload",
        dict(wire=560e9, peak=31e9, products=2.63e15, cycles=13.5e9),
    ),
    "no product recomputed": (
        "--topology=v5p:4x4x8 --config.batch_size=128 --config.optim.accumulate=1 "
        "--config.model.gradient_reduce_dtype=bfloat16",
        dict(wire=440e9, peak=85e9, products=2.16e15, cycles=11.5e9),
    ),
    "fewest cycles": (
        "--topology=v5p:4x4x8 --config.batch_size=128 --config.optim.accumulate=1 "
        "--config.mesh.heads=2 --config.model.gradient_reduce_dtype=bfloat16",
        dict(wire=600e9, peak=85e9, products=2.16e15, cycles=10.3e9),
    ),
    "on 256 small chips": (
        "--topology=v5e:16x16 --config.batch_size=256 --config.optim.accumulate=4 "
        "--config.mesh.heads=16 --config.model.remat=offload",
        dict(wire=2e12, peak=15.75 * 2**30, products=2.63e15, cycles=28e9),
    ),
}


@pytest.mark.extras
@pytest.mark.parametrize("name", GIVEN)
def test_175b_sends_holds_and_computes_no_more_than_it_must(tmp_path, extra, name):
    extra("libtpu")
    arguments, most = GIVEN[name]
    dense = "--config.model.window=(None,)"
    done, found = planned(tmp_path, "--config=configs/gpt3.py:175b", dense, *arguments.split())
    assert done.returncode == 0, done.stderr[-2000:]
    assert sum(w["bytes"] for w in found["wire"]) < most["wire"]
    assert found["memory"]["peak"] < most["peak"]
    assert 2.1e15 < found["products"] < most["products"]
    assert found["cycles"] < most["cycles"]
    assert found["compiler"]["memory"] < 4e9
    assert found["memory"]["parameters"] == pytest.approx(4 * 174.6e9 / found["devices"], rel=0.02)


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
def test_what_old_chips_have_no_kernel_for_is_computed_without(tmp_path, extra):
    """Two devices a chip, whose products in kernels are float32 alone."""
    extra("libtpu")
    given = "--config=configs/induction.py --config.length=512 --config.model.dtype=bfloat16"
    done, figures = planned(tmp_path, "--topology=v3:2x2", *given.split())
    assert done.returncode == 0, done.stderr[-2000:]
    assert figures["devices"] == 8
    assert figures["memory"]["available"] == 16 * 2**30


@pytest.mark.extras
def test_long_sequences_take_the_less_of_a_chip_the_more_there_are(tmp_path, extra):
    """Of 131,072 tokens, whose keys go round the chips, by their own kernel."""
    extra("libtpu")
    held = {}
    for topology, chips in (("v5p:2x2x2", 8), ("v5p:2x2x4", 16)):
        done, figures = planned(
            tmp_path,
            *("--config=configs/gpt3.py:1.3b", f"--topology={topology}"),
            *("--config.length=131072", "--config.batch_size=1", "--config.optim.accumulate=1"),
            *("--config.mesh.fsdp=1", f"--config.mesh.context={chips}"),
            *("--config.mesh.context_attention=ring", "--config.model.window=(None,)"),
            *("--config.mesh.heads=1", "--config.model.remat=block"),
        )
        assert done.returncode == 0, done.stderr[-2000:]
        memory = figures["memory"]
        held[chips] = memory["peak"] - memory["parameters"] - memory["optimizer"]
        # Keys round the chips, sum of gradients; no sequence is gathered.
        kinds = {wire["kind"] for wire in figures["wire"]}
        assert kinds == {"collective-permute", "all-reduce"}
    # Besides gradients, and the copies in bfloat16 that XLA keeps of all weights.
    whole = memory["gradients"] + memory["parameters"] / 2
    assert held[16] - whole < 0.6 * (held[8] - whole)


@pytest.mark.extras
def test_slices_send_each_other_the_gradients_of_a_shard(tmp_path, extra):
    """Each parameter once, in float32, over the network that joins them."""
    extra("libtpu")
    given = (
        *("--config=configs/gpt3.py:125m", "--topology=2*v5e:2x4", "--config.model.num_layers=2"),
        *("--config.batch_size=64", "--config.mesh.heads=1", "--config.optim.accumulate=1"),
    )
    done, figures = planned(tmp_path, *given, "--config.mesh.data=2", "--config.mesh.fsdp=8")
    assert done.returncode == 0, done.stderr[-2000:]
    between = [wire["bytes"] for wire in figures["wire"] if wire["axes"] == "slices"]
    # On a ring of two. XLA sums some before it scatters them, and sends a little more.
    assert 1 <= sum(between) / figures["memory"]["parameters"] < 1.2
    done, _ = planned(tmp_path, *given, "--config.mesh.fsdp=16")
    assert done.returncode == 2
    assert "needs mesh.data to be a multiple of the 2 slices" in done.stderr


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
