"""The losses of a run on every way to lay eight devices over the four axes."""

import functools
import itertools

import jax
import numpy as np
import pytest

from tests.train import tiny

STEPS = 50
SIZES = (1, 2, 4, 8)
MESHES = [s for s in itertools.product(SIZES, repeat=4) if np.prod(s) == 8]
# Microbatches, alternating windows, two groups of keys, packed documents and a tied embedding.
ALL = {
    "data.source": "grammar",
    "data.documents": 200,
    "data.validation_documents": 8,
    "data.rows": "packed",
    "length": 48,
    "model.vocab_size": 352,
    "model.window": (None, 5),
    "model.num_kv_heads": 2,
    "model.tie_embeddings": True,
    "optim.accumulate": 2,
}
KINDS = {
    "all": ALL,
    "untied, residual sharded": {
        "length": 16,
        "model.num_kv_heads": 2,
        "mesh.residual": "sharded",
        "mesh.context_attention": "ring",
    },
    "bfloat16": ALL | {"model.dtype": "bfloat16", "mesh.residual": "sharded"},
}


@functools.cache
def run(kind, sizes):
    """Returns the first state, as arrays by name, and the losses."""
    fields = {"steps": STEPS, "steps_per_call": 10, **KINDS[kind]}
    axes = dict(zip(("data", "fsdp", "heads", "context"), sizes, strict=True))
    stepper = tiny.Stepper(tiny.config(fields), tiny.mesh(**axes))
    start = stepper.start()
    _, losses = stepper.losses(start, STEPS)
    return tiny.arrays(start), losses


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_losses_agree_on_every_mesh(kind):
    alone = (1, 1, 1, 1)
    first, expected = run(kind, alone)
    assert expected[-5:].mean() < expected[0] - 0.03
    most = 1e-4
    if kind == "bfloat16":
        # Meshes differ in their rounding, and processors too: none is to be much farther from the
        # truth of float32 than one device, whose own distance is about 0.01 of a loss of 4.
        truth = run("all", alone)[1]
        most, expected = 3 * np.abs(expected - truth).max(), truth
        assert most < 0.04
    for sizes in MESHES:
        found, losses = run(kind, sizes)
        tiny.assert_equal(found, first)
        np.testing.assert_allclose(losses, expected, rtol=0, atol=most, err_msg=str(sizes))
    jax.clear_caches()
