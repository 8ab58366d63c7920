"""Several processes begin from a saved model that differs, as one does."""

import jax
import numpy as np
import pytest

from configs import induction, resolved
from model.config import ModelConfig
from model.manifest import CONFIG, MODEL
from model.parameter import named_arrays
from model.saved import open_saved
from model.saving import save
from model.transformer import Transformer
from tests.model import small
from tests.train import tiny
from tests.train.processes import running
from train.begun_from import start_from

SIZES = {"embed_dim": 16, "num_heads": 4, "num_layers": 2}
LESS = {"num_kv_heads": 2, "value_dim": 2, "num_layers": 3, "vocab_size": 70}


def config(sizes):
    found = induction.get_config()
    found.length = 16
    found.model.update(sizes)
    return resolved.resolve(found, found.model.vocab_size)


@pytest.mark.slow
def test_two_processes_begin_from_a_model_that_differs_as_one_does(tmp_path):
    old = config(SIZES)
    model = small.drawn(ModelConfig.from_config(old.model, 1, old.length))
    folder = tmp_path / "saved"
    save(folder, {MODEL: named_arrays(model)}, {CONFIG: resolved.to_json(old)}).result()

    words = [*running.TINY, f"--workdir={tmp_path / 'run'}", "--config.steps=1"]
    words += ["--config.steps_per_call=1", f"--config.checkpoint.restore_from={folder}"]
    words += ["--config.optim.learning_rate=0.0", "--config.mesh.heads=2"]  # parameters stay
    words += [f"--config.model.{name}={size}" for name, size in (SIZES | LESS).items()]
    ended = running.ended(running.start([words] * 2), 180)
    assert [process.status for process in ended] == [0, 0], ended
    said = " ".join(ended[0].out.split())
    assert "4 key/value heads -> 2, then rank 32 -> 2 by SVD, all 2 layers, 1 new" in said
    assert "by SVD" not in ended[1].out

    new = config(SIZES | LESS)
    new.checkpoint.restore_from = str(folder)
    mesh, shape = tiny.mesh(), ModelConfig.from_config(new.model, 1, new.length)
    with jax.set_mesh(mesh):
        abstract = jax.eval_shape(lambda key: Transformer(shape, key), jax.random.key(0))
        expected = named_arrays(start_from(open_saved(folder), new, abstract, None, mesh)[0])
    found = named_arrays(open_saved(tmp_path / "run").load_model(mesh))
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-5, err_msg=name)
