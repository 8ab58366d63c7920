"""A job of SLURM that somebody looks at: what its tasks say, and how it ends."""

import sys
import time
from pathlib import Path

from configs.console import tell
from launch.slurm.states import ending, job_state

# Of squeue and sacct: a job that is in none of these has ended.
_GOES_ON = ("PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "COMPLETING", "REQUEUED", "REQUEUE")
_ATTEMPTS = 10  # to have an answer of sacct, which may be late, or away for a while


class Logs:
    """The files that the tasks of a job write to; task 0 speaks for all."""

    def __init__(self, folder: Path, job_id: str) -> None:
        """Args: submitit's folder; the job."""
        self._folder, self._job_id = folder, job_id
        self._read: dict[Path, int] = {}  # bytes

    def show(self, last: bool = False) -> None:
        """Shows the lines that have been added.

        Args:
          last: nothing is added any more: a line without an end is shown too.
        """
        for path in sorted(self._folder.glob(f"{self._job_id}_*_log.*")):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                added = file.read()
            whole = added if last else added[: added.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(whole)
            index = path.name.split("_")[1]
            prefix = f"process {index}: " if index != "0" else ""
            stream = sys.stderr if path.suffix == ".err" else sys.stdout
            for line in whole.decode(errors="replace").splitlines():
                tell(prefix + line, stream)


def follow(job_id: str, folder: Path, poll: float) -> int:
    """Shows what a job says until it has ended; returns its exit status.

    Args:
      job_id: the job.
      folder: submitit's.
      poll: seconds between two questions to SLURM.
    """
    logs, missed = Logs(folder, job_id), 0
    while True:
        asked = time.monotonic()
        if job_state(job_id) not in _GOES_ON:
            state, code = ending(job_id)
            if state and state not in _GOES_ON:
                logs.show(last=True)
                return _say(job_id, state, code)
            missed = missed + 1 if not state else 0
            if missed == _ATTEMPTS:
                logs.show(last=True)
                tell(f"error: SLURM knows no job {job_id} any more; see its logs.", sys.stderr)
                return 1
        while time.monotonic() < asked + poll:
            logs.show()
            time.sleep(min(1.0, poll))


def _say(job_id: str, state: str, code: int) -> int:
    if state != "COMPLETED":
        tell(
            f"error: job {job_id} ended as {state} with exit status {code}; the same command goes "
            "on from what was saved.",
            sys.stderr,
        )
    return code
