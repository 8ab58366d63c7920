"""Where this process stands among those of its run: given by flags, by SLURM or by a TPU slice."""

import dataclasses
import os
import re
import socket
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from configs.errors import UserError, first_line

# The port that Google Cloud opens between the hosts of a slice for JAX' coordinator.
PORT = 8476
RETRY = 1.0  # seconds until a machine's metadata are asked again

# libtpu waits for the slices that these name, whether they are still there or not.
MEGASCALE = ("MEGASCALE_COORDINATOR_ADDRESS", "MEGASCALE_NUM_SLICES", "MEGASCALE_SLICE_ID")
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")


@dataclasses.dataclass(frozen=True)
class Place:
    """A process among those of its run."""

    coordinator: str  # host:port of process 0
    count: int
    index: int
    local_devices: list[int] | None = None  # those it may use; None: all of its host
    found: str = "the flags"  # what said so


def place(coordinator: str, count: int | None, index: int | None, port: int = PORT) -> Place | None:
    """Returns where this process stands; None where it is alone.

    Args:
      coordinator: of ``--coordinator``: HOST or HOST:PORT; empty where it was not given.
      count: of ``--num_processes``; 1 is alone, whatever the machine says.
      index: of ``--process_id``.
      port: of the coordinator, where none is given with its host.

    Raises:
      UserError: the flags, or variables of an earlier job, contradict each other.
    """
    if coordinator or count is not None or index is not None:
        found = _given(coordinator, count, index, port)
    else:
        found = _slurm(os.environ, port) or _tpu(os.environ, port)
    _check_stale(os.environ, found)
    return found


def _given(coordinator: str, count: int | None, index: int | None, port: int) -> Place | None:
    if count == 1 and not coordinator and index in (None, 0):
        return None
    if not coordinator or count is None or index is None:
        raise UserError(
            "--coordinator, --num_processes and --process_id go together; give all three to each "
            "process, such as --coordinator=10.0.0.1 --num_processes=2 --process_id=0."
        )
    if not 0 <= index < count:
        raise UserError(
            f"--process_id={index} must be at least 0 and below --num_processes={count}; number "
            "the processes from 0."
        )
    matched = re.fullmatch(r"(\[[^\]]+\]|[^:\s]+)(?::([0-9]{1,5}))?", coordinator)
    if not matched or not 0 < int(matched[2] or port) < 2**16:
        raise UserError(
            f"--coordinator={coordinator} must be the host of process 0, or HOST:PORT; leave the "
            f"port out for {port}."
        )
    return Place(f"{matched[1]}:{matched[2] or port}", count, index)


