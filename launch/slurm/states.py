"""What SLURM knows of a job, by ``squeue`` while it is there and by ``sacct`` afterwards."""

import subprocess


def job_state(job_id: str) -> str:
    """Returns the state of a job that is queued or runs, such as RUNNING; empty where none is."""
    words = ["squeue", "--noheader", f"--jobs={job_id}", "--format=%T"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    states = done.stdout.split() if done.returncode == 0 else []
    return states[0] if states else ""


def ending(job_id: str) -> tuple[str, int]:
    """Returns the state and exit status that SLURM's accounts have of a job.

    The state is empty where they have none. 128 + a signal that ended the job is its status.
    """
    words = ["sacct", "--allocations", "--noheader", "--parsable2", "--format=State,ExitCode"]
    try:
        done = subprocess.run(
            [*words, f"--jobs={job_id}"], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return "", 1
    lines = done.stdout.splitlines() if done.returncode == 0 else []
    if not lines or "|" not in lines[-1]:
        return "", 1
    state, _, code = lines[-1].partition("|")
    status, _, number = code.partition(":")
    by_signal = 128 + int(number) if number.isdigit() and int(number) else 0
    name = (state.split() or [""])[0]  # "CANCELLED by 1000"
    found = int(status) if status.isdigit() and int(status) else by_signal
    return name, found if found or name == "COMPLETED" else 1
