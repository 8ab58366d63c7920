"""Does compiling take longer with depth? The gradient of the loss at 4 and at 96 scanned layers.

``python -m bench.compile_time`` compiles both interleaved and prints seconds and their ratio.
"""

import statistics
import time

import jax
import jax.numpy as jnp
from absl import flags
from rich.console import Console

from configs import base, command
from configs.figures import write_json
from model.config import ModelConfig
from model.transformer import Transformer
from train.batches import Batch
from train.step import gradient

DEPTHS = (4, 96)


def seconds(layers: int) -> float:
    """Returns the seconds that lowering and compiling the gradient at a depth take."""
    section = base.get_config().model
    section.num_layers, section.window = layers, (None, 16)
    section.scan_layers = True
    config = ModelConfig.from_config(section, 512, 64)
    model = jax.eval_shape(lambda key: Transformer(config, key), jax.random.key(0))
    tokens = jnp.zeros((8, 64), jnp.int32)
    batch = Batch(tokens, tokens, jnp.ones((8, 64), bool))
    key, z_loss = jax.random.key(0), jnp.zeros(())
    # A fresh function each time: jit keeps what it compiled for an old one.
    compiled = jax.jit(lambda *arguments: gradient(*arguments))
    began = time.perf_counter()
    compiled.lower(model, batch, z_loss, key).compile()
    return time.perf_counter() - began


def _define_flags() -> None:
    flags.DEFINE_integer("rounds", 5, "Compilations of each depth.", lower_bound=1)
    flags.DEFINE_string("json", None, "Also write the figures to this file.")


def main() -> None:
    """Prints the seconds at both depths and their ratio."""
    jax.config.update("jax_enable_compilation_cache", False)
    seconds(DEPTHS[0])
    taken: dict[int, list[float]] = {depth: [] for depth in DEPTHS}
    for _ in range(flags.FLAGS.rounds):
        for depth, measured in taken.items():
            measured.append(seconds(depth))
    ratios = [deep / shallow for shallow, deep in zip(*taken.values(), strict=True)]
    figures = {
        **{f"seconds_{depth}_layers": statistics.median(taken[depth]) for depth in DEPTHS},
        "ratio": statistics.median(ratios),
        "ratio_lowest": min(ratios),
        "ratio_highest": max(ratios),
    }
    console = Console(highlight=False)
    for name, value in figures.items():
        console.print(f"{name:18} {value:.2f}")
    if flags.FLAGS.json:
        write_json(flags.FLAGS.json, figures)


if __name__ == "__main__":
    command.run(main, _define_flags)
