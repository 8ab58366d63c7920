"""kill -9 at random moments, again and again, to a run that is to end as if there had been none.

``python -m tests.train.processes.chaos --processes=2 --times=50`` starts a run, kills one of its
processes (the others end by themselves) or all at a moment that is drawn, many of them while a step
is being saved, starts it again, and so on. At the end every loss, every parameter and all of the
optimizer's state must be those of a run that was never killed, bit for bit.
"""

import argparse
import random
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import jax
import numpy as np

from model import manifest, stored
from model.manifest import MODEL, OPTIMIZER
from model.saved import open_step
from tests.train.processes import running
from train.metrics import read

# Saves take about as long as the steps between them, so that most kills fall into one.
FIELDS = (
    "--config.steps_per_call=1",
    "--config.checkpoint.every=2",
    "--config.checkpoint.keep=2",
    "--config.model.embed_dim=64",
    "--config.data.prefetch=2",
    "--config.optim.schedule=constant",
    "--config.log.eval_batches=1",
)
FOREVER = 1_000_000  # steps


def start(workdir: Path, count: int, steps: int) -> list[subprocess.Popen]:
    """Starts a run to a step, or one that goes on until it is killed."""
    sizes = ("--config.host_devices=1", f"--config.mesh.data={count}", "--config.mesh.fsdp=1")
    words = [*running.TINY, *FIELDS, *sizes, f"--config.steps={steps}", f"--workdir={workdir}"]
    if count > 1:
        return running.start([words] * count)
    return [running.alone(words)]


def kill(workdir: Path, count: int, draw: random.Random, saving: bool) -> str:
    """Starts a session and kills it at some moment; returns a line on what was seen.

    Args:
      workdir: of the run.
      count: processes.
      draw: the moments.
      saving: whether to wait for a save to be on its way.
    """
    before, left = last(workdir), _begun(workdir)
    processes = start(workdir, count, FOREVER)
    if saving:
        moment = "as a save began"
        running.wait_until(
            lambda: _begun(workdir) > last(workdir) > before or _over(processes), 240
        )
    elif draw.random() < 0.15:
        moment = f"{draw.uniform(0, 6):.1f} s after the start"
        time.sleep(float(moment.split()[0]))
    else:
        running.wait_until(lambda: last(workdir) > before or _over(processes), 240)
        wait = draw.uniform(0, 1.5)
        moment = f"{wait:.2f} s after a save"
        time.sleep(wait)
    assert not _over(processes), [process.communicate() for process in processes]
    victims = processes if draw.random() < 0.3 else [draw.choice(processes)]
    for process in victims:
        process.kill()
    # One that waits for the others to come does not know of it; who started them all does.
    patience = threading.Timer(60, lambda: [process.kill() for process in processes])
    patience.start()
    for process in processes:
        process.communicate()
    patience.cancel()
    begun, whole = _begun(workdir), last(workdir)
    said = f"killed {len(victims)} of {count} {moment}, step {whole}"
    is_new = begun != left or whole > before  # else it is of the kill before
    return said + (f", while {begun} was saved" if begun > whole and is_new else "")


def _begun(workdir: Path) -> int:
    """Returns the newest step that was begun to be saved; 0 where there is none."""
    return max(manifest.steps(workdir), default=0)


def _over(processes: list[subprocess.Popen]) -> bool:
    return any(process.poll() is not None for process in processes)


def last(workdir: Path) -> int:
    """Returns the newest whole step; 0 where there is none."""
    return max(manifest.whole_steps(workdir), default=0)


def arrays(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """Returns the arrays of a saved step."""
    saved = open_step(workdir / "checkpoints" / str(step), (MODEL, OPTIMIZER))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    found = {}
    for item, held in saved.manifest.arrays.items():
        wanted = {
            name: jax.ShapeDtypeStruct(about["shape"], about["dtype"], sharding=here)
            for name, about in held.items()
        }
        for name, array in stored.read(saved.path, item, wanted).items():
            found[f"{item}.{name}"] = np.asarray(array)
    return found


def survive(folder: Path, count: int, times: int, seed: int) -> list[str]:
    """Kills a run so many times, lets it end, and compares it with one that was not killed.

    Returns:
      A line on each kill.
    """
    draw, said = random.Random(seed), []
    killed, whole = folder / "killed", folder / "whole"
    for number in range(times):
        said.append(kill(killed, count, draw, saving=number % 3 == 1))
        print(f"{number + 1}/{times}  {said[-1]}", flush=True)
    steps = last(killed) + 3
    for workdir in (killed, whole):
        ended = running.ended(start(workdir, count, steps), 120 + steps)
        assert all(process.status == 0 for process in ended), ended
    losses = [
        [(row["step"], row["loss"]) for row in read(workdir) if "loss" in row]
        for workdir in (killed, whole)
    ]
    assert losses[0] == losses[1]
    assert [step for step, _ in losses[0]] == [*range(1, steps + 1)]
    found, expected = (arrays(workdir, steps) for workdir in (killed, whole))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    left = {entry.name for entry in (killed / "checkpoints").iterdir()}
    assert left == {str(step) for step in manifest.whole_steps(killed)}
    return said


def main() -> None:
    """Kills as often as the flags say."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        said = survive(Path(folder), given.processes, given.times, given.seed)
    saving = sum("was saved" in line for line in said)
    print(f"the same bits after {len(said)} kills, {saving} of them while a step was saved")


if __name__ == "__main__":
    main()
