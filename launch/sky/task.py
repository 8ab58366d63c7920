"""A task of SkyPilot: the same job in SkyPilot's words, which hold no value of the environment.

The scripts are constants. What a user has typed reaches them as a variable, which SkyPilot quotes.

Source: https://docs.skypilot.co/en/latest/reference/yaml-spec.html
"""

import re

import yaml

from configs.errors import UserError
from launch import elsewhere
from launch.job import Job
from launch.sky import node
from launch.tpu_vm.accelerators import GENERATIONS
from launch.tpu_vm.accelerators import accelerator as slice_of

INSTALLED = "MANYHEADS_INSTALL"
# An image's own Python may be older than 3.11; Ubuntu 22.04 has 3.11 beside it.
SETUP = """\
set -e
for python in python3 python3.13 python3.12 python3.11 ""; do
  test -n "$python" || break
  "$python" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
done
if test -z "$python"; then
  sudo apt-get update -q
  sudo apt-get install -q -y python3.11 python3.11-venv
  python=python3.11
fi
test -x .venv/bin/python || "$python" -m venv .venv
.venv/bin/python -m pip install -q -c requirements.lock -e ".[$MANYHEADS_INSTALL]"
"""
RUN = "exec .venv/bin/python -m launch.sky.node\n"

_GPU = re.compile(r"[A-Za-z][A-Za-z0-9._-]*(:[1-9]\d{0,2})?")
_TPU = re.compile(r"tpu-(v\d[a-z]*)-([1-9]\d{0,4})")
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
_INFRA = re.compile(r"[A-Za-z0-9*][A-Za-z0-9*_./-]*")


def is_tpu(accelerator: str) -> bool:
    """Tells whether an accelerator is a TPU's slice."""
    return accelerator.startswith("tpu-")


def check(job: Job, name: str, infra: str) -> None:
    """Checks what SkyPilot is told.

    Raises:
      UserError: a flag is ill-formed.
    """
    accelerator = job.resources.accelerator
    if not (_TPU if is_tpu(accelerator) else _GPU).fullmatch(accelerator):
        raise UserError(
            f"--accelerator={accelerator!r} is none; write a TPU such as tpu-v5litepod-8, or a GPU "
            "and how many such as A100:8."
        )
    if is_tpu(accelerator) and accelerator.split("-")[1] in GENERATIONS:
        slice_of(accelerator.removeprefix("tpu-"))
    if is_tpu(accelerator) and job.resources.hosts > 1:
        raise UserError(
            f"--nodes={job.resources.hosts} would be as many runs, for SkyPilot does not join "
            "slices; take a larger --accelerator, or launch.tpu_vm or launch.gke for several."
        )
    if not _NAME.fullmatch(name):
        raise UserError(
            f"--name={name!r} is no name; take at most 40 lower-case letters, digits and hyphens, "
            "a letter first and no hyphen last."
        )
    if infra and not _INFRA.fullmatch(infra):
        raise UserError(f"--infra={infra!r} is none; write one such as gcp or gcp/us-west4.")
    for variable in job.environment:
        if variable.startswith(("SKYPILOT_", "MANYHEADS_")):
            raise UserError(
                f"--env={variable} is a variable that the task sets itself; leave it out."
            )


def task(job: Job, name: str, infra: str = "", managed: bool = False) -> dict[str, object]:
    """Returns the task.

    Args:
      job: what is run, as ``elsewhere.moved`` returns it.
      name: of the task.
      infra: cloud, or cloud/region/zone; empty: whichever is cheapest.
      managed: whether SkyPilot is to start it again on another machine.

    Raises:
      UserError: a flag is ill-formed.
    """
    check(job, name, infra)
    accelerator, tpu = job.resources.accelerator, is_tpu(job.resources.accelerator)
    resources: dict[str, object] = dict(
        accelerators=accelerator if ":" in accelerator else f"{accelerator}:1",
        use_spot=job.resources.spot,
    )
    matched = _TPU.fullmatch(accelerator)
    if matched and matched[1] in GENERATIONS:
        resources["accelerator_args"] = dict(runtime_version=GENERATIONS[matched[1]].image)
    if infra:
        resources["infra"] = infra
    if managed:
        # 143: asked to end, and saved. Another failure would be repeated.
        resources["job_recovery"] = dict(max_restarts_on_errors=0, recover_on_exit_codes=[143])
    described = node.description(job.arguments(), node.SLICE if tpu else node.NODES)
    found: dict[str, object] = dict(
        name=name,
        workdir=".",
        num_nodes=job.resources.hosts,
        resources=resources,
        envs={
            node.VARIABLE: described,
            INSTALLED: ",".join(elsewhere.extras(job, "tpu" if tpu else "cuda")),
        },
    )
    if job.environment:
        found["secrets"] = dict.fromkeys(sorted(job.environment))  # their values come by --secret
    return found | dict(setup=SETUP, run=RUN)


def text(rendered: dict[str, object]) -> str:
    """Returns a task as YAML."""
    return yaml.dump(rendered, Dumper=_Dumper, sort_keys=False, width=100)


class _Dumper(yaml.SafeDumper):
    """Writes scripts as they are."""


def _lines(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _lines)
