"""When a run saves, what it keeps, and from where it goes on."""

import json
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from configs import resolved
from configs.errors import UserError
from configs.files import read_text
from configs.safe import is_safe
from model import manifest
from model.manifest import CONFIG, EMA, MODEL, OPTIMIZER, STATE, STEPS, TOKENIZER
from model.parameter import named_arrays, with_arrays
from model.saved import Saved, open_saved
from model.saving import delete, make_room, save
from text.tokenizers import Tokenizer
from train.calls import due
from train.metrics import read
from train.processes.alike import wait_for
from train.processes.group import Processes
from train.step import TrainState

MASTER = "master"  # beside the optimizer's own arrays


class Checkpoints:
    """The saved steps of one run."""

    def __init__(
        self,
        workdir: Path,
        config: ConfigDict,
        tokenizer: Tokenizer | None,
        corpus: str | None = None,
        processes: Processes | None = None,
    ):
        """Args: the run's folder, its config, its tokenizer, the digest of its text, who runs it.

        Raises:
          UserError: the folder cannot be made.
        """
        self.workdir = workdir
        self.config = config
        self.tokenizer, self.corpus = tokenizer, corpus
        self.processes = processes or Processes()
        self._saving: Future[None] | None = None
        self.processes.told(self._make)

    def _make(self) -> None:
        try:
            (self.workdir / STEPS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"--workdir={self.workdir} cannot be made ({error.strerror}); name another folder."
            ) from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        """Waits for the save on its way, whatever ended the run."""
        self.wait()

    def due(self, step: int) -> bool:
        """Tells whether a step is one to save."""
        return step == self.config.steps or due(self.config.checkpoint.every, step)

    def save(self, state: TrainState, step: int) -> None:
        """Begins to save a step; waits for the save before, then thins the old ones.

        Raises:
          UserError: this save, or the one before, could not be written.
        """
        self.wait()
        path = self.workdir / STEPS / str(step)
        if not self.processes.told(lambda: make_room(path)):
            return
        about = dict(step=step, corpus=self.corpus)
        documents = {CONFIG: resolved.to_json(self.config), STATE: json.dumps(about) + "\n"}
        if self.tokenizer is not None:
            documents[TOKENIZER] = self.tokenizer.to_json()
        items = {MODEL: named_arrays(state.model), OPTIMIZER: _kept(state), EMA: state.ema}
        # Orbax refuses an item without arrays, as an optimizer without a state is.
        items = {name: item for name, item in items.items() if jax.tree.leaves(item)}
        self._saving = save(path, items, documents)

    def wait(self) -> None:
        """Returns when nothing is on its way and old steps are thinned."""
        if self._saving is not None:
            pending, self._saving = self._saving, None
            pending.result()
            if self.processes.first:
                self._thin()

    def restore(self, abstract: TrainState, mesh: Mesh) -> TrainState | None:
        """Returns the newest whole step on a mesh, or None where there is none.

        Args:
          abstract: the state's shapes and shardings.
          mesh: to put it on; it need not be the one that the step was saved from.
        """

        def decide() -> str:
            found = newest(self.workdir)
            return str(found.path) if found else ""

        path = self.processes.told(decide)
        if not path:
            return None
        latest = self.processes.together(lambda: open_saved(wait_for(path)))
        if latest.step is None:
            raise UserError(
                f"{latest.path} is a saved model, without the state of a run; begin a new run with "
                f"checkpoint.restore_from={latest.path}."
            )
        model = latest.load(MODEL, named_arrays(abstract.model), mesh)
        optimizer = _kept(abstract)
        if jax.tree.leaves(optimizer):
            optimizer = latest.load(OPTIMIZER, optimizer, mesh)
        master = optimizer.pop(MASTER)
        # A run that had no average before begins it at its parameters.
        begun = latest.holds(EMA) or not abstract.ema
        ema = abstract.ema and latest.load(EMA if begun else MODEL, abstract.ema, mesh)
        ema = ema if begun else ema | jax.tree.map(jax.numpy.copy, master)
        step = jax.device_put(jax.numpy.int32(latest.step), jax.NamedSharding(mesh, jax.P()))
        return TrainState(step, with_arrays(abstract.model, model), optimizer, master, ema)

    def damaged(self) -> list[int]:
        """Returns the steps that were whole once and are not now."""
        return self.processes.told(lambda: manifest.damaged_steps(self.workdir))

    def _thin(self) -> None:
        keep = self.config.checkpoint
        steps = manifest.whole_steps(self.workdir)
        for step in steps[: -max(1, keep.keep)]:
            if not (keep.keep_every and step % keep.keep_every == 0):
                delete(self.workdir / STEPS / str(step))


def _kept(state: TrainState) -> dict[str, Any]:
    """The arrays of the item "optimizer"."""
    return {**state.optimizer, MASTER: state.master}


def newest(workdir: Path) -> Saved | None:
    """Returns the newest whole step of a run, its arrays not yet read; None where there is none.

    Raises:
      UserError: there are steps, and none is whole any more.
    """
    steps = manifest.whole_steps(workdir)
    damaged = manifest.damaged_steps(workdir)
    if damaged and not steps:
        listed = ", ".join(str(step) for step in damaged)
        raise UserError(
            f"{workdir / STEPS} holds step {listed}, with files missing or cut off; copy it again "
            "from where it came, or name another workdir."
        )
    return open_saved(workdir / STEPS / str(steps[-1])) if steps else None


def check_corpus(workdir: Path, digest: str) -> None:
    """Refuses to go on with another text than the one that a run has read.

    Args:
      workdir: of the run; may be new.
      digest: of the text at hand and its tokens.

    Raises:
      UserError: the run's newest step was trained on another.
    """
    before = newest(workdir)
    if before is not None and before.corpus not in (None, digest):
        raise UserError(
            f"--workdir={workdir} was trained on another text than data.path and data.tokenizer "
            "give now; restore them, or start a new run with checkpoint.restore_from."
        )


def check_workdir(workdir: Path, config: ConfigDict) -> dict[str, tuple]:
    """Compares a run's config with the one that its folder holds.

    Args:
      workdir: of the run; may be new.
      config: resolved.

    Returns:
      (old, new) of each safe field that changes.

    Raises:
      UserError: an unsafe field differs.
    """
    path = workdir / CONFIG
    before = None if path.exists() else newest(workdir)
    if before is not None:
        path = before.path / CONFIG
    if not path.exists():
        return {}
    old = resolved.from_json(read_text(path), str(path))
    changes = resolved.difference(old, config)
    unsafe = [name for name in changes if not is_safe(name)]
    if unsafe and (newest(workdir) or read(workdir)):  # where no step was taken, none is lost
        listed = ", ".join("{}: {!r} -> {!r}".format(n, *changes[n]) for n in unsafe)
        raise UserError(
            f"--workdir={workdir} holds a run of another config ({listed}); restore these fields, "
            "or name another workdir, to begin from its parameters with "
            f"checkpoint.restore_from={workdir}."
        )
    return changes
