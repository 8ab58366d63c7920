"""Folders of runs as training leaves them, made by hand, in every state that a run can have."""

import datetime
import json
import os
import subprocess
import sys
import time

from model import manifest
from model.manifest import STATE, STEPS, File, Manifest
from train.processes.whereabouts import here

ELSEWHERE = dict(host="hostb", pid=77, boot="another", pid_space="pid:[1]", started=5)
STEP_TOKENS = 64


def iso(ago=0.0):
    """Returns the time so many seconds ago."""
    then = datetime.datetime.fromtimestamp(time.time() - ago, datetime.UTC)
    return then.isoformat(timespec="milliseconds")


def dead():
    """Returns where a process was that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        return here() | dict(pid=process.pid, started=1)


def session(ago=1.0, processes=None, **more):
    """Returns what alive.json holds of a run of this process, or of others."""
    processes = [here() | dict(seconds=0.4)] if processes is None else processes
    numbered = [dict(index=i) | process for i, process in enumerate(processes)]
    held = dict(state="running", doing="training", step=400, steps=1000, still=0.5)
    held |= dict(session="a1", began=iso(600), written=iso(ago), beat=60, every=10.0)
    return held | dict(processes=numbered, earlier=[]) | more


def rows(last=400, count=120, rate=2000.0, hosts=()):
    """Returns rows of training, one a step, of losses 1 / step; each tenth step is evaluated."""
    found = []
    for step in range(max(1, last - count + 1), last + 1):
        figures = {f"host_seconds/{i}": seconds for i, seconds in enumerate(hosts)}
        found.append(dict(step=step, loss=1 / step, tokens_per_second=rate, **figures))
        if step % 10 == 0:
            found.append({"step": step, "eval/loss": 2 / step})
    return found


def build(folder, alive=None, metrics=(), saved=(), holder=None, config=True, **files):
    """Makes a run's folder.

    Args:
      folder: to make.
      alive: what alive.json holds; None: there is none.
      metrics: rows.
      saved: (step, seconds ago) of whole steps.
      holder: what running.json holds.
      config: whether there is one.
      files: further text by name, with _ for a dot.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if config:
        held = dict(steps=1000, batch_size=8, length=8)
        (folder / "config.json").write_text(json.dumps(held))
    if alive is not None:
        (folder / "alive.json").write_text(json.dumps(alive))
    if holder is not None:
        (folder / "running.json").write_text(json.dumps(holder))
    if metrics:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    for step, ago in saved:
        save(folder, step, ago)
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return folder


def save(folder, step, ago):
    """Makes a whole step."""
    path = folder / STEPS / str(step)
    path.mkdir(parents=True)
    (path / STATE).write_text("{}\n")
    files = {STATE: File(os.path.getsize(path / STATE), None)}
    manifest.write(path, Manifest(manifest.FORMAT, step, files, {}, dict(time=iso(ago))))
