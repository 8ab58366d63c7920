"""What a config amounts to: parameters of a head, a block and the whole; work and memory.

``python -m model.tally --config=configs/gpt3.py:175b`` prints it without making an array.
"""

from configs import keyboard

if __name__ == "__main__":
    keyboard.end_at_once()  # the imports below take seconds

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from absl import flags
from ml_collections import ConfigDict
from rich import box
from rich.console import Console
from rich.table import Table

from configs import command, resolved
from configs.errors import UserError
from configs.figures import write_json
from model import layers
from model.config import ModelConfig
from model.operations import pair_operations
from model.parameter import Declaration, declarations
from model.transformer import Transformer
from text import corpora

# Along the way of the data; a variant's own parameters come first.
_ORDER = "query key value_down value_up value_full"
HEAD_AXES = ("heads", "kv_heads")


@dataclasses.dataclass(frozen=True)
class Tally:
    """Figures of one config.

    Attributes:
      head_parts: parameters of one head in each matrix, and each gain, that heads share out.
      head: their sum: one query head with its key/value group.
      full_value_map: D^2, an unfactored value map of one head.
      attention_block: matrices of attention in one block.
      attention: the same in all blocks.
      mlp_block: matrices of the MLP in one block.
      mlp: the same in all blocks.
      matrices: all matrices with an embedding and an unembedding, tied or not, without biases,
        norms and positions.
      parameters: of the model as configured, its vocabulary without padding.
      padding: parameters that pad the vocabulary.
      forward_flops: floating-point operations a token, forward, at the mean number of keys seen.
      attention_pattern_flops: the part of them that grows with the length.
      training_flops: three times forward: a backward pass costs two; recomputation is not counted.
      parameter_bytes, gradient_bytes: in the dtype of the parameters.
      optimizer_bytes: with the average and the float32 weights of the parameters, where they are
        kept; None for an optimizer of the user's own, which alone knows what it keeps.
      cache_bytes_per_token: keys and values of all layers.
      length: tokens of a sequence, for which the operations were counted.
    """

    head_parts: dict[str, int]
    head: int
    full_value_map: int
    attention_block: int
    attention: int
    mlp_block: int
    mlp: int
    matrices: int
    parameters: int
    padding: int
    forward_flops: int
    attention_pattern_flops: int
    training_flops: int
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int | None
    cache_bytes_per_token: int
    length: int


def tally(
    config: ModelConfig,
    length: int,
    optimizer: str = "adamw",
    ema: bool = False,
    master_weights: bool = False,
) -> Tally:
    """Counts a config from its declarations.

    Args:
      config: the model.
      length: tokens of a sequence.
      optimizer: ``config.optim.name``, for the bytes of its state.
      ema, master_weights: whether an average and float32 weights are kept, as in ``config.optim``.
    """
    whole = dataclasses.replace(config, attention_backend="dense")
    abstract = jax.eval_shape(lambda key: Transformer(whole, key), jax.random.key(0))
    found = declarations(abstract)
    attention = [d for d in found if ".attention." in d.path]
    matrices = [d for d in found if d.kind == "matrix"]
    in_attention = sum(d.size for d in matrices if d in attention)
    in_mlp = sum(d.size for d in matrices if d not in attention)
    parts: dict[str, int] = {}
    for d in attention:
        axis = next((axis for axis in HEAD_AXES if axis in d.axes), None)
        if axis and d.kind in ("matrix", "gain"):
            name = d.path.rsplit(".", 1)[1]
            parts[name] = d.size // d.length("layers") // d.length(axis)
    parts = dict(sorted(parts.items(), key=lambda part: _ORDER.find(part[0])))
    table = config.vocab_size * config.embed_dim
    padded = [d for d in found if "vocab" in d.axes]
    padding = sum(d.size for d in padded) - table * len(padded)
    total = sum(d.size for d in found) - padding
    pattern = sum(
        pair_operations(stack, abstract.compute) * config.num_layers // config.period * seen
        for stack, seen in zip(abstract.blocks, _seen(config.window, length), strict=True)
    )
    forward = 2 * (in_attention + in_mlp + table) + round(pattern)
    size = jnp.dtype(config.param_dtype).itemsize
    return Tally(
        head_parts=parts,
        head=sum(parts.values()),
        full_value_map=config.embed_dim**2,
        attention_block=in_attention // config.num_layers,
        attention=in_attention,
        mlp_block=in_mlp // config.num_layers,
        mlp=in_mlp,
        matrices=in_attention + in_mlp + 2 * table,
        parameters=total,
        padding=padding,
        forward_flops=forward,
        attention_pattern_flops=round(pattern),
        training_flops=3 * forward,
        parameter_bytes=(total + padding) * size,
        gradient_bytes=(total + padding) * size,
        optimizer_bytes=_kept_bytes(found, optimizer, ema, master_weights and size < 4),
        cache_bytes_per_token=_cache_bytes(abstract),
        length=length,
    )


