"""What the environment of a job says of itself on its host: packages, config, devices, store."""

import importlib.metadata
import json
import os
import secrets
import sys
from typing import Any

import jax
from absl import flags
from jax._src import hardware_utils  # as JAX itself finds a TPU; it has no public name
from ml_collections import ConfigDict

from configs import command, resolved
from configs.errors import UserError, disk_reason, first_line
from configs.folders import run_folder
from model.config import ModelConfig
from model.tally import tally

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "ml_collections")
_OF_DEVICES = ("libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin")


def facts(request: dict[str, Any]) -> dict[str, Any]:
    """Returns what is known.

    Args:
      request: ``arguments``: of training, or none; ``workdir``; ``devices``: whether to ask for
        them.
    """
    found: dict[str, Any] = dict(
        python=".".join(map(str, sys.version_info[:3])),
        packages={name: _version(name) for name in (*PACKAGES, *_OF_DEVICES)},
    )
    if request["arguments"]:
        found["config"] = _config(request["arguments"])
    if "://" in request["workdir"]:
        found["store"] = _store(request["workdir"])
    if request["devices"]:
        found["devices"] = _devices()
    return found


def _config(arguments: list[str]) -> dict[str, Any]:
    """Returns the digest of the config that a command line gives here."""
    try:
        command.define_config()
        flags.DEFINE_string("workdir", None, "The run's folder.")
        sys.argv = ["train", *arguments]  # where ml_collections looks for overrides
        flags.FLAGS(sys.argv)
        config = command.config()
        return dict(digest=resolved.digest(config), bytes=_saved_bytes(config))
    except Exception as error:  # a config file may raise anything
        return dict(error=command.flag_mistake(error).rstrip("."))


def _saved_bytes(config: ConfigDict) -> int | None:
    """Returns about how many bytes a saved step has; an open vocabulary counts as GPT-2's."""
    try:
        size = config.model.vocab_size or 50257
        shape = ModelConfig.from_config(config.model, size, config.length)
        optim = config.optim
        counted = tally(shape, config.length, optim.name, optim.ema > 0, optim.master_weights)
    except UserError:  # which training itself says
        return None
    moments = counted.optimizer_bytes
    return counted.parameter_bytes + (2 * counted.parameter_bytes if moments is None else moments)


def _store(workdir: str) -> dict[str, Any]:
    """Tries to write an object beside a run's."""
    try:
        path = run_folder(workdir, "--workdir") / f".doctor-{secrets.token_hex(4)}"
        path.write_text("")
        path.unlink()
    except UserError as error:
        return dict(error=str(error))
    except Exception as error:  # of a store, whatever its client raises
        return dict(error=disk_reason(error))
    return {}


def _devices() -> dict[str, Any]:
    """Returns how many devices this host has, and which.

    A TPU's chips are counted and not opened: on a slice each host would wait for all others.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU's memory is others'
    try:
        chips, version = hardware_utils.num_available_tpu_chips_and_device_id()
        if chips:
            kind = f"TPU {getattr(version, 'name', version)}"
            return dict(count=chips, kind=kind, platform="tpu")
        devices = jax.local_devices()
    except Exception as error:  # of a plugin, whatever it raises
        return dict(error=first_line(error))
    return dict(count=len(devices), kind=devices[0].device_kind, platform=devices[0].platform)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def main() -> None:
    """Answers the request on standard input with one line of JSON, the last on standard output."""
    request = json.load(sys.stdin)
    print(json.dumps(facts(request)), flush=True)
    os._exit(0)  # a device that does not answer keeps no thread waiting


if __name__ == "__main__":
    main()
