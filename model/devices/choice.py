"""The one place where the kind of device decides how things are computed."""

from model.axes import platform
from model.devices.cpu import CPU
from model.devices.plain import Plain

# By platform; the others are plain.
DEVICES: dict[str, Plain] = {"cpu": CPU()}


def device() -> Plain:
    """Returns how the devices of the mesh that is set compute; without a mesh, jax's own."""
    return DEVICES.get(platform(), _PLAIN)


_PLAIN = Plain()
