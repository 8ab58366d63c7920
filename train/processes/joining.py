"""How a command becomes one process of a run, once and before it touches a device."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet

import jax
from absl import flags

from configs.errors import UserError, first_line
from train.processes.environment import PORT, Place, place
from train.processes.group import Processes, Several

# A cold pod takes many minutes until its last host has installed and started.
TIMEOUT = 1800

flags.disclaim_key_flags()


def define_flags() -> None:
    """Defines ``--coordinator``, ``--num_processes`` and ``--process_id``."""
    flags.DEFINE_string(
        "coordinator", "", f"Of several processes: HOST of process 0, or HOST:PORT; port {PORT}."
    )
    flags.DEFINE_integer(
        "num_processes", None, "How many processes there are; by default SLURM or the TPU says.", 1
    )
    flags.DEFINE_integer("process_id", None, "Which of them this one is, from 0.", 0)


def join(timeout: float = TIMEOUT) -> Processes:
    """Returns the processes of this run; where there are several, JAX has joined them.

    Args:
      timeout: seconds to wait for all of them.

    Raises:
      UserError: the flags or the environment contradict each other, or not all came in time.
    """
    given = flags.FLAGS
    here = place(given.coordinator, given.num_processes, given.process_id)
    if here is None:
        return Processes()
    # In a thread: Ctrl-C is heard only while Python waits.
    with ThreadPoolExecutor(1) as thread:
        _wait(thread.submit(_initialize, here, timeout), here)
    return Several(here)


def check_alone(command: str) -> None:
    """Refuses several processes for a command that is one.

    Raises:
      UserError: SLURM or a TPU slice started several.
    """
    here = place("", None, None)
    if here is not None:
        raise UserError(
            f"{command} is one process, and {here.found} started {here.count}; start it on one "
            "host alone."
        )


def _initialize(here: Place, timeout: float) -> None:
    jax.distributed.initialize(
        here.coordinator,
        here.count,
        here.index,
        here.local_devices,
        cluster_detection_method="deactivate",  # it has been detected
        initialization_timeout=int(timeout),
    )


def _wait(joined: Future[None], here: Place) -> None:
    began = time.monotonic()
    while True:
        try:
            return joined.result(timeout=30)
        except NotYet:
            waited = time.monotonic() - began
            print(
                f"process {here.index} of {here.count} has waited {waited:.0f} s at coordinator "
                f"{here.coordinator} for all to come",
                flush=True,
            )
        except Exception as error:  # jaxlib's, whatever the network causes
            part = (
                "process 0 could not gather all processes at its port"
                if here.index == 0
                else f"process {here.index} of {here.count} could not join at"
            )
            raise UserError(
                f"{part} {here.coordinator} ({first_line(error)}); see that all {here.count} "
                "processes run, that process 0 is on that host, and that its port is free there "
                "and closed by no firewall."
            ) from error
