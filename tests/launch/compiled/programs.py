"""Programs compiled for forced host devices."""

import jax

from launch.compiled.program import Program


def compiled(function, *arrays):
    """Returns the program of a function of arrays, or of their shapes."""
    return Program(jax.jit(function).lower(*arrays).compile().as_text())
