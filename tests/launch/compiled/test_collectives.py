"""Collectives of programs whose wire is counted by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from launch.compiled.collectives import Collective, collectives
from launch.compiled.program import Program
from tests.launch.compiled.programs import compiled
from tests.model import small

SIZES = dict(data=2, fsdp=2, heads=2, context=1)


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


def test_what_a_tpus_fusions_go_on_with_is_counted_once():
    gather = (
        "all-gather(%p), channel_id=7, replica_groups={{0,1},{2,3},{4,5},{6,7}}, dimensions={0}"
    )
    text = f"""
%begin (p: f32[4]) -> f32[8] {{
  %p = f32[4]{{0}} parameter(0)
  ROOT %g = f32[8]{{0}} {gather}
}}
%end (p: f32[4]) -> f32[8] {{
  %p = f32[4]{{0}} parameter(0)
  ROOT %g = f32[8]{{0}} {gather}
}}
%all-reduce-scatter.1 (p: f32[8]) -> f32[4] {{
  %p = f32[8]{{0}} parameter(0)
  %r = f32[8]{{0}} all-reduce(%p), channel_id=8, replica_groups=[4,2]<=[8], to_apply=%add
  ROOT %c = f32[4]{{0}} slice(%r), slice={{[0:4]}}
}}
ENTRY %main (a: f32[4]) -> f32[4] {{
  %a = f32[4]{{0}} parameter(0)
  %x = f32[8]{{0}} fusion(%a), kind=kCustom, calls=%begin
  %y = f32[8]{{0}} fusion(%a), kind=kCustom, calls=%end
  ROOT %z = f32[4]{{0}} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.1
}}
"""
    gathered, scattered = sorted(collectives(Program(text), SIZES), key=lambda c: c.kind)
    assert (gathered.kind, gathered.asynchronous, gathered.wire) == ("all-gather", True, 16)
    assert (scattered.kind, scattered.asynchronous) == ("reduce-scatter", False)
    assert scattered.wire == 16


def test_what_goes_on_in_loops_is_counted_where_it_starts():
    gather = (
        "all-gather(%p), channel_id=7, replica_groups={{0,1},{2,3},{4,5},{6,7}}, dimensions={0}"
    )
    part = f"""(p: f32[4]) -> f32[8] {{
  %p = f32[4]{{0}} parameter(0)
  ROOT %g = f32[8]{{0}} {gather}
}}"""
    trips = 'backend_config={"known_trip_count":{"n":"3"}}'
    text = f"""
%first {part}
%more {part}
%last {part}
%body (t: f32[4]) -> f32[4] {{
  %t = f32[4]{{0}} parameter(0)
  %m = f32[8]{{0}} fusion(%t), kind=kCustom, calls=%more
  ROOT %r = f32[4]{{0}} slice(%m), slice={{[0:4]}}
}}
ENTRY %main (a: f32[4]) -> f32[8] {{
  %a = f32[4]{{0}} parameter(0)
  %async-collective-start.1 = f32[8]{{0}} fusion(%a), kind=kCustom, calls=%first
  %w = f32[4]{{0}} while(%a), condition=%c, body=%body, {trips}
  ROOT %async-collective-done.1 = f32[8]{{0}} fusion(%w), kind=kCustom, calls=%last
}}
"""
    (found,) = collectives(Program(text), SIZES)
    assert (found.kind, found.asynchronous, found.times, found.wire) == ("all-gather", True, 1, 16)
