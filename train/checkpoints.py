"""When a run saves, what it keeps, and from where it goes on."""

import contextlib
import errno
import functools
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from configs import resolved
from configs.errors import UserError, disk_reason
from configs.files import make_folder, names, read_text, write_text
from configs.folders import Folder, as_folder, in_store
from configs.safe import is_safe
from model import manifest
from model.manifest import (
    CONFIG,
    EMA,
    MODEL,
    OPTIMIZER,
    RECENT,
    STATE,
    STEPS,
    TOKENIZER,
    Manifest,
)
from model.parameter import named_arrays, with_arrays
from model.saved import Damaged, Saved, open_step
from model.saving import delete, save
from text.tokenizers import Tokenizer
from train import events, heartbeat, run_file
from train.calls import due
from train.holding import Holding
from train.metrics import read
from train.opening import ITEMS, first_whole
from train.processes.group import Processes
from train.provenance import provenance
from train.retention import sweep_up, thin
from train.skipped import Skipped
from train.step import TrainState

ATTEMPTS = 3  # saves that may fail in a row, where the next one may succeed
MASTER = "master"  # beside the optimizer's own arrays


class Checkpoints:
    """The saved steps of one run.

    Attributes:
      say: shows a line, such as which step was passed over, as it does not hold what was written.
      begun_from: what ``checkpoint.restore_from`` stood for when the run began (train/source.py).
      missed: the step that could not be saved, where another try may succeed; else None.
      skipped: batches that the run leaves out; saved with each step, and restored from it.
    """

    def __init__(
        self,
        workdir: Folder,
        config: ConfigDict,
        tokenizer: Tokenizer | None,
        corpus: str | None = None,
        processes: Processes | None = None,
        holding: Holding | None = None,
        say: Callable[[str], None] = print,
    ):
        """Args: the run's folder, its config, its tokenizer, the digest of its text, who runs it.

        ``holding`` makes sure that no other run has the folder.
        """
        self.workdir = workdir
        self.config = config
        self.tokenizer, self.corpus = tokenizer, corpus
        self.processes = processes or Processes()
        self._holding = holding or Holding(workdir, self.processes)
        self.say = say
        self.begun_from: dict[str, Any] | None = None
        self.missed: int | None = None
        self.skipped = Skipped()
        self._begun = time.monotonic()  # the save before; of the run at first
        self._saving: tuple[Folder, Future[Manifest]] | None = None
        self._failures = 0  # in a row
        self._saved: int | None = None  # the newest step that this session knows to be whole

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        """Waits for the save on its way, whatever ended the run."""
        self.wait()

    def due(self, step: int) -> bool:
        """Tells whether a step is one to save, by its number or by the clock of process 0."""
        if step == self.config.steps or due(self.config.checkpoint.every, step):
            return True
        seconds = 60 * self.config.checkpoint.minutes
        return seconds > 0 and self.processes.told(
            lambda: time.monotonic() - self._begun >= seconds
        )

    def save(self, state: TrainState, step: int) -> None:
        """Begins to save a step; waits for the save before.

        Raises:
          UserError: the save before could not be written.
        """
        self.wait()
        self._begun = time.monotonic()
        if step == self._saved:
            return
        path = self.workdir / STEPS / str(step)

        def make_room() -> None:
            self._holding.check()
            make_folder(path.parent, f"--workdir={self.workdir}")
            if CONFIG not in names(self.workdir):  # it was deleted under the run
                write_text(self.workdir / CONFIG, resolved.to_json(self.config))
            delete(path)  # cut off, or passed over when the run went on from before it

        self.processes.told(make_room)
        about: dict[str, Any] = dict(step=step, corpus=self.corpus)
        if self.skipped.ranges:
            about["skipped"] = self.skipped.ranges
        documents = {CONFIG: resolved.to_json(self.config), STATE: json.dumps(about) + "\n"}
        if self.tokenizer is not None:
            documents[TOKENIZER] = self.tokenizer.to_json()
        items = {MODEL: named_arrays(state.model), OPTIMIZER: _kept(state), EMA: state.ema}
        items[RECENT] = state.recent
        # Orbax refuses an item without arrays, as an optimizer without a state is.
        items = {name: item for name, item in items.items() if jax.tree.leaves(item)}
        made = provenance(jax.tree.leaves(items)[0].sharding.mesh, self.config.seed)
        made |= dict(begun_from=self.begun_from) if self.begun_from else {}
        after = functools.partial(self._settle, step)
        self._saving = path, save(path, items, documents, step, made, self.processes, after)

    def wait(self) -> None:
        """Returns when nothing is on its way and old steps are thinned.

        A step of which a store has lost a part is ``missed``, as is one that was deleted while it
        was written: the next save makes up for it.

        Raises:
          UserError: the save could not be written, or too many in a row.
        """
        heartbeat.busy(heartbeat.SAVING)
        if self._saving is None:
            return
        (path, pending), self._saving = self._saving, None
        try:
            self._saved = pending.result().step
        except UserError as error:
            # A store may take a write whose answer is lost, and then refuse to take it again.
            deleted = os.strerror(errno.ENOENT) in str(error)
            self._failures += 1
            if self._failures > ATTEMPTS or not (deleted or in_store(path)):
                raise
            self.missed = int(path.name)
            reason = "it was deleted meanwhile" if deleted else str(error).split("; what was")[0]
            self.say(f"step {path.name} is not saved ({reason}); the next save makes up for it")
        else:
            self._failures, self.missed = 0, None

    def begin(self) -> None:
        """Puts on record that the run begins, or begins anew, and from what.

        Raises:
          UserError: it cannot be written.
        """
        self.processes.told(lambda: run_file.write(self.workdir, 0, self.begun_from))

    def _settle(self, step: int) -> None:
        """Deletes old steps, after one is whole, which is put on record.

        Where that fails, it is tried again after the next one.
        """
        try:
            thin(self.workdir, self.config.checkpoint, step)
        except (OSError, UserError) as error:
            steps = self.workdir / STEPS
            self.say(f"old steps of {steps} could not be deleted ({disk_reason(error)})")
        try:
            run_file.write(self.workdir, step, self.begun_from)
        except UserError as error:
            self.say(str(error))

    def find(self, before: int | None = None) -> Saved | None:
        """Returns the newest step that holds what was written; None where there is none.

        Args:
          before: looks only at steps before this one, of which none need be whole.

        Raises:
          UserError: there are steps, or were, and none is whole any more; their folder cannot be
            made.
        """

        def decide() -> list[str]:
            make_folder(self.workdir / STEPS, f"--workdir={self.workdir}")
            sweep_up(self.workdir)
            damaged = manifest.damaged_steps(self.workdir)
            for step in damaged:
                self.say(f"step {step} has files missing or cut off: passed over")
            whole = manifest.whole_steps(self.workdir)
            if before is not None:
                whole = [step for step in whole if step < before]
            elif damaged and not whole:
                raise UserError(_none_whole(self.workdir, damaged))
            elif not whole and (saved := run_file.read(self.workdir).get("saved")):
                raise UserError(
                    f"{self.workdir / STEPS} holds no saved step any more, and step {saved} was "
                    "there; copy it again from where it came, name another workdir, or delete "
                    f"{self.workdir / run_file.NAME} to begin anew."
                )
            return [str(self.workdir / STEPS / str(step)) for step in reversed(whole)]

        paths = [as_folder(path) for path in self.processes.told(decide)]
        found = first_whole(
            paths, ITEMS, self.processes, lambda sentence: self.say(f"{sentence}: passed over")
        )
        if found is None and paths and before is None:
            raise UserError(_none_whole(self.workdir, manifest.steps(self.workdir)))
        self._saved, self.missed = (found.step if found else None), None
        self.begun_from = self.begun_from or self.processes.told(lambda: begun_from(self.workdir))
        return found

    def restore(self, saved: Saved, abstract: TrainState, mesh: Mesh) -> TrainState:
        """Returns the state of a saved step on a mesh.

        Args:
          saved: the step.
          abstract: the state's shapes and shardings.
          mesh: to put it on; it need not be the one that the step was saved from.
        """
        model = saved.load(MODEL, named_arrays(abstract.model), mesh)
        optimizer = _kept(abstract)
        if jax.tree.leaves(optimizer):
            optimizer = saved.load(OPTIMIZER, optimizer, mesh)
        master = optimizer.pop(MASTER)
        # A run that had no average before begins it at its parameters.
        begun = saved.holds(EMA) or not abstract.ema
        ema = abstract.ema and saved.load(EMA if begun else MODEL, abstract.ema, mesh)
        ema = ema if begun else ema | jax.tree.map(jax.numpy.copy, master)
        step = jax.device_put(jax.numpy.int32(saved.step), jax.NamedSharding(mesh, jax.P()))
        recent = _recent(saved, abstract.recent, mesh)
        self.skipped |= Skipped.of(saved.skipped)
        return TrainState(step, with_arrays(abstract.model, model), optimizer, master, ema, recent)


