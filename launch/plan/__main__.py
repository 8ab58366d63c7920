"""``python -m launch.plan --config=configs/gpt3.py:175b --topology=v5p:4x4x8``: what a run needs.

The real training step is compiled for chips that need not be here, and read: memory, operations,
wire, and the shortest step that the chip's published peaks allow.
"""

from configs import keyboard

if __name__ == "__main__":
    keyboard.end_at_once()  # the imports below take seconds

import dataclasses
import functools
import re
import resource
import sys
import time
from pathlib import Path

import jax
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from configs import command, resolved
from configs.chips import Chip
from configs.errors import UserError, first_line
from configs.figures import define_json, write_json
from configs.files import write_text
from configs.folders import user_cache
from launch.plan import step, topologies
from launch.plan.figures import Figures, figures
from launch.plan.picture import picture
from launch.plan.search import TooLarge, candidates, search
from launch.plan.search import render as render_search
from model.axes import check_mesh, make_mesh, notes
from model.config import ModelConfig
from model.tally import model_config as model_config_of
from train.step import make_optimizer


def plan(config: ConfigDict, topology: str) -> tuple[Figures, Chip | None]:
    """Compiles the step of a config for a topology; returns its figures, and the chip.

    Raises:
      UserError: the config is none, or its sizes do not divide over the mesh; or it does not fit
        the chips, with both figures.
    """
    config, model_config, mesh, chip = _laid_out(config, topology)
    documents = config.data.rows == "packed" and config.data.source != "repeats"
    optimizer = make_optimizer(config, model_config)
    state = step.abstract_state(config, model_config, optimizer, mesh)
    try:
        compiled = step.compiled_step(config, optimizer, state, mesh, documents)
    except Exception as error:  # the compiler's own
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise TooLarge(_too_large(error, topology)) from error
    return figures(config, model_config, state, compiled, mesh, chip, documents), chip


def _laid_out(
    config: ConfigDict, topology: str
) -> tuple[ConfigDict, ModelConfig, Mesh, Chip | None]:
    """Returns the config resolved, its model's, its mesh on the topology, and the chip."""
    resolved.check(config)
    shape = model_config_of(config)
    config = resolved.resolve(config, shape.vocab_size)
    devices, chip = topologies.devices(topology)
    mesh = make_mesh(config.mesh.to_dict(), devices=devices)
    rows = config.batch_size // config.optim.accumulate
    check_mesh(mesh, shape, rows, config.length, config.mesh.residual)
    return config, shape, mesh, chip


def _too_large(error: Exception, topology: str) -> str:
    """Says what is needed and what there is, as the compiler does."""
    size = r"([\d.]+[KMGT])"
    found = re.search(f"[Uu]sed {size} of {size} hbm", str(error)) or re.search(
        rf"\({size}\) exceeds available HBM \({size}\)", str(error)
    )
    needed = f"{found[1]}iB where a chip has {found[2]}iB" if found else first_line(error)
    return (
        f"--topology={topology} is too small, the step needs {needed}; take more chips, a larger "
        "mesh.fsdp, optim.accumulate, model.remat = 'block' or mesh.residual = 'sharded'."
    )