def _slurm(variables: Mapping[str, str], port: int) -> Place | None:
    """Returns what srun says: each of its tasks is a process; alone outside of srun."""
    if any(name not in variables for name in _SLURM):
        return None
    # In a batch script, outside of srun, the step has one task and the job may have more.
    tasks = "SLURM_STEP_NUM_TASKS" if variables.get("SLURM_STEP_NUM_TASKS") else "SLURM_NTASKS"
    count = _number(tasks, variables[tasks])
    if count == 1:
        return None
    nodes = variables["SLURM_STEP_NODELIST"]
    first = re.match(r"([^,\[]+)(?:\[([0-9]+))?", nodes)
    if first is None:
        raise UserError(f"SLURM_STEP_NODELIST={nodes} names no host; start the run by srun.")
    host = first[1] + (first[2] or "")
    a_node = variables.get("SLURM_STEP_TASKS_PER_NODE", variables.get("SLURM_NTASKS_PER_NODE", "1"))
    alone = re.fullmatch(r"1(\(x[0-9]+\))?", a_node)  # then all GPUs of the node are its own
    # SLURM may also show each task its own GPU alone.
    shown = [variables.get(name, "") for name in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")]
    one = any(ids and "," not in ids for ids in shown)
    devices = None if alone or one else [_number("SLURM_LOCALID", variables["SLURM_LOCALID"])]
    index = _number("SLURM_PROCID", variables["SLURM_PROCID"])
    return Place(f"{host}:{port}", count, index, devices, "SLURM")


def _tpu(variables: Mapping[str, str], port: int) -> Place | None:
    """Returns what a TPU's host knows of its slice, or slices; alone where it is the only host."""
    if variables.get("JAX_PLATFORMS", "tpu").split(",")[0] not in ("tpu", ""):
        return None
    named = variables.get("TPU_PROCESS_ADDRESSES") or variables.get("TPU_WORKER_HOSTNAMES")
    if named is not None and "TPU_WORKER_ID" in variables:  # GKE
        workers = named.split(",")
        worker = _number("TPU_WORKER_ID", variables["TPU_WORKER_ID"])
        if len(workers) > 1 and not _has_tpu():
            raise UserError(
                f"TPU_WORKER_HOSTNAMES or TPU_PROCESS_ADDRESSES names {len(workers)} hosts of a "
                "TPU slice, and this machine has no TPU; unset both, or give --num_processes."
            )
    elif _has_tpu():
        endpoints = _metadata("worker-network-endpoints")
        if not endpoints:
            return None
        # Either names, or triples name:id:address.
        workers = [endpoint.split(":")[-1] for endpoint in endpoints.split(",")]
        number = _metadata("agent-worker-number")
        worker = _number("agent-worker-number", number or "0")
        if len(workers) > 1 and not number:
            raise UserError(
                f"this machine is one of {len(workers)} of a TPU slice, and its metadata do not "
                "say which; give --coordinator, --num_processes and --process_id."
            )
    else:
        return None
    slices = _number("MEGASCALE_NUM_SLICES", variables.get("MEGASCALE_NUM_SLICES") or "1")
    first = variables.get("MEGASCALE_COORDINATOR_ADDRESS", "") if slices > 1 else ""
    host = (first or workers[0]).split(":")[0]
    if len(workers) * slices == 1:
        return None
    of_slice = _number("MEGASCALE_SLICE_ID", variables.get("MEGASCALE_SLICE_ID") or "0")
    if worker >= len(workers) or of_slice >= slices:
        raise UserError(
            f"this machine is worker {worker} of {len(workers)} in slice {of_slice} of {slices}, "
            "which count from 0; set TPU_WORKER_ID and MEGASCALE_SLICE_ID, or unset them."
        )
    index = worker + of_slice * len(workers)
    return Place(f"{host}:{port}", len(workers) * slices, index, None, "the TPU slice")


def _number(name: str, text: str) -> int:
    """Reads a number from 0.

    Raises:
      UserError: it is none.
    """
    if not re.fullmatch("[0-9]{1,6}", text):
        raise UserError(f"{name}={text} is no number from 0; set it, or run: unset {name}")
    return int(text)


def _has_tpu() -> bool:
    return any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*"))


def _metadata(key: str) -> str:
    """Returns an attribute of this Google Cloud machine; empty where it has none, or is none.

    Raises:
      UserError: it does not answer, and may be one of several hosts.
    """
    host = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    request = urllib.request.Request(
        f"http://{host}/computeMetadata/v1/instance/attributes/{key}",
        headers={"Metadata-Flavor": "Google"},
    )
    for left in (2, 1, 0):
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.read().decode()
        except OSError as error:
            unknown = isinstance(getattr(error, "reason", None), socket.gaierror)
            if unknown or getattr(error, "code", None) == 404:
                return ""
            if not left:
                raise UserError(
                    f"{host} does not say whether this is one of several hosts of a TPU slice "
                    f"({first_line(error)}); give --num_processes=1 where it is alone, else "
                    "--coordinator, --num_processes and --process_id."
                ) from error
            time.sleep(RETRY)
    raise AssertionError


def _check_stale(variables: Mapping[str, str], found: Place | None) -> None:
    """Refuses variables of another job, which would make this one wait for machines that are gone.

    Raises:
      UserError: there are such; the sentence names them.
    """
    count = variables.get("MEGASCALE_NUM_SLICES") or "1"
    several = _number("MEGASCALE_NUM_SLICES", count) > 1
    wanted = several and found is not None and found.found == "the TPU slice"
    stale = [name for name in variables if name.startswith("MEGASCALE_") and not wanted]
    if wanted and (missing := [name for name in MEGASCALE if not variables.get(name)]):
        raise UserError(
            f"MEGASCALE_NUM_SLICES = {variables['MEGASCALE_NUM_SLICES']} says that there are "
            f"several slices, and {missing[0]} is not set; set it, or unset all MEGASCALE_*."
        )
    address = variables.get("JAX_COORDINATOR_ADDRESS")
    if address and (found is None or address != found.coordinator):
        stale.append("JAX_COORDINATOR_ADDRESS")
    if stale:
        listed = ", ".join(f"{name}={variables[name]}" for name in sorted(stale))
        run = "alone" if found is None else f"one of {found.count} by {found.found}"
        raise UserError(
            f"{listed} does not belong to this process, which is {run}, and may be left from "
            f"another job; run: unset {' '.join(sorted(stale))}"
        )