def _kept(state: TrainState) -> dict[str, Any]:
    """The arrays of the item "optimizer"."""
    return {**state.optimizer, MASTER: state.master}


def _recent(saved: Saved, abstract: dict[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """Returns what a step remembered; a fresh memory where it had none, or one of other length."""
    if not abstract:
        return {}
    wanted = {name: leaf.shape for name, leaf in abstract.items()}
    if saved.holds(RECENT) and saved.shapes(RECENT) == wanted:
        return saved.load(RECENT, abstract, mesh)
    zeros = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in abstract.items()}
    return jax.device_put(zeros, jax.NamedSharding(mesh, jax.P()))


def _none_whole(workdir: Folder, steps: list[int]) -> str:
    paths = [workdir / STEPS / str(step) for step in steps]
    models = [p for p in paths if (held := manifest.whole(p)) and STATE not in held.files]
    if models:
        return (
            f"{models[-1]} is a saved model, without the state of a run; begin a new run with "
            f"checkpoint.restore_from={models[-1]}."
        )
    listed = ", ".join(str(step) for step in steps)
    return (
        f"{workdir / STEPS} holds step {listed}, with files missing, cut off or changed; copy it "
        "again from where it came, or name another workdir."
    )


def newest(workdir: Folder) -> Saved | None:
    """Returns the newest whole step of a run, its arrays not looked at; None where there is none.

    Raises:
      UserError: there are steps, and none is whole any more.
    """
    for step in reversed(manifest.whole_steps(workdir)):
        with contextlib.suppress(Damaged):
            return open_step(workdir / STEPS / str(step), ())
    if damaged := manifest.damaged_steps(workdir):
        raise UserError(_none_whole(workdir, damaged))
    return None


def begun_from(workdir: Folder) -> dict[str, Any] | None:
    """Returns what a run has begun from, where it is known.

    Raises:
      UserError: an object store does not answer.
    """
    whole = manifest.whole_steps(workdir)
    held = manifest.read(workdir / STEPS / str(whole[-1])) if whole else None
    return (run_file.read(workdir) if held is None else held.made).get("begun_from")


def check_corpus(before: Saved | None, digest: str) -> None:
    """Refuses to go on with another text than the one that a run has read.

    Args:
      before: the run's newest step.
      digest: of the text at hand and its tokens.

    Raises:
      UserError: it was trained on another.
    """
    if before is not None and before.corpus not in (None, digest):
        raise UserError(
            f"--workdir={before.path.parent.parent} was trained on another text than data.path and "
            "data.tokenizer give now; restore them, or start a new run with "
            "checkpoint.restore_from."
        )


def check_workdir(workdir: Folder, config: ConfigDict, before: Saved | None) -> dict[str, tuple]:
    """Compares a run's config with the one that it had before.

    Args:
      workdir: of the run; may be new.
      config: resolved.
      before: its newest step, whose config counts, as its checksum is known.

    Returns:
      (old, new) of each safe field that changes.

    Raises:
      UserError: an unsafe field differs.
    """
    path = workdir / CONFIG
    if before is not None:
        old = before.config
    elif CONFIG in names(workdir):
        old = resolved.from_json(read_text(path), str(path))
    else:
        return {}
    changes = resolved.difference(old, config)
    unsafe = [name for name in changes if not is_safe(name)]
    # Where no step was taken, none is lost.
    if unsafe and (before or read(workdir) or events.read(workdir)):
        listed = ", ".join("{}: {!r} -> {!r}".format(n, *changes[n]) for n in unsafe)
        raise UserError(
            f"--workdir={workdir} holds a run of another config ({listed}); restore these fields, "
            "or name another workdir, to begin from its parameters with "
            f"checkpoint.restore_from={workdir}."
        )
    return changes
