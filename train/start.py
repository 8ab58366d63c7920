"""The state that a run begins with, or goes on from."""

import dataclasses
import functools
from collections.abc import Callable

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from model.axes import ShardingRules
from model.config import ModelConfig
from model.saved import Saved
from text.tokenizers import Tokenizer
from train import heartbeat
from train.accidents import window
from train.begun_from import once, start_from
from train.checkpoints import Checkpoints
from train.optimizer import Optimizer
from train.processes.group import Processes
from train.source import open_source
from train.step import TrainState, init_state, state_of


@dataclasses.dataclass(frozen=True)
class Start:
    """Makes the states of one run, on its mesh, which has to be set."""

    config: ConfigDict  # resolved
    model_config: ModelConfig
    optimizer: Optimizer
    mesh: Mesh
    say: Callable[[str], None] = print  # shows a line

    def first(
        self, checkpoints: Checkpoints, tokenizer: Tokenizer | None, processes: Processes
    ) -> TrainState:
        """Returns the state before the first step, with the parameters of the seed or those given.

        Args:
          checkpoints: of the run; they know what it has begun from before, and are told.
          tokenizer: of the run, which parameters that are given must have too.
          processes: of the run.

        Raises:
          UserError: ``checkpoint.restore_from`` does not serve.
        """
        if not self.config.checkpoint.restore_from:
            checkpoints.begun_from = None
            key = jax.random.key(self.config.seed)
            return jax.jit(self._fresh(), compiler_options=once())(key)
        given, about = open_source(self.config, checkpoints.begun_from, processes, self.say)
        abstract = self._abstract().model
        model, lines = start_from(given, self.config, abstract, tokenizer, self.mesh)
        for line in lines:
            self.say(line)
        checkpoints.begun_from = about
        begin = functools.partial(state_of, self.optimizer, window=window(self.config))
        return jax.jit(begin, donate_argnums=0, compiler_options=once())(model)

    def at(
        self,
        saved: Saved | None,
        checkpoints: Checkpoints,
        tokenizer: Tokenizer | None,
        processes: Processes,
    ) -> TrainState:
        """Returns the state of a saved step; where that is None, the first.

        Raises:
          UserError: it cannot be read.
        """
        if saved is None:
            return self.first(checkpoints, tokenizer, processes)
        heartbeat.busy(heartbeat.RESTORING, saved.step)
        return checkpoints.restore(saved, self._abstract(), self.mesh)

    def _fresh(self) -> Callable[..., TrainState]:
        rules, length = ShardingRules.of(self.config.mesh), window(self.config)
        return functools.partial(
            init_state, self.model_config, self.optimizer, rules=rules, window=length
        )

    def _abstract(self) -> TrainState:
        return jax.eval_shape(self._fresh(), jax.random.key(self.config.seed))
