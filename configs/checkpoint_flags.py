"""The flags that commands on a checkpoint share: which one, on what devices."""

import re

from absl import flags
from ml_collections import ConfigDict

from configs import base
from configs.errors import UserError
from configs.figures import define_json

# They belong to the command that asks for them, so that its --help lists them.
flags.disclaim_key_flags()


def define() -> None:
    """Defines the flags."""
    flags.DEFINE_string("checkpoint", None, "A run (its newest whole step), a step, or a model.")
    define_json()
    flags.DEFINE_bool("ema", False, "Take the average of the parameters that optim.ema keeps.")
    define_devices("one device")


def define_devices(default: str) -> None:
    """Defines ``--mesh`` and ``--host_devices``.

    Args:
      default: what an empty mesh stands for.
    """
    flags.DEFINE_string("mesh", "", f"Sizes of the mesh, as fsdp=2,heads=4; empty: {default}.")
    flags.DEFINE_integer(
        "host_devices",
        None,
        "Forced host devices of a CPU, for --mesh; by default the run's.",
    )


def checkpoint() -> str:
    """Returns ``--checkpoint``.

    Raises:
      UserError: it is missing.
    """
    if not flags.FLAGS.checkpoint:
        raise UserError("--checkpoint is missing; name a run, a step or a saved model.")
    return flags.FLAGS.checkpoint


def mesh_sizes() -> dict[str, int]:
    """Returns the size of each axis of the mesh of ``--mesh``.

    Raises:
      UserError: it is not sizes of mesh axes.
    """
    sizes = {name: 1 for name, size in base.get_config().mesh.items() if isinstance(size, int)}
    for part in filter(None, flags.FLAGS.mesh.split(",")):
        name, _, size = part.partition("=")
        if name not in sizes or not re.fullmatch("[0-9]{1,9}", size):
            raise UserError(
                f"--mesh={flags.FLAGS.mesh} must be sizes of {', '.join(sizes)}, such as "
                "--mesh=fsdp=2,heads=4."
            )
        sizes[name] = int(size)
    return sizes


def host_devices(config: ConfigDict) -> int | None:
    """Returns how many host devices to force on a CPU; None leaves them as they are.

    Args:
      config: of the run that is looked at.
    """
    if flags.FLAGS.host_devices is None and flags.FLAGS.mesh:
        return config.host_devices
    return flags.FLAGS.host_devices
