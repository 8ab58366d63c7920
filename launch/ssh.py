"""A run across machines that ssh reaches: they are set up, started at once, followed, stopped.

    python -m launch.ssh --hosts=a,b,c --config=configs/toy.py --workdir=/shared/run
    python -m launch.ssh list --hosts=a,b,c
    python -m launch.ssh logs --hosts=a,b,c --workdir=/shared/run
    python -m launch.ssh stop --hosts=a,b,c --workdir=/shared/run

This code as it is here (git's revision and what was changed since) is copied to each host, an
environment is made there once of ``requirements.lock``, and one process of ``python -m train``
(``--processes``) is started on each. What they say is shown with their names, and kept in files.
When one fails all are ended, and with ``--restarts`` started again. Ctrl-C and SIGTERM stop all
after a step that is saved, a second one at once. When the terminal is closed, or this command is
killed, the run goes on: the same command comes back to it.
"""

from configs import keyboard

if __name__ == "__main__":
    keyboard.end_at_once()  # the imports below take seconds

from absl import flags

from configs import command
from configs.errors import UserError
from launch import job, jobs_on_hosts, supervision
from launch.hosts import options
from launch.hosts.plan import job_name, on_hosts

VERBS = ("run", "list", "logs", "stop")


def _define_flags() -> None:
    job.define_flags()
    supervision.define_flags()
    options.define_machines()
    options.define_flags()
    jobs_on_hosts.define_flags()


def main(verb: str = "run") -> None:
    """Does one of the verbs with the flags.

    Raises:
      UserError: a flag is ill-formed, or a host refuses.
    """
    given = flags.FLAGS
    hosts = options.machines()
    if verb == "list":
        jobs_on_hosts.list_jobs(hosts)
    elif verb == "run":
        plan = options.plan(hosts, given.name, given.coordinator, given.processes)
        jobs_on_hosts.run(plan)
    else:
        if not (given.name or given.workdir):
            raise UserError("--name is missing; launch.ssh list shows the names of jobs.")
        name = job_name(given.name, on_hosts(given.workdir or "", options.root()))
        if verb == "stop":
            jobs_on_hosts.stop(hosts, name)
        else:
            jobs_on_hosts.logs(hosts, name)


if __name__ == "__main__":
    command.run(main, _define_flags, verbs=VERBS, otherwise="run")
