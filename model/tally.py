"""What a config amounts to: parameters of a head, a block and the whole; work and memory.

``python -m model.tally --config=configs/gpt3.py:175b`` prints it without making an array.
"""

from configs import keyboard

if __name__ == "__main__":
    keyboard.end_at_once()  # the imports below take seconds

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from ml_collections import ConfigDict
from rich import box
from rich.console import Console
from rich.table import Table

from configs import command, resolved
from configs.errors import UserError
from configs.figures import define_json, write_json
from model import layers
from model.config import ModelConfig
from model.operations import pair_operations
from model.parameter import Declaration, declarations
from model.transformer import Transformer
from text import corpora

# Along the way of the data; a variant's own parameters come first.
_ORDER = "query key value_down value_up value_full"


def _row(words: str, unit: str = "", ends: bool = False) -> Any:
    """Returns a field with its row of the table: words, unit, whether it ends a section."""
    return dataclasses.field(metadata=dict(words=words, unit=unit, ends=ends))


@dataclasses.dataclass(frozen=True)
class Tally:
    """Figures of one config: in JSON under these names, in the table under these words."""

    length: int  # tokens of a sequence, for which the operations were counted
    head_parts: dict[str, int]  # parameters in each matrix, and each gain, that heads share out
    head: int = _row("one head")  # a query head with its key/value group
    full_value_map: int = _row("a full (unfactored) value map of one head")
    # Of matrices alone.
    attention_block: int = _row("attention in one block")
    attention: int = _row("attention in all blocks")
    mlp_block: int = _row("MLP in one block")
    mlp: int = _row("MLP in all blocks")
    matrices: int = _row("matrices of the whole model, untied, without biases, norms, positions")
    parameters: int = _row("the whole model as configured")  # its vocabulary without padding
    padding: int = _row("padding of the vocabulary, besides", ends=True)
    # Floating-point operations, with the mean number of keys seen.
    forward_flops: int = _row("forward, operations a token at length {length:,}")
    attention_pattern_flops: int = _row("of these in the attention pattern")
    # Three times forward: a backward pass costs two; recomputation is not counted.
    training_flops: int = _row("training, operations a token", ends=True)
    parameter_bytes: int = _row("parameters", " B")
    gradient_bytes: int = _row("gradients", " B")
    # With the average and the float32 weights of the parameters, where they are kept; None for an
    # optimizer of the user's own, which alone knows what it keeps.
    optimizer_bytes: int | None = _row("optimizer", " B")
    cache_bytes_per_token: int = _row("key/value cache of one token", " B")


def tally(
    config: ModelConfig,
    length: int,
    optimizer: str = "adamw",
    ema: bool = False,
    master_weights: bool = False,
) -> Tally:
    """Counts a config from its declarations, at so many tokens a sequence.

    The optimizer's bytes are those of ``optim.name``, and of an average and float32 weights where
    ``optim.ema`` and ``optim.master_weights`` have them kept.
    """
    whole = dataclasses.replace(config, attention_backend="dense")
    abstract = jax.eval_shape(lambda key: Transformer(whole, key), jax.random.key(0))
    declared = declarations(abstract)
    attention = [d for d in declared if ".attention." in d.path]
    matrices = [d for d in declared if d.kind == "matrix"]
    in_attention = sum(d.size for d in matrices if d in attention)
    in_mlp = sum(d.size for d in matrices if d not in attention)
    parts = {
        d.path.rsplit(".", 1)[1]: d.size // d.length("layers") // d.length(axis)
        for d in attention
        for axis in ("heads", "kv_heads")
        if axis in d.axes and d.kind in ("matrix", "gain")
    }
    table = config.vocab_size * config.embed_dim
    padded = [d for d in declared if "vocab" in d.axes]
    padding = sum(d.size for d in padded) - table * len(padded)
    total = sum(d.size for d in declared) - padding
    pattern = 0.0
    for stack, window in zip(abstract.blocks, config.window, strict=True):
        w = min(window or length, length)
        seen = (w * (w + 1) / 2 + (length - w) * w) / length  # keys, the mean over queries
        pattern += pair_operations(stack, abstract.compute) * seen
    forward = 2 * (in_attention + in_mlp + table) + round(pattern)
    cached = [layers.projected(s, 1, 1, abstract.compute).remembered for s in abstract.blocks]
    size = jnp.dtype(config.param_dtype).itemsize
    return Tally(
        head_parts=dict(sorted(parts.items(), key=lambda part: _ORDER.find(part[0]))),
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
        optimizer_bytes=_kept_bytes(declared, optimizer, ema, master_weights and size < 4),
        cache_bytes_per_token=sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cached)),
        length=length,
    )


def _kept_bytes(declared: list[Declaration], optimizer: str, ema: bool, master: bool) -> int | None:
    if ":" in optimizer:
        return None
    return sum(
        _moments(d, optimizer) * (4 if master else jnp.dtype(d.dtype).itemsize)
        + 4 * d.size * (ema + master)
        for d in declared
    )


def _moments(d: Declaration, optimizer: str) -> int:
    """Numbers that an optimizer keeps for a parameter."""
    match optimizer:
        case "adamw":
            return 2 * d.size
        case "lion":
            return d.size
        case "muon":
            return d.size if d.kind == "matrix" else 2 * d.size
        case "adafactor":
            layer = [size for size, axis in zip(d.shape, d.axes, strict=True) if axis != "layers"]
            second, largest = sorted([0, 0, *layer])[-2:]
            return d.size if second < 128 else d.size // second + d.size // largest
    raise UserError(f"optim.name = {optimizer!r} is no optimizer that the tally knows.")


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

    for part, count in t.head_parts.items():
        table.add_row(f"{part} of one head, parameters", f"{count:,}")
    for field in dataclasses.fields(t):
        if row := field.metadata:
            figure = getattr(t, field.name)
            written = "its function's" if figure is None else f"{figure:,}{row['unit']}"
            words = row["words"].format(length=t.length)
            table.add_row(words, written, end_section=row["ends"])
    cache = t.cache_bytes_per_token * t.length
    table.add_row(f"key/value cache of {t.length:,} tokens", f"{cache:,} B")
    return table


def _define_flags() -> None:
    command.define_config()
    define_json()


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
