"""Without what a CPU does in its own way, everything is the same to rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.devices import choice
from model.devices.cpu import CPU
from model.devices.plain import Plain
from model.layers import scanned
from model.parameter import declarations
from tests.model import small
from tests.train import tiny
from train.decoding import continue_tokens
from train.sampler import Sampler


@pytest.fixture(params=["float32", "bfloat16"])
def both_ways(request, monkeypatch):
    """Returns a function that runs another as a CPU does and as accelerators do."""

    def run(function):
        found = []
        for ways in (choice.DEVICES, {}):
            monkeypatch.setattr(choice, "DEVICES", ways)
            jax.clear_caches()
            assert (type(choice.device()) is Plain) == (not ways)
            found.append(function(request.param))
        jax.clear_caches()
        return found

    return run


def near(found, expected, dtype):
    """Compares arrays up to what the order of sums changes in a dtype."""
    rounding = 1e-5 if dtype == "float32" else 0.05
    for own, whole in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        own, whole = (np.asarray(a, np.float32) for a in (own, whole))
        np.testing.assert_allclose(own, whole, rtol=0, atol=rounding * (1 + np.abs(whole).max()))


def turned_products() -> bool:
    """Tells whether XLA's CPU can transpose a product of 16 bits: that of jaxlib 0.12.0 cannot.

    Accelerators' way asks for it; a CPU's own does not.
    """
    x, w = jnp.ones((14, 128), jnp.bfloat16), jnp.ones((12, 14), jnp.bfloat16)
    product = jax.jit(lambda w, x: jnp.matmul(w, x, preferred_element_type="float32").T)
    try:
        jax.block_until_ready(product(w, x))
    except jax.errors.JaxRuntimeError:
        return False
    return True


def test_a_models_gradients(both_ways, request):
    """Of heads that share keys; the device chooses the attention backend too."""
    if request.node.callspec.params["both_ways"] == "bfloat16" and not turned_products():
        pytest.skip("XLA's CPU cannot compute these gradients in accelerators' way")
    kinds = []

    def gradients(dtype):
        config = small.config(
            num_kv_heads=2,
            scan_layers=None,
            dtype=dtype,
            biases=True,
            mlp="swiglu",
            query_key_norm=True,
        )
        kinds.append(scanned(config))
        tokens = small.tokens(config)
        run = jax.jit(jax.grad(lambda m, t: small.cross_entropy(m, t, t)))
        kinds.append(dtype)
        return run(small.drawn(config), tokens)

    near(*both_ways(gradients), kinds[1])
    # The two ways differ where the config leaves it to the device.
    assert kinds[::2] == [False, True]


def test_no_copy_of_all_layers_is_held_until_the_backward_pass(monkeypatch):
    sizes = dict(num_layers=6, embed_dim=128, mlp_dim=512, max_length=64)
    config = small.config(scan_layers=False, **sizes)
    model, tokens = small.abstract(config), jax.ShapeDtypeStruct((4, 64), jnp.int32)
    matrices = sum(4 * d.size for d in declarations(model) if d.kind == "matrix")

    def held():
        gradient = jax.jit(jax.grad(lambda m, t: small.cross_entropy(m, t, t)))
        compiled = gradient.lower(model, tokens).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    recut = held()
    monkeypatch.setattr(CPU, "layer", Plain.layer)
    jax.clear_caches()
    assert recut < held() - 0.6 * matrices


def test_several_forced_host_devices_run_what_accelerators_do():
    kinds = []
    for sizes in (dict(heads=1), dict(heads=2)):
        with jax.set_mesh(tiny.mesh(**sizes)):
            kinds.append(type(choice.device()))
    assert kinds == [CPU, Plain]


@pytest.mark.parametrize("both_ways", ["float32"], indirect=True)
def test_a_training_step(both_ways):
    dtypes = []

    def step(dtype):
        dtypes.append(dtype)
        config = tiny.config({"model.dtype": dtype, "model.scan_layers": None})
        stepper = tiny.Stepper(config, tiny.mesh())
        state, losses = stepper.losses(stepper.start(), 2)
        return jax.tree.map(np.asarray, jax.tree.leaves(state.model)), losses

    near(*both_ways(step), dtypes[0])


def test_decoding(both_ways):
    def drawn(dtype):
        config = small.config(dtype=dtype, scan_layers=None, max_length=64, num_kv_heads=2)
        prompts = [np.array([1, 2, 3], np.int32), np.array([4], np.int32)]
        model = small.drawn(config)
        tokens = [
            continue_tokens(model, part, 8, Sampler(temperature=0.0))
            for part in (prompts, prompts[:1])
        ]
        decode = jax.jit(lambda m, *given: m.decode(*given)[0])
        cache = model.empty_cache(1, 4)
        logits = decode(model, prompts[0][None], jnp.arange(3)[None], jnp.int32(0), cache)
        return tokens, np.asarray(logits[..., : config.vocab_size]), dtype

    (own, logits, dtype), (plain, expected, _) = both_ways(drawn)
    near(logits, expected, dtype)
    if dtype == "float32":
        for found, whole in zip(*map(jax.tree.leaves, (own, plain)), strict=True):
            np.testing.assert_array_equal(found, whole)