def _seen(window: Sequence[int | None], length: int) -> list[float]:
    """Mean number of keys that a query sees in a sequence, for each window."""
    means = []
    for w in window:
        w = min(w or length, length)
        means.append((w * (w + 1) / 2 + (length - w) * w) / length)
    return means


def _cache_bytes(abstract: Transformer) -> int:
    arrays = [array for own in _remembered(abstract) for array in own.values()]
    return sum(array.size * array.dtype.itemsize for array in arrays)


def _remembered(abstract: Transformer) -> list[dict[str, jax.ShapeDtypeStruct]]:
    """What each stack of blocks remembers of one token."""
    return [layers.remembered(stack, 1, 1, abstract.compute) for stack in abstract.blocks]


def _kept_bytes(found: list[Declaration], optimizer: str, ema: bool, master: bool) -> int | None:
    if ":" in optimizer:
        return None
    return sum(
        _moments(d, optimizer) * (4 if master else jnp.dtype(d.dtype).itemsize)
        + 4 * d.size * (ema + master)
        for d in found
    )


def _moments(d: Declaration, optimizer: str) -> int:
    """Numbers that an optimizer keeps for a parameter."""
    if optimizer not in ("adamw", "lion", "muon", "adafactor"):
        raise UserError(f"optim.name = {optimizer!r} is no optimizer that the tally knows.")
    if optimizer == "lion":
        return d.size
    if optimizer == "muon":
        return d.size if d.kind == "matrix" else 2 * d.size
    if optimizer == "adafactor":
        layer = [size for size, axis in zip(d.shape, d.axes, strict=True) if axis != "layers"]
        largest = sorted(layer)[-2:]
        if len(layer) < 2 or largest[0] < 128:
            return d.size
        return d.size // largest[0] + d.size // largest[1]
    return 2 * d.size


def model_config(config: ConfigDict) -> ModelConfig:
    """Returns the model of a config, asking its tokenizer for the vocabulary's size.

    Raises:
      UserError: ``model.vocab_size`` is None and the corpus cannot be read.
    """
    size = config.model.vocab_size
    if size is None:
        if config.data.source == "repeats":
            raise UserError("model.vocab_size is None; random tokens need it: set it, say to 64.")
        size = corpora.prepare(config.data).tokenizer.vocab_size
    return ModelConfig.from_config(config.model, size, config.length)


def render(t: Tally, name: str) -> Table:
    """Returns the table that the command prints."""
    table = Table(title=name, box=box.SIMPLE, show_edge=False, title_justify="left")
    table.add_column("what")
    table.add_column("figure", justify="right")

    def row(what: str, figure: int, unit: str = "") -> None:
        table.add_row(what, f"{figure:,}{unit}")

    for part, count in t.head_parts.items():
        row(f"{part} of one head, parameters", count)
    row("one head", t.head)
    row("a full (unfactored) value map of one head", t.full_value_map)
    row("attention in one block", t.attention_block)
    row("attention in all blocks", t.attention)
    row("MLP in one block", t.mlp_block)
    row("MLP in all blocks", t.mlp)
    row("matrices of the whole model, untied, without biases, norms, positions", t.matrices)
    row("the whole model as configured", t.parameters)
    row("padding of the vocabulary, besides", t.padding)
    table.add_section()
    row(f"forward, operations a token at length {t.length:,}", t.forward_flops)
    row("of these in the attention pattern", t.attention_pattern_flops)
    row("training, operations a token", t.training_flops)
    table.add_section()
    row("parameters", t.parameter_bytes, " B")
    row("gradients", t.gradient_bytes, " B")
    if t.optimizer_bytes is None:
        table.add_row("optimizer", "its function's")
    else:
        row("optimizer", t.optimizer_bytes, " B")
    row("key/value cache of one token", t.cache_bytes_per_token, " B")
    row(f"key/value cache of {t.length:,} tokens", t.cache_bytes_per_token * t.length, " B")
    return table


def _define_flags() -> None:
    command.define_config()
    flags.DEFINE_string("json", None, "Also write the figures to this file.")


def main() -> None:
    """Prints the tally of ``--config``."""
    config = command.config()
    resolved.check(config)
    optim = config.optim
    shape = model_config(config)
    figures = tally(shape, config.length, optim.name, optim.ema > 0, optim.master_weights)
    source = command.config_source()
    Console(width=None if Console().is_terminal else 110).print(render(figures, source))
    if flags.FLAGS.json:
        write_json(flags.FLAGS.json, dict(config=source, **dataclasses.asdict(figures)))


if __name__ == "__main__":
    command.run(main, _define_flags)
