"""How a command becomes one process of a run, once and before it touches a device."""

import threading

import jax
from absl import flags

from configs.errors import UserError, first_line
from train.processes.abort import end, on_abort
from train.processes.environment import PORT, Place, place
from train.processes.gathering import gather
from train.processes.group import Processes, Several
from train.processes.handover import Handover
from train.processes.watch import LOST

# A cold pod takes many minutes until its last host has installed and started.
TIMEOUT = 1800.0
_JOINING = 300  # seconds for JAX' own part, when all are there

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
    flags.DEFINE_integer(
        "coordinator_port", PORT, "The coordinator's port, where --coordinator has none.", 1, 65535
    )


def join(timeout: float = TIMEOUT) -> Processes:
    """Returns the processes of this run; where there are several, JAX has joined them.

    Args:
      timeout: seconds to wait for all of them.

    Raises:
      UserError: the flags or the environment contradict each other, not all came in time, or
        another run has the port.
    """
    given = flags.FLAGS
    port = given.coordinator_port
    here = place(given.coordinator, given.num_processes, given.process_id, port)
    if here is None:
        return Processes()
    with Handover(gather(here, timeout, say=_say)) as handover:
        jax.config.update("jax_enable_preemption_service", False)  # begun by SharedStop
        _initialize(here, handover)
        return Several(here)


def _say(line: str) -> None:
    print(line, flush=True)


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


def _initialize(here: Place, handover: Handover) -> None:
    """Lets JAX join the processes; ends this one where another has ended meanwhile."""
    failed = (
        f"process {here.index} of {here.count} could not join at {here.coordinator} ({{}}); start "
        "all processes again."
    )
    on_abort(lambda: (failed.format("JAX's own message is above"), LOST))
    done: list[Exception | None] = []

    def initialize() -> None:
        try:
            jax.distributed.initialize(
                here.coordinator,
                here.count,
                here.index,
                here.local_devices,
                cluster_detection_method="deactivate",  # it has been detected
                initialization_timeout=_JOINING,
            )
            done.append(None)
        except Exception as error:  # jaxlib's, whatever the network causes
            done.append(error)

    # In a thread: Ctrl-C is heard, and others are looked after, only while Python waits.
    thread = threading.Thread(target=initialize, name="joining", daemon=True)
    thread.start()
    while not done:
        thread.join(timeout=0.5)
        if not done and (sentence := handover.lost()) is not None:
            end(sentence, LOST)
    if done[0] is not None:
        raise UserError(failed.format(first_line(done[0]))) from done[0]
