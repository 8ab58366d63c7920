"""The one place where the kind of device decides how things are computed."""

import jax

from model.axes import platform
from model.devices.cpu import CPU
from model.devices.plain import Plain

# By platform, for programs of one device; all others are plain.
DEVICES: dict[str, Plain] = {"cpu": CPU()}


def device() -> Plain:
    """Returns how the devices of the mesh that is set compute; without a mesh, jax's own."""
    one = jax.sharding.get_abstract_mesh().size <= 1
    return DEVICES.get(platform(), _PLAIN) if one else _PLAIN


_PLAIN = Plain()
