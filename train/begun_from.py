"""The parameters that a run begins with, where they are not drawn: those of a saved one."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from configs.errors import UserError, nearest
from model.config import ModelConfig
from model.manifest import EMA, MODEL, TOKENIZER
from model.parameter import declarations, named_arrays, with_arrays
from model.saved import Saved
from model.surgery.change import Tokens
from model.surgery.plan import plan
from model.surgery.report import report
from model.surgery.transfer import transfer
from model.transformer import Transformer
from text.shared_tokens import shared_tokens
from text.tokenizers import Tokenizer


def once() -> dict[str, Any] | None:
    """Returns the compiler's options for what runs once: on a CPU, to optimise it takes longer."""
    return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None


def start_from(
    source: Saved,
    config: ConfigDict,
    model: Transformer,
    tokenizer: Tokenizer | None,
    mesh: Mesh,
) -> tuple[Transformer, list[str]]:
    """Returns a network with the parameters of a run, a step or a saved model, as far as they fit.

    What they lack is drawn as for a fresh start, to the bit.

    Args:
      source: that is saved.
      config: of the new run: its seed, and the fields ``restore_`` of ``config.checkpoint``.
      model: abstract, with the shardings that its parameters take.
      tokenizer: of the new run.
      mesh: that is set.

    Returns:
      The network, and lines that say what was taken, what was changed and what is new.

    Raises:
      UserError: a parameter fits in no way, or no token is shared.
    """
    fields = config.checkpoint
    item = EMA if fields.restore_ema else MODEL
    if item == EMA and not source.holds(item):
        raise UserError(
            f"checkpoint.restore_from={source.path} holds no average of the parameters for "
            "checkpoint.restore_ema; leave that out, or name a run with optim.ema."
        )
    old = _network(source)
    wanted = declarations(model)
    chosen = _chosen(fields.restore_only, [one.path for one in wanted])
    tokens = _tokens(source, old.config, tokenizer, model.config)
    tables = [one for one in wanted if "vocab" in one.axes and chosen(one.path)]
    if tables and tokens and (tokens.rows < 0).all():
        raise UserError(
            f"checkpoint.restore_from={source.path} has no token of this run's; set "
            f"data.tokenizer={source.path / TOKENIZER}, or leave the embedding out with "
            "checkpoint.restore_only."
        )
    found = plan(declarations(old), wanted, tokens, chosen, fields.restore_layers)
    draw = functools.partial(_fresh, model=model, config=config)
    arrays, errors = transfer(found, source, item, old, model, draw, mesh, once())
    what, shape = "parameters", old.config
    if item == EMA:  # which is kept in float32
        what, shape = (
            f"the average of the {what}",
            dataclasses.replace(shape, param_dtype="float32"),
        )
    lines = report(found, errors, shape, model.config)
    return with_arrays(model, arrays), [f"{what} from {source.path}", *lines]


def _network(source: Saved) -> Transformer:
    """Returns the network that was saved, abstract."""
    shape = source.model_config
    try:
        return jax.eval_shape(lambda key: Transformer(shape, key), jax.random.key(0))
    except UserError as error:  # of a class of one's own that has gone, say
        raise UserError(f"the config of {source.path} cannot be built any more: {error}") from error


def _chosen(patterns: Sequence[str], paths: Sequence[str]) -> Callable[[str], bool]:
    """Returns what tells whether a parameter is to be taken; all are, where there is no pattern."""
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in paths):
            raise UserError(
                f"checkpoint.restore_only: no parameter is like {pattern!r}"
                f"{nearest(pattern, paths)}; python -m model.tally lists their names."
            )
    return lambda path: not patterns or any(fnmatchcase(path, p) for p in patterns)


def _tokens(
    source: Saved, old: ModelConfig, tokenizer: Tokenizer | None, new: ModelConfig
) -> Tokens | None:
    """Returns how the vocabulary differs from the saved one; None where it does not."""
    before, size = source.tokenizer, new.vocab_size
    rows, by, alike = np.arange(size), "number", (before is None) == (tokenizer is None)
    if before is not None and tokenizer is not None and before.to_json() != tokenizer.to_json():
        shared, by = shared_tokens(before, tokenizer), "their text"
        rows = np.pad(shared, (0, size - len(shared)), constant_values=-1)
    rows = np.where(rows < old.vocab_size, rows, -1)
    if alike and size == old.vocab_size and (rows == np.arange(size)).all():
        return None
    count = int((rows >= 0).sum())
    return Tokens(rows, f"{count} of {size} tokens by {by}, {size - count} are new")


def _fresh(names: Sequence[str], *, model: Transformer, config: ConfigDict) -> dict[str, jax.Array]:
    """Returns what a fresh start draws for some parameters."""

    def draw(key: jax.Array) -> dict[str, jax.Array]:
        arrays = named_arrays(Transformer(model.config, key, model.compute.rules))
        return {name: arrays[name] for name in names}

    return jax.jit(draw, compiler_options=once())(jax.random.key(config.seed))
