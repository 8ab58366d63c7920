"""A tiny run on a text in which chosen batches have a character that occurs nowhere else."""

import io
import json
import random

import numpy as np
from rich.console import Console

from configs import text
from tests.train.own_losses import POISON
from text.reading import open_sources
from train import events as record
from train.loop import train
from train.metrics import read

LETTERS = "abcdefgh"
FIELDS = {
    "steps": 8,
    "batch_size": 4,
    "length": 8,
    "steps_per_call": 4,
    "loss": "tests.train.own_losses:poisoned",
    "model.embed_dim": 16,
    "model.num_layers": 1,
    "model.num_heads": 2,
    "model.mlp": "none",
    "mesh.fsdp": 1,
    "optim.name": "adamw",
    "optim.schedule": "constant",
    "optim.warmup_steps": 0,
    "checkpoint.every": 2,
    "checkpoint.keep": 10,
    "log.every": 1,
    "log.eval_every": 0,
    "log.eval_batches": 1,
    "log.tensorboard": False,
}


def config(path, changes=None):
    """Returns the config of a run on the text of ``written``."""
    found = text.get_config()
    own = {"data.path": str(path), "data.cache_dir": str(path.parent / "cache")}
    found.update_from_flattened_dict({**FIELDS, **own, **(changes or {})})
    return found


def written(folder, *batches, rows=160):
    """Writes a text of which these batches have the poison to predict; returns its path."""
    draw = random.Random(0)
    path = folder / f"poison_{'_'.join(map(str, batches))}.txt"
    letters = [draw.choice(LETTERS) for _ in range(10 * rows)]
    letters[0], letters[-1] = " ", "\n"  # the first two characters; the poison is the third
    letters[-2] = "!"  # held out, so that all texts have the same characters
    path.write_text("".join(letters))
    source = open_sources(config(path)).train
    for batch in batches:
        start, end = source._range(batch * FIELDS["batch_size"] + 1)
        letters[(start + end) // 2] = "!"
    path.write_text("".join(letters))
    source = open_sources(config(path)).train
    numbers = np.arange(30 * FIELDS["batch_size"])
    poisoned = (source.training(numbers).labels == POISON).any(1).reshape(30, -1).any(1)
    assert np.flatnonzero(poisoned).tolist() == sorted(batches)
    return path


def run(workdir, path, changes=None):
    """Trains; returns the outcome and what the run said."""
    said = io.StringIO()
    outcome = train(config(path, changes), workdir, Console(file=said, width=300))
    return outcome, said.getvalue()


def words(workdir, path, changes=None):
    """Returns the arguments of the same run as a command."""
    own = {"data.path": path, "data.cache_dir": path.parent / "cache"}
    fields = {**FIELDS, **own, **(changes or {})}
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    return ["--config=configs/text.py", *overrides, f"--workdir={workdir}"]


def events(workdir):
    """Returns the lines of events.jsonl."""
    return record.read(workdir)


def leave_out(workdir, *ranges):
    """Has a run that is yet to begin leave out ranges of batches, each by its first and last."""
    workdir.mkdir(exist_ok=True)
    common = dict(step=1, kind="loss", action="rollback", to=0)
    record.write(workdir, [common | dict(batch=last, skipped=[at, last]) for at, last in ranges])


def losses(workdir):
    """Returns the loss and the gradient's norm of each step, from lines that name each once."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert len(set(steps)) == len(steps)
    return {r["step"]: (r["loss"], r["grad_norm"]) for r in read(workdir) if "loss" in r}
