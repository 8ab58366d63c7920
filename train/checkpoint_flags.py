"""The flags that commands on a checkpoint share: which one, on what devices."""

import re

from absl import flags
from jax.sharding import Mesh

from configs.errors import UserError
from model.axes import MESH_AXES, make_mesh, split_host
from model.saved import Saved, open_saved

# They belong to the command that asks for them, so that its --help lists them.
flags.disclaim_key_flags()


def define() -> None:
    """Defines the flags."""
    flags.DEFINE_string("checkpoint", None, "A run (its newest whole step), a step, or a model.")
    flags.DEFINE_string("json", None, "Also write the figures to this file.")
    flags.DEFINE_bool("ema", False, "Take the average of the parameters that optim.ema keeps.")
    flags.DEFINE_string("mesh", "", "Sizes of the mesh, as fsdp=2,heads=4; empty: one device.")
    flags.DEFINE_integer(
        "host_devices",
        None,
        "Devices that a CPU is split into for --mesh; by default the run's.",
    )


def open_checkpoint() -> Saved:
    """Opens ``--checkpoint``.

    Raises:
      UserError: it is missing, or nothing whole is there.
    """
    if not flags.FLAGS.checkpoint:
        raise UserError("--checkpoint is missing; name a run, a step or a saved model.")
    return open_saved(flags.FLAGS.checkpoint)


def open_mesh(saved: Saved) -> Mesh:
    """Returns the mesh of ``--mesh``; a CPU is split for it as ``--host_devices`` says, or the run.

    Raises:
      UserError: it is not sizes of mesh axes, or they do not fit the devices.
    """
    given = flags.FLAGS.mesh
    sizes = dict.fromkeys(MESH_AXES, 1)
    for part in filter(None, given.split(",")):
        name, _, size = part.partition("=")
        if name not in sizes or not re.fullmatch("[0-9]{1,9}", size):
            raise UserError(
                f"--mesh={given} must be sizes of {', '.join(MESH_AXES)}, such as "
                "--mesh=fsdp=2,heads=4."
            )
        sizes[name] = int(size)
    devices = flags.FLAGS.host_devices
    if given or devices is not None:
        split_host(saved.config.host_devices if devices is None else devices)
    return make_mesh(sizes, field="--mesh")
