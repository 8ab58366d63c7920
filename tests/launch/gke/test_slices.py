"""Slices of GKE, by the table of its page "Plan TPUs in GKE"."""

import pytest

from configs.errors import UserError
from launch.gke.slices import tpu_slice


@pytest.mark.parametrize(
    ("accelerator", "topology", "chips", "expected"),
    [
        # ct5lp-hightpu-1t, -4t and -8t of one host; ct5lp-hightpu-4t of several.
        ("tpu-v5-lite-podslice", "1x1", 0, (1, 1)),
        ("tpu-v5-lite-podslice", "2x2", 0, (1, 4)),
        ("tpu-v5-lite-podslice", "2x4", 0, (1, 8)),
        ("tpu-v5-lite-podslice", "2x4", 4, (2, 4)),
        ("tpu-v5-lite-podslice", "4x8", 0, (8, 4)),
        ("tpu-v5-lite-podslice", "16x16", 4, (64, 4)),
        ("tpu-v6e-slice", "4x4", 0, (4, 4)),
        ("tpu-v4-podslice", "2x2x1", 0, (1, 4)),
        ("tpu-v4-podslice", "2x2x4", 0, (4, 4)),
        ("tpu-v5p-slice", "4x4x8", 0, (32, 4)),
        ("tpu7x", "4x4x4", 0, (16, 4)),
    ],
)
def test_hosts_and_chips(accelerator, topology, chips, expected):
    found = tpu_slice(accelerator, topology, chips)
    assert (found.hosts, found.chips) == expected


@pytest.mark.parametrize(
    ("accelerator", "topology", "chips", "said"),
    [
        ("tpu-v5e-slice", "2x4", 0, "--accelerator='tpu-v5e-slice' is no TPU of GKE"),
        ("tpu-v6e-slice", "", 0, "--topology="),
        ("tpu-v6e-slice", "4x2", 0, "--topology="),
        ("tpu-v6e-slice", "2x2x1", 0, "--topology="),
        ("tpu-v6e-slice", "2x4\n", 0, "--topology="),
        ("tpu-v6e-slice", "4x4", 8, "--chips_per_host=8"),
        ("tpu-v5p-slice", "4x4", 0, "--topology="),
        ("tpu-v5p-slice", "4x2x2", 0, "--topology="),
        ("tpu-v5p-slice", "2x2x6", 0, "--topology="),
        ("tpu-v5p-slice", "0x4x4", 0, "--topology="),
        ("tpu-v5p-slice", "2x2x2", 8, "--chips_per_host=8"),
    ],
)
def test_what_gke_does_not_have_is_refused(accelerator, topology, chips, said):
    with pytest.raises(UserError, match=said):
        tpu_slice(accelerator, topology, chips)