def render(f: Figures, chip: Chip | None, name: str, budget: float) -> Table:
    """Returns the table that the command prints.

    Args:
      f: the figures.
      chip: of the topology, or None.
      name: of the config and the topology.
      budget: tokens of a whole run.
    """
    table = Table(title=name, box=box.SIMPLE, show_edge=False, title_justify="left")
    table.add_column("of one chip and one step")
    table.add_column("figure", justify="right")
    m = f.memory
    rows = {
        "parameters": m.parameters,
        "optimizer": m.optimizer,
        "averages and master weights": m.averages,
        "batches": m.batches,
        "temporaries: gradients, activations, what is gathered": m.temporaries,
        "of these activations, kept for the backward pass": m.activations,
        "of these gradients, where all are held at once": m.gradients,
    }
    for words, size in rows.items():
        if size:
            table.add_row(words, decimal(size))
    if m.host:
        table.add_row("activations in the host's memory", decimal(m.host))
    most = f" of {decimal(int(m.available))}" if m.available else ""
    table.add_row("peak", f"{decimal(m.peak)}{most}", end_section=True)
    table.add_row("operations of matrix products", f"{f.products:.4g}")
    table.add_row("operations of the model, nothing recomputed", f"{f.counted:.4g}")
    if f.cycles:
        table.add_row("cycles without wire and kernels, the compiler's", f"{f.cycles:.4g}")
    table.add_section()
    for w in f.wire:
        if w.bytes >= 1e-3 * sum(other.bytes for other in f.wire):
            how = "beside computing" if w.asynchronous else "waited for"
            table.add_row(f"{w.kind} over {w.axes}, {how}", decimal(round(w.bytes)))
    total = sum(w.bytes for w in f.wire)
    table.add_row("wire in all", decimal(round(total)), end_section=True)
    if chip is not None:
        s = f.seconds
        table.add_row(f"computing at {chip.flops / 1e12:,.0f} TFLOP/s", f"{s['compute']:.3g} s")
        through = (
            f"memory, at {chip.bandwidth / 1e9:,.0f} GB/s and at least {decimal(round(f.traffic))}"
        )
        table.add_row(through, f"{s['memory']:.3g} s")
        if f.host_traffic:
            moved = decimal(round(f.host_traffic))
            table.add_row("host's memory, of which no speed is published", moved)
        waited = f"wire that is waited for, at {chip.wire / 1e9:,.0f} GB/s"
        table.add_row(waited, f"{s['wire_synchronous']:.3g} s")
        table.add_row("wire beside computing", f"{s['wire_asynchronous']:.3g} s")
        if "network" in s:
            network = f"network between slices, at {(chip.network or 0) / 1e9:,.3g} GB/s"
            table.add_row(network, f"{s['network']:.3g} s")
        shortest = "shortest step, an estimate: no chip reaches its peaks"
        if not chip.is_tpu:
            shortest = "step by these figures, whose wire is that of another compiler"
        table.add_row(shortest, f"{s['step']:.3g} s")
        rate = f.tokens / s["step"]
        most, least = (", at most", ", at least") if chip.is_tpu else ("", "")
        table.add_row(f"tokens a second, of all chips{most}", f"{rate:,.0f}")
        days = budget / rate / 86_400
        table.add_row(f"days for {budget:,.0f} tokens{least}", f"{days:,.2f}")
    return table


def _search(config: ConfigDict, topology: str) -> None:
    """Tries meshes, remat and microbatches, and prints a table of them, the best first.

    Raises:
      UserError: nothing divides, or nothing fits.
    """
    config.optim.accumulate = 1  # the config's own is not asked for
    resolved.check(config)
    shape = model_config_of(config)
    config = resolved.resolve(config, shape.vocab_size)
    devices, chip = topologies.devices(topology)
    ranked = candidates(config, shape, len(devices), chip)
    console = Console(width=None if Console().is_terminal else 110)

    def compile(config: ConfigDict) -> Figures:
        jax.clear_caches()
        found, _ = plan(config, topology)
        if chip is not None and found.memory.peak > chip.memory:
            raise TooLarge(f"the peak is {found.memory.peak:,} of {chip.memory:,.0f} bytes.")
        return found

    given = flags.FLAGS
    path = Path(given.results) if given.results else user_cache() / "plans.jsonl"
    progress = functools.partial(say, console)
    tried = search(config, ranked, compile, given.settings, path, topology, chip, progress)
    title = f"{command.config_source()} on {topology}, {len(devices)} devices"
    console.print(render_search(tried, chip, title))
    if tried[0].figures is None:
        raise UserError(f"nothing that was tried fits {topology}; take more chips.")
    say(console, f"the best: {tried[0].setting.flags}")
    if given.json:
        about = dict(config=command.config_source(), topology=topology)
        write_json(given.json, about | dict(settings=[dataclasses.asdict(one) for one in tried]))


