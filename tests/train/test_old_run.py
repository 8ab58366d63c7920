"""A run saved by an earlier version goes on, evaluates and speaks; each format is kept for ever.

``run_of_format_N.zip`` holds a run of six steps up to its save at step 3, and the losses of all
six. Format 1 was written before products, attention and the optimizer took their present form, and
before there were checksums; format 2 has an average of the parameters and looks for spikes, and is
there as the oldest Orbax that can be used wrote it, and as the one of ``requirements.lock``.
"""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from configs import resolved
from model import manifest
from model.manifest import EMA, MODEL, OPTIMIZER
from model.saved import open_saved, open_step
from tests.train import tiny
from train.loop import train
from train.metrics import read

RUNS = {"1": 1, "2": 2, "2_orbax_0.12.3": 2}  # the format of each


@pytest.fixture(params=RUNS)
def old(request, tmp_path):
    """Returns the folder of the run, and the loss of each of its steps."""
    name = f"run_of_format_{request.param}.zip"
    with zipfile.ZipFile(Path(__file__).with_name(name)) as file:
        file.extractall(tmp_path)
    assert manifest.read(tmp_path / "run" / "checkpoints" / "3").format == RUNS[request.param]
    return tmp_path / "run", json.loads((tmp_path / "losses.json").read_text())


@pytest.mark.parametrize("sizes", [{}, dict(fsdp=2, heads=2)], ids=str)
def test_it_goes_on_with_the_losses_that_it_would_have_had(old, sizes):
    workdir, losses = old
    config = resolved.from_json((workdir / "config.json").read_text(), "config.json")
    config.mesh.update(sizes)
    assert train(config, workdir, Console(quiet=True)).step == 6
    found = [row["loss"] for row in read(workdir)]
    np.testing.assert_allclose(found, losses, rtol=2e-6)


def test_it_opens_as_a_model(old):
    saved = open_saved(old[0])
    assert saved.step == 3
    model = saved.load_model(tiny.mesh())
    assert model.blocks[0].attention.query.shape == (2, 8, 2, 4)


def test_the_kept_run_of_this_format_is_whole(old):
    step = open_step(old[0] / "checkpoints" / "3", (MODEL, OPTIMIZER, EMA))
    assert step.holds(EMA) == (step.manifest.format == 2)
    assert max(RUNS.values()) == manifest.FORMAT, "keep a run of the new format too"
