"""The flags that say on which hosts a job runs, and what it finds there."""

import configparser
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from configs.errors import UserError, nearest
from launch import job, supervision
from launch.elsewhere import extras
from launch.hosts import snapshot
from launch.hosts.host import Host, ssh_hosts
from launch.hosts.plan import ROOT, Plan, job_name, on_hosts
from train.processes.environment import PORT

flags.disclaim_key_flags()


def define_machines() -> None:
    """Defines the flags that name machines which ssh reaches, and a job on them."""
    flags.DEFINE_list("hosts", [], "The machines, as ssh takes them: HOST, USER@HOST, HOST:PORT.")
    flags.DEFINE_string("ssh_config", "", "A config file for ssh, in place of the user's.")
    flags.DEFINE_integer("processes", 1, "Processes on each host.", 1)
    flags.DEFINE_string("name", "", "Name of the job on the hosts; by default of the workdir.")
    flags.DEFINE_string("coordinator", "", "Address of the first host as the others reach it.")


def define_flags() -> None:
    """Defines the flags that say what a job finds on its hosts."""
    flags.DEFINE_integer("coordinator_port", PORT, "The coordinator's port.", 1, 65535)
    flags.DEFINE_string("interpreter", "", "A python on the hosts that has all packages already.")
    flags.DEFINE_string("python", "", "The python on the hosts of which environments are made.")
    flags.DEFINE_list("extras", ["auto"], "setup.cfg's, such as cuda,gs; auto: of the devices.")
    flags.DEFINE_string("root", ROOT, "Folder on the hosts for code, environments and jobs.")


def machines() -> list[Host]:
    """Returns the machines of ``--hosts``.

    Raises:
      UserError: there are none, or one is ill-formed.
    """
    given = flags.FLAGS
    if not given.hosts:
        raise UserError("--hosts is missing; name machines that ssh reaches, as in --hosts=a,b,c.")
    return ssh_hosts(given.hosts, given.ssh_config)


def plan(
    hosts: Sequence[Host],
    name: str = "",
    coordinator: str = "",
    processes: int = 1,
    runs: bool = True,
) -> Plan:
    """Returns what is to run on hosts, as the flags describe it.

    Args:
      hosts: the machines.
      name: of the job there; that of its workdir where empty.
      coordinator: address of the first host, where it is not the one by which it is known.
      processes: on each host.
      runs: whether it is to be run, and so needs a config and a workdir.

    Raises:
      UserError: a flag is ill-formed or missing, or what it names does not come to the hosts.
    """
    given = flags.FLAGS
    taken = snapshot.take()
    here = Path.cwd().resolve()
    if not here.is_relative_to(taken.root.resolve()):
        raise UserError(
            f"this is run in {here}, and the hosts get {taken.root}; run it there, or below."
        )
    within = here.relative_to(taken.root.resolve()).as_posix()
    resources = job.Resources(hosts=len(hosts), processes=processes)
    if not runs and flags.FLAGS["config"].using_default_value:
        described = job.Job("", given.workdir or "", resources=resources)
    else:
        described = job.of_flags(resources)
        file, colon, argument = described.config.partition(":")
        inside = os.path.relpath(taken.inside(file, "--config"), within)
        described = dataclasses.replace(described, config=f"{inside}{colon}{argument}")
    if runs and not described.workdir:
        raise UserError("--workdir is missing; name the run's folder, one that all hosts share.")
    _check_extras(taken)
    described = dataclasses.replace(described, workdir=on_hosts(described.workdir, root()))
    return Plan(
        described,
        job_name(name, described.workdir),
        tuple(hosts),
        taken,
        within=within,
        root=root(),
        coordinator=coordinator_at(coordinator or hosts[0].address),
        interpreter=given.interpreter,
        python=given.python,
        extras=tuple(extras(described, *(name for name in given.extras if name != "auto"))),
        auto="auto" in given.extras,
        stall=supervision.stall(),
    )


def root() -> str:
    """Returns ``--root``; a relative one lies in the home of each host."""
    given: str = flags.FLAGS.root
    return given if given.startswith(("/", "~")) else f"~/{given}"


def _check_extras(taken: snapshot.Snapshot) -> None:
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(taken.root / "setup.cfg", encoding="utf-8")
    known = settings["options.extras_require"]
    for extra in flags.FLAGS.extras:
        if extra != "auto" and extra not in known:
            raise UserError(
                f"--extras={extra} is none of setup.cfg's{nearest(extra, known)}; see its "
                "extras_require."
            )


def coordinator_at(address: str) -> str:
    """Returns the coordinator's address with its port."""
    host = f"[{address}]" if ":" in address and not address.startswith("[") else address
    return f"{host}:{flags.FLAGS.coordinator_port}"