def _draw(config: ConfigDict, topology: str, path: str) -> None:
    """Writes the picture of a config on a topology; nothing is compiled.

    Raises:
      UserError: the config's sizes do not divide over the mesh, or the file cannot be written.
    """
    config, shape, mesh, _ = _laid_out(config, topology)
    sizes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
    title = f"{command.config_source()} on {topology}: {sizes or 'one device'}"
    write_text(Path(path), picture(config, shape, mesh, title))
    print(f"written: {path}")


def _notes(f: Figures, topology: str) -> list[str]:
    """Returns what to know of the figures of a topology: a line each."""
    devices, chip = topologies.devices(topology)
    found = []
    if f.devices < len(devices):
        found.append(
            f"the mesh uses {f.devices} of {len(devices)} chips; a run on several hosts has to use "
            "all of theirs"
        )
    if chip is not None and not chip.is_tpu:
        found.append(
            "compiled by XLA for CPUs, which sums and gathers bfloat16 in float32, and all-reduces "
            "what a GPU reduce-scatters: a GPU sends less than this wire"
        )
    return found


def _peak_memory() -> int:
    """Returns the bytes that this process has held at most."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def say(console: Console, line: str) -> None:
    """Prints a line as it is."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _define_flags() -> None:
    command.define_config()
    flags.DEFINE_bool(
        "search", False, "Try meshes, remat and microbatches in place of the config's."
    )
    flags.DEFINE_integer("settings", 5, "--search: how many that fit to compile.", 1)
    flags.DEFINE_string("results", "", "--search: the file of what was compiled, to go on with.")
    flags.DEFINE_string("topology", None, "Chips, as v5p:4x4x8, v5e:16x16, h100:8 or cpu:8.")
    flags.DEFINE_string(
        "picture", "", "Write an SVG of what lies on which chip, and compile nothing."
    )
    define_json()


def main() -> None:
    """Prints what ``--config`` needs on ``--topology``."""
    config = command.config()
    if not flags.FLAGS.topology:
        raise UserError("--topology is missing; name chips, for example --topology=v5p:4x4x8.")
    if flags.FLAGS.picture and flags.FLAGS.search:
        raise UserError("--picture draws the config as it is, and --search changes it; give one.")
    if flags.FLAGS.picture:
        _draw(config, flags.FLAGS.topology, flags.FLAGS.picture)
        return
    if flags.FLAGS.search:
        _search(config, flags.FLAGS.topology)
        return
    began = time.monotonic()
    found, chip = plan(config, flags.FLAGS.topology)
    written = " ".join(f"{axis}={size}" for axis, size in found.mesh.items())
    source = command.config_source()
    title = f"{source} on {flags.FLAGS.topology}, {found.devices} devices: {written}"
    budget = config.steps * config.batch_size * config.length
    console = Console(width=None if Console().is_terminal else 110)
    console.print(render(found, chip, title, budget))
    for note in notes(found.mesh, model_config_of(config)) + _notes(found, flags.FLAGS.topology):
        say(console, note)
    seconds, taken = time.monotonic() - began, _peak_memory()
    say(console, f"compiled in {seconds:.0f} s and {decimal(taken)} of this host's memory")
    if flags.FLAGS.json:
        compiler = dict(seconds=seconds, memory=taken)
        about = dict(config=source, topology=flags.FLAGS.topology, compiler=compiler)
        write_json(flags.FLAGS.json, about | dataclasses.asdict(found))
    if found.memory.available and found.memory.peak > found.memory.available:
        print(f"the peak is above what a {chip.name if chip else ''} has", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    command.run(main, _define_flags)
