"""Compilation does not grow with depth when the blocks are scanned."""

import jax
import jax.numpy as jnp
import pytest

from tests.model import small


def lowered(layers, **changes):
    """Returns the gradient of the loss, traced and lowered for a depth."""
    config = small.config(num_layers=layers, window=(None, 3), **changes)
    tokens = jax.ShapeDtypeStruct((2, 8), jnp.int32)
    # A fresh function: jit keeps what it compiled for an old one.
    gradient = jax.jit(lambda m, t: jax.grad(small.cross_entropy)(m, t, t))
    return gradient.lower(small.abstract(config), tokens)


@pytest.mark.parametrize("remat", ["none", "block"])
def test_the_program_of_96_layers_is_as_long_as_that_of_4(remat):
    shallow, deep = (len(lowered(layers, remat=remat).as_text()) for layers in (4, 96))
    assert abs(deep - shallow) < 0.05 * shallow


def test_a_cpu_unrolls_up_to_a_dozen_layers():
    loops = {n: lowered(n, scan_layers=None).as_text().count("stablehlo.while") for n in (12, 14)}
    assert loops[12] < loops[14]
    explicit = {
        s: lowered(12, scan_layers=s).as_text().count("stablehlo.while") for s in (True, False)
    }
    assert loops == {12: explicit[False], 14: explicit[True]}


def test_the_program_grows_when_unrolled():
    shallow, deep = (len(lowered(n, scan_layers=False).as_text()) for n in (2, 8))
    assert deep > 2 * shallow
