"""Looks on all hosts of a run for what keeps it from starting, and names the host and the remedy.

    python -m launch.doctor --hosts=a,b,c --config=configs/toy.py --workdir=/shared/run

It changes nothing. The flags are those of ``launch.ssh``; without a config the config is not
compared. With ``--checkout=FOLDER`` the code is what lies in a folder of the hosts, compared with
this clone. The exit status is 1 where something keeps a run from starting.
"""

from configs import keyboard

if __name__ == "__main__":
    keyboard.end_at_once()  # the imports below take seconds

import dataclasses
import sys
from typing import Any

from absl import flags
from rich import box
from rich.console import Console
from rich.table import Table

from configs import command
from configs.figures import write_json
from launch import job, jobs_on_hosts, supervision
from launch.examination.examine import Examination
from launch.hosts import options
from launch.hosts.call import shown


def _define_flags() -> None:
    job.define_flags()
    supervision.define_flags()
    options.define_machines()
    options.define_flags()
    jobs_on_hosts.define_flags()
    flags.DEFINE_string("checkout", "", "Folder of the code on the hosts, where it is a clone.")
    flags.DEFINE_bool("devices", True, "Ask JAX on each host for its devices.")
    flags.DEFINE_string("json", None, "Also write what was found to this file.")


def main() -> None:
    """Prints what each host has, and what is wrong; exits with 1 where a run cannot start."""
    given = flags.FLAGS
    plan = options.plan(
        options.machines(), given.name, given.coordinator, given.processes, runs=False
    )
    if given.dry_run:
        print("\n".join(shown(host, "probe") for host in plan.hosts))
        print(f"of these, all but {plan.hosts[0].name} then try to reach {plan.coordinator}")
        return
    examination = Examination(plan, given.checkout, given.devices)
    console = Console()
    Console(width=None if console.is_terminal else 140).print(
        _table([host.name for host in plan.hosts], examination.facts)
    )
    for finding in examination.found:
        print(f"{'error' if finding.fatal else 'note'}: {finding.sentence}")
    if not examination.found:
        print("nothing that is wrong was found")
    if given.json:
        found = [dataclasses.asdict(finding) for finding in examination.found]
        write_json(given.json, dict(hosts=examination.facts, found=found))
    sys.exit(1 if examination.fatal else 0)


def _table(names: list[str], facts: dict[str, dict[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE, show_edge=False)
    for column in ("host", "code", "jax", "config", "devices", "disk free", "clock", "job"):
        table.add_column(column, overflow="fold")
    for name in names:
        table.add_row(name, *(_cells(facts[name]) if name in facts else ["?"] * 7))
    return table


def _cells(fact: dict[str, Any]) -> list[str]:
    packages = fact["packages"] or {}
    devices = packages.get("devices") or {}
    code = fact["code"]
    shown = (code.get("revision") or "no git")[:12] if code["there"] else "not there yet"
    return [
        shown + " changed" * bool(code.get("differing")),
        packages.get("packages", {}).get("jax") or "?",
        (packages.get("config") or {}).get("digest", "?"),
        f"{devices['count']} x {devices['kind']}" if "count" in devices else "?",
        f"{fact['disk']['free'] / 1e9:.1f} GB" if "free" in fact["disk"] else "?",
        f"{fact['skew']:+.2f} s",
        fact["job"]["state"] or "none",
    ]


if __name__ == "__main__":
    command.run(main, _define_flags)
