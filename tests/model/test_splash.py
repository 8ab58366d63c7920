"""The TPU's kernel equals the dense backend, step by step on a CPU, and compiles for TPUs."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.errors import UserError
from model import transformer
from model.backends import choice, dense, splash
from model.devices import choice as devices
from model.heads import Heads
from model.masks import Mask
from model.pattern import Pattern
from tests.model import on_tpu, small
from tests.model.attending import COMPUTE, HOOKED, KINDS, both, check_near, check_on_a_mesh, drawn

TAKEN = [kind for kind in KINDS if kind != "full value map" and kind not in HOOKED]


@pytest.fixture
def interpreted(monkeypatch):
    monkeypatch.setattr(splash, "INTERPRET", True)


@pytest.mark.parametrize("kind", TAKEN)
def test_values_and_gradients_are_those_of_dense(interpreted, kind):
    arrays, mask, pattern = drawn(**KINDS[kind])
    found = both(splash.attend, *arrays, mask, pattern)
    check_near(found, both(dense.attend, *arrays, mask, pattern))


@pytest.mark.parametrize("kind", ["windowed", "all"])
def test_several_blocks_are_those_of_dense(interpreted, monkeypatch, kind):
    """Blocks are 128 tokens at least; 300 are padded to three."""
    monkeypatch.setattr(splash, "BLOCK", 128)
    kind = {**KINDS[kind], "window": 130}
    arrays, mask, pattern = drawn(**kind, length=300)
    found = both(splash.attend, *arrays, mask, pattern)
    for own, expected in zip(found, both(dense.attend, *arrays, mask, pattern), strict=True):
        np.testing.assert_allclose(own, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sizes", [dict(heads=4, data=2), dict(heads=2, fsdp=2)])
@pytest.mark.parametrize("kind", ["plain", "grouped", "multi-query", "all"])
def test_on_a_mesh_it_is_the_same(interpreted, kind, sizes):
    check_on_a_mesh(splash.attend, kind, sizes)


def test_what_it_cannot_compute_is_refused(interpreted, monkeypatch):
    (q, k, v, _), mask, _ = drawn()

    def refused(*given):
        with pytest.raises(UserError, match="model.attention_backend = 'splash' .*") as error:
            choice.select("splash", *given)
        with pytest.raises(ValueError, match="splash cannot"):
            splash.attend(*given)
        return str(error.value)

    given = (Heads(q, k, v), mask, Pattern(), COMPUTE)
    assert choice.select("splash", *given) == "splash"
    cached = Mask(mask.query_position, mask.key_position)
    assert "not a cache" in refused(Heads(q, k, v), cached, Pattern(), COMPUTE)
    assert "value_map" in refused(Heads(q, k, v[:, :1]), mask, Pattern(), COMPUTE)
    with jax.set_mesh(small.mesh(dict(context=2, heads=4))):
        (q, k, v, _), twelve, _ = drawn(length=12)
        round = Heads(q, k, v), twelve, Pattern(), COMPUTE
        assert "must be a multiple of 512, 256 a device" in refused(*round)
        windowed = dataclasses.replace(twelve, window=7)
        assert "'all_to_all'" in refused(Heads(q, k, v), windowed, Pattern(), COMPUTE)
    (q, k, v, _), _, _ = drawn()
    hooked = Pattern(visible=lambda query, key, head: True)
    assert "no hooks" in refused(Heads(q, k, v), mask, hooked, COMPUTE)
    monkeypatch.setattr(splash, "INTERPRET", False)
    assert "this is a cpu" in refused(*given)
    monkeypatch.setattr(splash, "platform", lambda: "tpu")
    monkeypatch.setattr(splash, "device_kind", lambda: "TPU v3")
    assert "needs a TPU v4 or a later one, and this is a TPU v3" in refused(*given)


def test_tokens_that_read_a_cache_take_another():
    """A model that was trained with it decodes."""
    (q, k, v, _), mask, _ = drawn()
    cached = Mask(mask.query_position, mask.key_position, slot=jnp.int32(0))
    assert choice.select("splash", Heads(q[:, :, :1], k, v), cached, Pattern(), COMPUTE) == "dense"


@pytest.mark.extras
def test_it_compiles_for_tpus(extra):
    """On a mesh of v5e chips that are not here: alone, and in a network that ``auto`` gives it."""
    extra("libtpu")
    found = json.loads(on_tpu.run("tests.model.compiling_for_tpu"))
    # A forward kernel, and two backward ones.
    assert found["kernels"] == dict.fromkeys(found["kernels"], 3)
    assert len(found["kernels"]) == 8
    assert found["network"] == 3
    assert found["said"] == "attention: splash (auto, for 1024 tokens on a tpu)"


def test_short_sequences_and_long_ones_on_a_tpu(monkeypatch):
    for module in (splash, devices, transformer):
        monkeypatch.setattr(module, "platform", lambda: "tpu")

    def taken(length, **changes):
        config = small.config(max_length=length, attention_backend="auto", **changes)
        return small.abstract(config).attention_line(2, length)

    assert taken(512) == "attention: splash (auto, for 512 tokens on a tpu)"
    assert taken(511) == "attention: dense (auto, for 511 tokens on a tpu)"
    assert taken(1024, value_map="full", num_kv_heads=2).startswith("attention: blockwise")
