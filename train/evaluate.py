"""Evaluation: loss, perplexity and bits per byte on held-out text; accuracy on the grammar.

``python -m train.evaluate --checkpoint=runs/toy``
"""

import functools
import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array
from ml_collections import ConfigDict
from rich import box
from rich.console import Console
from rich.table import Table

from configs import command
from configs.errors import UserError
from configs.figures import write_json
from model.axes import MESH_AXES, check_mesh, make_mesh
from model.compiled import keep_compiled
from model.saved import open_saved
from model.transformer import Transformer
from text.tokenizers import Tokenizer
from train.batches import RowSource, evaluation_batches, open_sources
from train.determined import determined_accuracy
from train.loss import summed_loss
from train.step import Batch


def evaluate(
    model: Transformer,
    source: RowSource,
    tokenizer: Tokenizer | None,
    config: ConfigDict,
    mesh: Mesh,
    batches: int,
) -> dict[str, float]:
    """Measures a model on held-out rows.

    Args:
      model: without dropout here.
      source: the held-out rows.
      tokenizer: None for random tokens.
      config: whole.
      mesh: that the model is on.
      batches: how many to read; all when 0.

    Returns:
      "loss" (nats a token), "perplexity", "bits_per_byte" (of the text that the tokens stand
      for; not for random tokens), and for the grammar the accuracies of ``determined_accuracy``.
    """
    found = evaluation_batches(source, config.batch_size, batches, mesh, model.compute.rules)
    figures = text_loss(model, found, tokenizer, mesh, config.loss_chunk)
    if config.data.source == "grammar" and tokenizer is not None:
        documents = batches * config.batch_size
        figures.update(determined_accuracy(model, tokenizer, config, mesh, documents))
    return figures


def text_loss(
    model: Transformer,
    batches: Iterable[Batch],
    tokenizer: Tokenizer | None,
    mesh: Mesh,
    chunk: int | None = None,
) -> dict[str, float]:
    """Returns "loss", "perplexity", and "bits_per_byte" where tokens stand for text.

    Args:
      model: without dropout here.
      batches: of held-out rows.
      tokenizer: None for random tokens.
      mesh: that the model is on.
      chunk: tokens whose logits a device holds at once; None: see ``train.loss``.
    """
    sizes = np.zeros(model.config.padded_vocab_size, np.float32)
    if tokenizer is not None:
        known = tokenizer.token_bytes()
        sizes[: len(known)] = known
    table = jax.device_put(sizes, NamedSharding(mesh, PartitionSpec()))
    nats = tokens = size = 0.0
    for batch in batches:
        with jax.set_mesh(mesh):
            sums = jax.device_get(_sums(model, batch, table, chunk))
        nats, tokens, size = nats + sums[0], tokens + sums[1], size + sums[2]
    loss = float(nats / max(tokens, 1))
    figures = dict(loss=loss, perplexity=math.exp(min(loss, 700)))
    if size:
        figures["bits_per_byte"] = float(nats / math.log(2) / size)
    return figures


@functools.partial(jax.jit, static_argnums=3)
def _sums(
    model: Transformer, batch: Batch, sizes: Array, chunk: int | None
) -> tuple[Array, Array, Array]:
    """Returns nats, tokens and bytes, summed over a batch's counted tokens."""
    x = model.last_residual(batch.tokens, batch.positions, batch.segments)
    weights = batch.counted.astype(jnp.float32)
    nats, _ = summed_loss(model, x, batch.labels, weights, jnp.zeros(()), chunk)
    spec = model.compute.rules.spec(("batch", "length"), batch.labels.shape)
    width = sizes.at[batch.labels].get(out_sharding=spec)
    return (
        nats,
        batch.counted.sum().astype(jnp.float32),
        jnp.where(batch.counted, width, 0).sum(),
    )


def define_checkpoint_flags() -> None:
    """Defines what every command on a checkpoint takes."""
    flags.DEFINE_string("checkpoint", None, "A run (its newest whole step), a step, or a model.")
    flags.DEFINE_string("json", None, "Also write the figures to this file.")
    flags.DEFINE_bool("ema", False, "Take the average of the parameters that optim.ema keeps.")
    flags.DEFINE_string("mesh", "", "Sizes of the mesh, as fsdp=2,heads=4; empty: one device.")


def mesh_flag() -> Mesh:
    """Returns the mesh of ``--mesh``.

    Raises:
      UserError: it is not sizes of mesh axes, or they do not fit the devices.
    """
    sizes = dict.fromkeys(MESH_AXES, 1)
    for part in filter(None, flags.FLAGS.mesh.split(",")):
        name, _, size = part.partition("=")
        if name not in sizes or not size.isdigit():
            raise UserError(
                f"--mesh={flags.FLAGS.mesh} must be sizes of {', '.join(MESH_AXES)}, such as "
                "--mesh=fsdp=2,heads=4."
            )
        sizes[name] = int(size)
    return make_mesh(sizes, field="--mesh")


def checkpoint_flag() -> str:
    """Returns ``--checkpoint``.

    Raises:
      UserError: it is missing.
    """
    if not flags.FLAGS.checkpoint:
        raise UserError("--checkpoint is missing; name a run, a step or a saved model.")
    return flags.FLAGS.checkpoint


def _define_flags() -> None:
    define_checkpoint_flags()
    flags.DEFINE_integer("batches", 0, "Batches to read; 0: all that is held out.", lower_bound=0)


def main() -> None:
    """Prints the figures of ``--checkpoint`` on its held-out text."""
    keep_compiled()
    saved = open_saved(checkpoint_flag())
    config = saved.config
    sources = open_sources(config, saved.tokenizer)
    if saved.corpus not in (None, sources.digest):
        raise UserError(
            f"{saved.path} was trained on another text than data.path = {config.data.path!r} gives "
            "now, so what it held out is not known; restore the text."
        )
    mesh = mesh_flag()
    check_mesh(mesh, saved.model_config, config.batch_size, config.length)
    with jax.set_mesh(mesh):
        model = saved.load_model(mesh, ema=flags.FLAGS.ema)
        figures = evaluate(
            model, sources.validation, sources.tokenizer, config, mesh, flags.FLAGS.batches
        )
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{saved.path} on held-out text", markup=False)
    console.print(render(figures))
    if flags.FLAGS.json:
        write_json(flags.FLAGS.json, dict(checkpoint=str(saved.path), step=saved.step, **figures))


def render(figures: dict[str, float]) -> Table:
    """Returns the table of an evaluation."""
    units = dict(loss="nats a token", perplexity="", bits_per_byte="bits")
    table = Table(box=box.SIMPLE, show_edge=False)
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("unit")
    for name, value in figures.items():
        unit = units.get(name, "of determined words" if name.startswith("accuracy") else "")
        table.add_row(name, f"{value:.4f}", unit)
    return table


if __name__ == "__main__":
    command.run(main, _define_flags)
