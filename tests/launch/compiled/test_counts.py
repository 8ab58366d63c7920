"""Operations and collectives of programs whose counts are known by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from launch.compiled.collectives import Collective, collectives
from launch.compiled.operations import product_operations
from launch.compiled.program import Program
from tests.model import small

SIZES = dict(data=2, fsdp=2, heads=2, context=1)


def compiled(function, *arrays):
    return Program(jax.jit(function).lower(*arrays).compile().as_text())


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


def on_mesh(function, *shapes):
    with jax.set_mesh(small.mesh(SIZES)):
        arrays = [
            jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharded(s)) for shape, s in shapes
        ]
        return collectives(compiled(function, *arrays), SIZES)


def sharded(spec):
    return jax.NamedSharding(jax.sharding.get_abstract_mesh(), spec)


def test_collectives_have_axes_bytes_and_times():
    def whole(x, ws):
        def layer(x, w):
            w = jax.sharding.reshard(w, P(None, None))
            y = jax.shard_map(
                lambda y: jax.lax.psum(y, "heads"), in_specs=P("data"), out_specs=P("data")
            )
            return y(jnp.tanh(jnp.einsum("td,de->te", x, w))), None

        return jax.lax.scan(layer, x, ws)[0]

    found = on_mesh(whole, ((8, 16), P("data", None)), ((5, 16, 16), P(None, "fsdp", None)))
    by_kind = {c.kind: c for c in found}
    gather, add = by_kind["all-gather"], by_kind["all-reduce"]
    assert len(found) == 2
    assert (gather.axes, gather.size, gather.operand_bytes) == (("fsdp",), 2, 4 * 8 * 16)
    assert (add.axes, add.size, add.operand_bytes, add.times) == (("heads",), 2, 4 * 4 * 16, 5)
    assert add.wire == 5 * 2 * 4 * 4 * 16 / 2
    assert gather.wire == gather.times * 4 * 8 * 16


@pytest.mark.parametrize(
    ("groups", "axes", "size"),
    [
        ("{{0,1},{2,3},{4,5},{6,7}}", ("heads",), 2),
        ("{{0,4},{1,5},{2,6},{3,7}}", ("data",), 2),
        ("[2,4]<=[8]", ("fsdp", "heads"), 4),
        ("[4,2]<=[2,4]T(1,0)", ("data",), 2),
        ("mesh['a'=2,'b'=2,'c'=2] {'b'}", ("fsdp",), 2),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", ("fsdp", "heads"), 4),
    ],
)
def test_groups_are_read_as_xla_writes_them(groups, axes, size):
    text = f"""
ENTRY %main (a: f32[3]) -> f32[3] {{
  %a = f32[3]{{0}} parameter(0)
  ROOT %c = f32[3]{{0}} all-reduce(%a), channel_id=1, replica_groups={groups}, to_apply=%add
}}
"""
    (found,) = collectives(Program(text), SIZES)
    assert (found.axes, found.size) == (axes, size)


@pytest.mark.parametrize(
    ("kind", "factor"),
    [
        ("all-gather", 3),
        ("all-reduce", 2 * 3 / 4),
        ("reduce-scatter", 3 / 4),
        ("all-to-all", 3 / 4),
        ("collective-permute", 1),
    ],
)
def test_wire_is_that_of_a_ring(kind, factor):
    found = Collective(kind, ("heads",), 4, 100.0, (), 3.0, False, "")
    np.testing.assert_allclose(found.wire, 300 * factor)


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
