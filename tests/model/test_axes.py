"""Logical axes become partitions; sizes that do not fit stop with a sentence."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from configs.errors import UserError
from model.axes import MESH_AXES, ShardingRules, check_mesh, make_mesh
from tests.model import small


def sizes(**changes):
    return {**dict.fromkeys(MESH_AXES, 1), **changes}


def test_a_mesh_has_explicit_axes_in_order():
    mesh = make_mesh(sizes(fsdp=2, heads=4))
    assert dict(mesh.shape) == dict(data=1, fsdp=2, heads=4, context=1)
    assert mesh.axis_names == MESH_AXES
    assert set(mesh.axis_types) == {AxisType.Explicit}


def test_one_size_takes_the_devices_that_are_left():
    assert make_mesh(sizes(fsdp=-1, heads=2)).shape["fsdp"] == 4
    assert make_mesh(sizes(context=-1)).shape["context"] == 8


def test_a_mesh_may_leave_devices_idle():
    assert make_mesh(sizes(heads=2)).devices.size == 2


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (dict(fsdp=0), "fsdp=0 .*must hold positive sizes"),
        (dict(fsdp=-2), "fsdp=-2 .*must hold positive sizes"),
        (dict(fsdp=-1, heads=-1), "at most one of them -1"),
        (dict(fsdp=-1, heads=3), "heads=3 .*does not divide 8 devices"),
        (
            dict(heads=16),
            "needs 16 devices and there are 8; change a size .*by config.host_devices",
        ),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(changes, sentence):
    with pytest.raises(UserError, match=rf"config.mesh .*{sentence}"):
        make_mesh(sizes(**changes))


def test_two_dimensions_over_one_mesh_axis_are_refused_on_any_mesh():
    with pytest.raises(UserError, match=r"split two dimensions over mesh.fsdp; write None"):
        ShardingRules().spec(("batch", "length", "embed"))


def test_many_processes_need_every_device(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match=r"config.mesh .* uses 4 of 8 devices"):
        make_mesh(sizes(heads=4))


@pytest.mark.parametrize(
    ("mesh", "model", "batch_size", "length", "sentence"),
    [
        (dict(data=2, fsdp=4), {}, 12, 8, "batch_size .*= 12 .*mesh.data x mesh.fsdp = 8"),
        (dict(fsdp=8), {}, 8, 8, "model.embed_dim = 12 .*mesh.fsdp = 8"),
        (dict(heads=8), {}, 8, 8, "model.num_heads = 4 .*mesh.heads = 8"),
        (dict(heads=4), dict(mlp_dim=6), 8, 8, "model.mlp_dim = 6 .*mesh.heads = 4"),
        (dict(heads=3), dict(num_heads=6, mlp_dim=9), 8, 8, "vocabulary = 128 .*mesh.heads = 3"),
        (dict(context=8), {}, 8, 12, "length = 12 .*mesh.context = 8"),
    ],
)
def test_a_model_that_does_not_divide_is_refused(mesh, model, batch_size, length, sentence):
    with pytest.raises(UserError, match=sentence):
        check_mesh(small.mesh(mesh), small.config(**model), batch_size, length)


def test_a_model_that_divides_passes():
    check_mesh(small.mesh(dict(data=2, heads=4)), small.config(), 4, 7)


def test_a_spec_names_the_mesh_axes_of_each_dimension():
    rules = ShardingRules()
    assert rules.spec(("batch", "length", None)) is None
    with jax.set_mesh(small.mesh(dict(data=2, fsdp=2, heads=2))):
        # A mesh axis of one device shards nothing.
        assert rules.spec(("batch", "length", None)) == P(("data", "fsdp"), None, None)
        assert rules.spec(("embed", "heads", "head_dim")) == P(("fsdp",), ("heads",), None)
        # What does not divide is whole.
        assert rules.spec(("batch", "kv_heads"), (6, 1)) == P(None, None)
        assert rules.spec(("batch", "kv_heads"), (8, 2)) == P(("data", "fsdp"), ("heads",))


def test_other_rules_shard_parameters_otherwise():
    rules = ShardingRules(embed=(), mlp=("fsdp", "heads"))
    with jax.set_mesh(small.mesh(dict(fsdp=2, heads=4))):
        assert rules.spec(("embed", "mlp")) == P(None, ("fsdp", "heads"))


SPLITTING = """
import jax
from configs.errors import UserError
from model.axes import make_mesh, platform, split_host

split_host(None)
split_host(3)
mesh = make_mesh(dict(data=3, fsdp=1, heads=1, context=1))
print(len(jax.devices()), mesh.size)
split_host(3)
for count in (0, 100000, 2):
    try:
        split_host(count)
    except UserError as error:
        print(error)
with jax.set_mesh(mesh):
    print(platform())
"""


def test_a_host_is_split_into_devices_before_jax_begins():
    forced = ("XLA_FLAGS", "NPROC", "JAX_NUM_CPU_DEVICES")
    env = {name: value for name, value in os.environ.items() if name not in forced}
    run = subprocess.run(
        [sys.executable, "-c", SPLITTING],
        env=env,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.splitlines() == [
        "3 3",
        "config.host_devices = 0 must be at least 1 and at most 2,048.",
        "config.host_devices = 100000 must be at least 1 and at most 2,048.",
        "config.host_devices = 2 comes too late: jax has begun with 3; "
        "set it in the config of a new process.",
        "cpu",
    ]


def test_slices_that_do_not_divide_data_are_refused(monkeypatch):
    class Device:
        platform, device_kind = "tpu", "TPU v5"

        def __init__(self, slice_index):
            self.slice_index = slice_index

    monkeypatch.setattr(jax, "devices", lambda: [Device(n // 4) for n in range(8)])
    for chosen in (sizes(fsdp=-1), sizes(data=1, heads=8)):
        with pytest.raises(UserError, match=r"needs mesh.data to be a multiple of the 2 slices"):
            make_mesh(chosen)
