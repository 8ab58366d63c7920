"""How often the parts of a program run."""

import jax
import jax.numpy as jnp
import pytest

from launch.compiled.operations import product_operations
from launch.compiled.program import Program


def test_a_loop_without_a_counter_is_an_error():
    program = """
%body (p: (f32[])) -> (f32[]) {
  ROOT %p = (f32[]) parameter(0)
}
%condition (p: (f32[])) -> pred[] {
  %p = (f32[]) parameter(0)
  ROOT %q = pred[] constant(true)
}
ENTRY %main (a: f32[]) -> (f32[]) {
  %a = f32[] parameter(0)
  %t = (f32[]) tuple(%a)
  ROOT %w = (f32[]) while(%t), condition=%condition, body=%body
}
"""
    with pytest.raises(ValueError, match="the loop w does not count up to a limit"):
        Program(program)
    assert Program(program, open_ended=3).times["body"] == 3


def test_a_loop_of_a_number_that_is_given_goes_round_as_often_as_is_said():
    def several(count, x):
        return jax.lax.fori_loop(0, count, lambda _, y: jnp.tanh(y @ y), x)

    text = jax.jit(several).lower(3, jnp.ones((4, 4))).compile().as_text()
    assert product_operations(Program(text, open_ended=5)) == 5 * 2 * 4**3
    with pytest.raises(ValueError, match="loop"):
        Program(text)
