"""Signals at random moments, again and again, to a run that is to end as if there had been none.

``python -m tests.train.processes.stress --processes=2 --times=100`` starts a run of several
processes, sends SIGTERM to one of them at a moment that is drawn from the whole of a session
(start, compilation, steps, evaluations, saves, end), starts it again, and so on. Each time all
processes must end in time, and with one whole step more, or none where none was taken; at the end
every loss must be that of a run that was never stopped, bit for bit.
"""

import argparse
import random
import signal
import tempfile
import time
from pathlib import Path

from model import manifest
from tests.train.processes import running
from train.metrics import read

NOTHING = "with nothing new to save; run again."
GRACE = 30.0  # seconds, as Google Cloud gives a preempted machine

# The steps take about as long as evaluations and saves, so that signals fall on each.
FIELDS = (
    "--config.steps_per_call=1",
    "--config.log.eval_every=3",
    "--config.log.eval_batches=2",
    "--config.checkpoint.every=2",
    "--config.checkpoint.keep=3",
)


def arguments(workdir: Path, count: int, steps: int) -> list[str]:
    """Returns the flags of each process."""
    sizes = (f"--config.mesh.data={count}", f"--config.steps={steps}")
    return [*running.TINY, *FIELDS, f"--workdir={workdir}", *sizes]


def losses(workdir: Path) -> dict[int, float]:
    """Returns the loss of each step."""
    return {row["step"]: row["loss"] for row in read(workdir) if "loss" in row}


def interrupt(workdir: Path, count: int, steps: int, draw: random.Random, session: float) -> str:
    """Starts a session, sends a signal to one of its processes, and checks how all end.

    Args:
      workdir: of the run.
      count: processes.
      steps: of the run.
      draw: says when, and to which.
      session: seconds, the latest moment for the signal.

    Returns:
      A line on what was seen.
    """
    before = manifest.whole_steps(workdir)
    processes = running.start([arguments(workdir, count, steps)] * count)
    # Before JAX has joined the processes a signal ends one of them as it ends any program; the
    # others then say so, with another status.
    running.wait_until(lambda: processes[0].poll() is not None or _joined(processes), 60)
    moment, target = draw.uniform(0, session), draw.randrange(count)
    time.sleep(moment)
    processes[target].send_signal(signal.SIGTERM)
    sent = time.monotonic()
    found = running.ended(processes, GRACE + 60)
    took = time.monotonic() - sent
    codes = {process.status for process in found}
    after = manifest.whole_steps(workdir)
    last = after[-1] if after else 0
    line = f"{moment:5.1f} s: to {target}, ended in {took:4.1f} s with {codes}, step {last}"
    assert len(codes) == 1, [line, found]
    assert codes <= {143, 0}, [line, found]
    assert took < GRACE, [line, found]
    assert not manifest.damaged_steps(workdir), line
    if NOTHING in found[target].err:
        assert after == before, [line, found]
        assert all(NOTHING in process.err for process in found), [line, found]
        return f"{line}, before the first one"
    assert last >= (before[-1] if before else 1), [line, found]
    if codes == {143}:
        assert f"saved at step {last}" in found[0].out, [line, found]
    return line


def _joined(processes: list) -> bool:
    """Tells whether all have taken SIGTERM, as they do once JAX has joined them."""
    masks = [Path(f"/proc/{process.pid}/status").read_text() for process in processes]
    caught = [int(text.split("SigCgt:")[1].split()[0], 16) for text in masks]
    return all(mask >> (signal.SIGTERM - 1) & 1 for mask in caught)


def main() -> None:
    """Runs the sessions, then compares with a run that was never stopped."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--session", type=float, default=24.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        stopped, whole = Path(folder) / "stopped", Path(folder) / "whole"
        for number in range(given.times):
            line = interrupt(stopped, given.processes, given.steps, draw, given.session)
            print(f"{number + 1}/{given.times}  {line}", flush=True)
        found = losses(stopped)
        processes = running.start(
            [arguments(whole, given.processes, given.steps)] * given.processes
        )
        running.wait_until(lambda: len(losses(whole)) >= len(found), 600 + 2 * len(found))
        processes[-1].send_signal(signal.SIGTERM)
        running.ended(processes, GRACE)
        expected = losses(whole)
    assert list(found) == list(range(1, len(found) + 1)), "a step is missing or twice"
    unequal = [step for step in found if found[step] != expected[step]]
    assert not unequal, f"the losses of steps {unequal[:5]} differ"
    print(f"{len(found)} losses are those of a run that was never stopped, bit for bit")


if __name__ == "__main__":
    main()
