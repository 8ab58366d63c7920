"""Devices that are not here: a TPU's topology, or forced host devices in the place of GPUs."""

import math
import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from configs.chips import CHIPS, Chip
from configs.errors import UserError, first_line, nearest
from model.axes import MOST_HOST_DEVICES, split_host

# The compiler begins with these where there is no chip; none is asked for.
_WITHOUT_CHIP = dict(
    TPU_SKIP_MDS_QUERY="1",
    TPU_WORKER_HOSTNAMES="localhost",
    TPU_ACCELERATOR_TYPE="v5p-8",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
)
# A core each is a device of its own unless they work as one.
_TWO_CORES = {"v4": dict(chip_config_name="megacore")}


def devices(text: str) -> tuple[Sequence[jax.Device], Chip | None]:
    """Returns the devices of a topology, and what is published of its chip.

    Args:
      text: "v5p:4x4x8" for a TPU's slice, "2*v5p:4x4x8" for two of them; "h100:8" or "cpu:8" for as
        many forced host devices.

    Raises:
      UserError: there is no such topology, or no compiler for it.
    """
    matched = re.fullmatch(r"(?:([1-9]\d{0,2})\*)?(.*)", text)
    assert matched is not None
    slices, one = int(matched[1] or 1), matched[2]
    name, _, layout = one.partition(":")
    chips = {chip.name: chip for chip in CHIPS}
    if name not in (*chips, "cpu") or not re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,4}){0,2}", layout):
        meant = "" if name in (*chips, "cpu") else nearest(name, (*chips, "cpu"))
        raise UserError(
            f"--topology={text} is no topology{meant}; write one of "
            f"{', '.join(chips)} or cpu with its chips, such as v5p:4x4x8, 2*v5e:16x16 or h100:8."
        )
    jax.config.update("jax_platforms", "cpu")
    if name == "cpu" or not chips[name].is_tpu:
        if slices > 1:
            raise UserError(
                f"--topology={text} has slices, as only TPUs do; name all devices as one, such as "
                f"{name}:8."
            )
        count = math.prod(int(n) for n in layout.split("x"))
        if count > MOST_HOST_DEVICES:
            raise UserError(
                f"--topology={text} has {count:,} devices, and at most {MOST_HOST_DEVICES:,} can "
                "be forced on one host; name fewer."
            )
        split_host(count)
        return jax.devices(), chips.get(name)
    for variable, value in _WITHOUT_CHIP.items():
        os.environ.setdefault(variable, value)
    try:
        several = {} if slices == 1 else dict(num_slices=slices)
        how = _TWO_CORES.get(name, {}) | several
        described = topologies.get_topology_desc(one, "tpu", **how)
    except Exception as error:  # libtpu raises what it likes
        raise UserError(
            f"--topology={text} cannot be described ({first_line(error)}); name another, such as "
            "v5p:4x4x8, or install the TPU's compiler: pip install -e '.[tpu]'."
        ) from error
    return described.devices, chips[name]
