"""Operations of programs whose products are counted by hand."""

import jax
import jax.numpy as jnp
import pytest

from launch.compiled.operations import product_operations
from launch.compiled.program import Program
from tests.launch.compiled.programs import compiled


@pytest.mark.parametrize("length", [1, 7])
def test_products_in_loops_are_counted_each_time(length):
    def layers(x, ws):
        def layer(x, w):
            inner = jax.lax.fori_loop(0, 3, lambda _, y: jnp.tanh(y @ w), x)
            return inner + x @ w, None

        return jax.lax.scan(layer, x, ws)[0]

    program = compiled(layers, jnp.ones((6, 10)), jnp.ones((length, 10, 10)))
    assert product_operations(program) == length * 4 * 2 * 6 * 10 * 10


def test_a_batched_product_is_counted():
    program = compiled(
        lambda q, k: jnp.einsum("bhtk,bhsk->bhts", q, k),
        jnp.ones((2, 3, 5, 4)),
        jnp.ones((2, 3, 7, 4)),
    )
    assert product_operations(program) == 2 * (2 * 3) * 5 * 7 * 4


@pytest.mark.parametrize(
    ("labels", "window", "shapes", "expected"),
    [
        # A plain product [8, 16] [16, 32].
        ("bf_io->bf", "", ((8, 16), (16, 32), (8, 32)), 2 * 8 * 16 * 32),
        # A batch of 12 as a window over padding: each place of the result meets one.
        (
            "0bf_0oi->0bf",
            "size=12 pad=11_11 rhs_reversal=1",
            ((1, 5, 7), (12, 3, 7), (12, 5, 3)),
            2 * 12 * 5 * 7 * 3,
        ),
        # A product over two indices, one of them a window as large as the operand.
        ("0bf_0io->0bf", "size=4", ((4, 5, 7), (4, 7, 3), (1, 5, 3)), 2 * 4 * 5 * 7 * 3),
        ("0bf_0io->0bf", "size=1 stride=2", ((5, 2, 7), (1, 7, 3), (3, 2, 3)), 2 * 3 * 2 * 7 * 3),
    ],
)
def test_a_tpus_convolutions_are_counted_without_padding(labels, window, shapes, expected):
    left, right, result = (f"f32[{','.join(map(str, shape))}]{{}}" for shape in shapes)
    attributes = f"window={{{window}}}, dim_labels={labels}" if window else f"dim_labels={labels}"
    text = f"""
ENTRY %main (a: f32[], b: f32[]) -> f32[] {{
  %a = {left} parameter(0)
  %b = {right} parameter(1)
  ROOT %c = {result} convolution(%a, %b), {attributes}
}}
"""
    assert product_operations(Program(text)) == expected
