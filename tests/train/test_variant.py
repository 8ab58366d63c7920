"""A user's attention variant trains, shards, saves, restores and speaks like the built-in one."""

import jax
import numpy as np
import pytest
from rich.console import Console

from configs import induction
from model.axes import make_mesh
from model.parameter import named_arrays
from model.saved import open_saved
from train.decoding import continue_tokens
from train.loop import train
from train.sampler import Sampler

VARIANT = "model.variants.gated:Gated"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Returns the folder of a run with the variant, under Muon, on fsdp 2 x heads 4."""
    folder = tmp_path_factory.mktemp("gated")
    config = induction.get_config()
    config.steps = 6
    config.steps_per_call = 3
    config.log.tensorboard = False
    config.log.eval_batches = 1
    config.model.attention = VARIANT
    config.optim.name = "muon"
    config.mesh.fsdp, config.mesh.heads = 2, 4
    assert train(config, folder, Console(quiet=True)).step == 6
    return folder


def test_a_run_on_a_mesh_opens_and_speaks_on_one_device(workdir) -> None:
    found = open_saved(workdir)
    mesh = make_mesh(dict(data=1, fsdp=1, heads=1, context=1))
    with jax.set_mesh(mesh):
        model = found.load_model(mesh)
        arrays = named_arrays(model)
        gate = np.asarray(arrays["blocks.0.attention.gate"])
        assert gate.shape == (2, 64, 4)

        # Cached decoding of the variant equals its full forward, token by token.
        prompt = np.array([5, 9, 2, 5, 9], np.int32)
        drawn = continue_tokens(model, [prompt], 6, Sampler(temperature=0.0))[0]
        row = np.concatenate([prompt, drawn]).astype(np.int32)
        logits = np.asarray(model(jax.numpy.asarray(row)[None]))[0]
    np.testing.assert_array_equal(drawn, logits[4:-1, :64].argmax(-1))


def test_the_optimizer_keeps_a_group_for_the_gate(workdir) -> None:
    names = open_saved(workdir).shapes("optimizer")
    assert any(name.startswith("muon.") and name.endswith("attention.gate") for name in names)
    assert not any(name.startswith("adamw.") and "attention.gate" in name for name in names)
