"""What cuDNN's attention is given, and what it refuses; only a GPU can say what it computes."""

import dataclasses
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from configs.errors import UserError
from model.backends import choice, cudnn, dense
from model.devices import choice as devices
from model.heads import Heads
from model.masks import Mask, causal
from model.pattern import Pattern
from tests.model import small
from tests.model.attending import COMPUTE, both, drawn, value_and_gradients

NARROW = dataclasses.replace(COMPUTE, dtype="bfloat16")
ON_GPU = os.environ.get("MANYHEADS_PLATFORM") == "cuda"


@pytest.fixture
def on_gpu(monkeypatch):
    """Lets programs be made for a GPU that is not here: what jax would ask the driver is told."""
    monkeypatch.setattr(cudnn, "platform", lambda: "cuda")
    monkeypatch.setattr(devices, "platform", lambda: "cuda")
    library = fused_attention_stablehlo
    monkeypatch.setattr(library, "check_cudnn_version", lambda: 91300)
    monkeypatch.setattr(library, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(library, "is_cuda_compute_capability_equal", lambda capability: False)


def given(window=None, groups=2, length=640, width=64):
    q, k = (jax.ShapeDtypeStruct((2, heads, length, width), jnp.bfloat16) for heads in (4, groups))
    return Heads(q, k, k), causal(length, None, NARROW).within(window), Pattern(), NARROW


@pytest.mark.parametrize("window", [None, 100])
def test_value_and_gradients_are_cudnns_kernels(on_gpu, window):
    heads, mask, pattern, _ = given(window)
    q, k, v = heads.query, heads.key, heads.value

    @jax.jit
    def run(q, k, v):
        return value_and_gradients(cudnn.attend, q, k, v, q, mask, pattern, NARROW)

    text = run.trace(q, k, v).lower(lowering_platforms=("cuda",)).as_text()
    assert len(re.findall(r"@__cudnn\$fmhaSoftmax\(", text)) == 1
    assert len(re.findall(r"@__cudnn\$fmhaSoftmaxBackward\(", text)) == 1
    # Causal by name; the window counts the query's own position.
    assert '"mask_type": "CAUSAL"' in text.replace("\\22", '"')
    lengths = set(re.findall(r'"sliding_window_length": (\d+)', text.replace("\\22", '"')))
    assert lengths == {str(window or 0)}


def test_auto_takes_it_for_long_sequences(on_gpu):
    assert choice.select("auto", *given()) == "cudnn"
    assert choice.select("auto", *given(length=100)) == "dense"
    assert choice.select("auto", *given()[:3], COMPUTE) == "blockwise"


def test_what_it_cannot_compute_is_refused(on_gpu, monkeypatch):
    heads, mask, pattern, compute = given()
    q, k, v = heads.query, heads.key, heads.value

    def refused(*given):
        with pytest.raises(UserError, match="model.attention_backend = 'cudnn' ") as error:
            choice.select("cudnn", *given)
        with pytest.raises(ValueError, match="cudnn cannot"):
            cudnn.attend(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), given[0]), *given[1:])
        return str(error.value)

    assert choice.select("cudnn", *given()) == "cudnn"
    assert "model.dtype = 'bfloat16'" in refused(Heads(q, k, v), mask, pattern, COMPUTE)
    assert "model.logit_cap" in refused(Heads(q, k, v), mask, Pattern(cap=30.0), compute)
    narrow = jax.ShapeDtypeStruct((*v.shape[:3], 32), v.dtype)
    assert "model.value_dim" in refused(Heads(q, k, narrow), mask, pattern, compute)
    one = jax.ShapeDtypeStruct((2, 1, *v.shape[2:]), v.dtype)
    assert "must be alike" in refused(Heads(q, k, one), mask, pattern, compute)
    for width in (60, 136):
        assert f"head_dim = {width}" in refused(given(width=width)[0], mask, pattern, compute)
    documents = causal(640, jnp.zeros((2, 640), jnp.int32), compute)
    assert "data.rows = 'stream'" in refused(Heads(q, k, v), documents, pattern, compute)
    cached = Mask(mask.query_position, mask.key_position)
    assert "not a cache" in refused(Heads(q, k, v), cached, pattern, compute)
    with jax.set_mesh(small.mesh(dict(context=2, heads=4))):
        assert "mesh.context = 1" in refused(Heads(q, k, v), mask, pattern, compute)
    assert "no sinks" in refused(Heads(q, k, v), mask, Pattern(sink=jnp.zeros(4)), compute)
    hooked = Pattern(score=lambda logit, query, key, head: logit)
    assert "no hooks" in refused(Heads(q, k, v), mask, hooked, compute)
    monkeypatch.setattr(cudnn, "platform", lambda: "cpu")
    assert "this is a cpu" in refused(Heads(q, k, v), mask, pattern, compute)


@pytest.mark.skipif(not ON_GPU, reason="needs a GPU, and MANYHEADS_PLATFORM=cuda")
@pytest.mark.parametrize("kind", [{}, dict(groups=2), dict(groups=1, window=50)], ids=str)
def test_values_and_gradients_are_those_of_dense(kind):
    arrays, mask, pattern = drawn(**kind, length=256, rank=64, width=64)
    arrays = [array.astype(jnp.bfloat16) for array in arrays]
    found = both(cudnn.attend, *arrays, mask, pattern, NARROW)
    for own, expected in zip(
        found, both(dense.attend, *arrays, mask, pattern, NARROW), strict=True
    ):
        np.testing.assert_allclose(
            np.asarray(own, np.float32), np.asarray(expected, np.float32), rtol=0, atol=0.05
        )
