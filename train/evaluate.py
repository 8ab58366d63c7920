"""The figures of a saved model on its held-out text.

``python -m train.evaluate --checkpoint=runs/toy``
"""

from configs import keyboard

if __name__ == "__main__":
    keyboard.end_at_once()  # the imports below take seconds

import jax
from absl import flags
from rich import box
from rich.console import Console
from rich.table import Table

from configs import checkpoint_flags, command
from configs.errors import UserError
from configs.figures import write_json
from model.axes import check_mesh, make_mesh, split_host
from model.compiled import keep_compiled
from model.manifest import EMA, MODEL
from text.reading import open_sources
from train.held_out import evaluate
from train.opening import open_together
from train.processes import joining
from train.processes.alike import check_alike, of_flags
from train.processes.group import Processes


def _define_flags() -> None:
    checkpoint_flags.define()
    joining.define_flags()
    flags.DEFINE_integer("batches", 0, "Batches to read; 0: all that is held out.", lower_bound=0)


def main() -> None:
    """Prints the figures of ``--checkpoint`` on its held-out text."""
    keep_compiled()
    with joining.join() as processes:
        _evaluate(processes)


def _evaluate(processes: Processes) -> None:
    given = checkpoint_flags.checkpoint()
    console = Console(highlight=False, soft_wrap=True, quiet=not processes.first)
    items = (EMA if flags.FLAGS.ema else MODEL,)
    saved = open_together(given, processes, items, say=console.print)
    config = saved.config
    sources = open_sources(config, saved.tokenizer)
    if saved.corpus not in (None, sources.digest):
        raise UserError(
            f"{saved.path} was trained on another text than data.path = {config.data.path!r} gives "
            "now, so what it held out is not known; restore the text."
        )
    check_alike(processes, of_flags("mesh", "host_devices", "ema", "batches"))
    split_host(checkpoint_flags.host_devices(config))
    mesh = make_mesh(checkpoint_flags.mesh_sizes(), field="--mesh")
    check_mesh(
        mesh, saved.model_config, config.batch_size // config.optim.accumulate, config.length
    )
    with jax.set_mesh(mesh):
        model = saved.load_model(mesh, ema=flags.FLAGS.ema)
        figures = evaluate(
            model, sources.validation, sources.tokenizer, config, mesh, flags.FLAGS.batches
        )
    if not processes.first:
        return
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
