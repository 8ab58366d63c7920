"""Slices against the tables of the Cloud TPU documentation."""

import pytest

from configs.errors import UserError
from launch.tpu_vm.accelerators import GENERATIONS, accelerator


@pytest.mark.parametrize(
    ("given", "topology", "hosts"),
    [
        # "TPU v2", "TPU v3": 8 cores a host.
        ("v2-8", "", 1),
        ("v2-512", "", 64),
        ("v3-2048", "", 256),
        # "TPU v4": 4 chips, of two cores each, a host.
        ("v4-8", "", 1),
        ("v4-8", "2x2x1", 1),
        ("v4-8", "2x2x2", 2),
        ("v4-32", "2x2x4", 4),
        # "TPU v5p": the column "# of Machines" of its shapes.
        ("v5p-8", "2x2x1", 1),
        ("v5p-8", "2x4x4", 8),
        ("v5p-128", "", 16),
        ("v5p-8", "4x4x8", 32),
        ("v5p-8", "8x8x16", 256),
        ("v5p-12288", "", 1536),
        # "TPU v5e" and "TPU v6e": one virtual machine up to 8 chips, then 4 chips each.
        ("v5litepod-1", "", 1),
        ("v5litepod-8", "", 1),
        ("v5litepod-16", "", 4),
        ("v5litepod-256", "", 64),
        ("v6e-8", "2x4", 1),
        ("v6e-8", "4x4", 4),
        ("v6e-256", "16x16", 64),
    ],
)
def test_hosts_of_a_slice(given, topology, hosts):
    assert accelerator(given, topology).hosts == hosts


@pytest.mark.parametrize(
    ("given", "image"),
    [
        ("v3-32", "tpu-ubuntu2204-base"),
        ("v4-8", "tpu-ubuntu2204-base"),
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-128", "v2-alpha-tpuv5"),
        ("v6e-256", "v2-alpha-tpuv6e"),
    ],
)
def test_the_image_suits_the_generation(given, image):
    assert accelerator(given).generation.image == image


def test_a_topology_takes_the_place_of_the_size():
    assert accelerator("v4-8", "2x2x4").name == "v4-32"
    assert accelerator("v4-8", "2x2x4").words() == ["--type=v4", "--topology=2x2x4"]
    assert accelerator("v6e-1", "4x4").words() == ["--accelerator-type=v6e-16"]
    assert accelerator("v5p-16").words() == ["--accelerator-type=v5p-16"]


@pytest.mark.parametrize(
    ("given", "topology", "slices", "said"),
    [
        ("", "", 1, "--type is missing"),
        ("v5lite-8", "", 1, "did you mean 'v5litepod'"),
        ("v5e", "", 1, "is no TPU type"),
        ("tpu7x-8", "", 1, "through Kubernetes alone"),
        ("v4", "", 1, "such as v4-8"),
        ("v4-0", "", 1, "such as v4-8"),
        ("v4-8 --spot", "", 1, "needs a size"),
        ("v4-8\n", "", 1, "needs a size"),
        ("v4-12", "", 1, "is no slice that there is; a v4 comes with 8, 16, 32 or 64 cores"),
        ("v4-8320", "", 1, "up to 8192"),
        ("v5litepod-12", "", 1, "1, 4, 8, 16, 32, 64, 128 or 256 chips"),
        ("v2-64", "", 1, "8, 32, 128, 256 or 512 cores"),
        ("v4-8", "8", 1, "2x2x4"),
        ("v4-8", "2x2x3", 1, "is none of a v4"),
        ("v4-8", "8x4x4", 1, "in rising order"),
        ("v6e-8", "2x8", 1, "they are 1x1, 2x2"),
        ("v3-8", "2x2", 1, "which comes by its size"),
        ("v3-32", "", 2, "whose slices no network joins"),
    ],
)
def test_slices_that_there_are_not(given, topology, slices, said):
    with pytest.raises(UserError, match=said):
        accelerator(given, topology, slices)


def test_each_generation_has_its_smallest():
    for kind in GENERATIONS.values():
        assert accelerator(f"{kind.name}-8").hosts == 1
