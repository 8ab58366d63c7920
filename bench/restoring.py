"""``python -m bench.restoring``: a host's memory while a run begins from a saved model, or goes on.

A process holds its shards of the arrays on the host, where devices are the CPU's. What a
restore takes beyond them, at its peak, is what a host with accelerators needs in all. Each case is
restored by processes of their own; a tiny model with the same changes is restored first, so that
what compilers and libraries hold is not counted. Linux counts the peak (VmHWM), and glibc is told
to give back what is freed (``MALLOC_MMAP_THRESHOLD_``), which it would keep for later.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich import box
from rich.console import Console
from rich.table import Table

from bench.rounds import ROOT
from configs import base, command, resolved
from configs.errors import UserError
from configs.figures import define_json, write_json
from launch.group import free_port
from model.axes import make_mesh, split_host
from model.config import ModelConfig
from model.manifest import CONFIG, MODEL
from model.parameter import named_arrays
from model.saved import open_saved
from model.saving import save
from model.transformer import Transformer
from train.begun_from import start_from
from train.checkpoints import Checkpoints
from train.processes.group import Processes
from train.start import Start
from train.step import TrainState, make_optimizer

MIB = 1 << 20
SIZES = dict(data=1, fsdp=-1, heads=1, context=1)  # of the mesh

RUN = "a run that goes on"  # with its optimizer's state
# What differs from the saved model, by name.
CASES: dict[str, dict[str, Any]] = {
    RUN: {},
    "the same": {},
    "bfloat16": {"model.param_dtype": "bfloat16"},
    "fewer key/value heads": {"model.num_kv_heads": 4},
    "less rank": {"model.value_dim": 32},
    "more layers": {"model.num_layers": 12},
    "more tokens": {"model.vocab_size": 40_000},
    "full value maps": {"model.value_map": "full", "model.num_layers": 2},
}


def _define_flags() -> None:
    flags.DEFINE_integer("processes", 4, "How many restore together.", lower_bound=1)
    flags.DEFINE_integer("host_devices", 2, "Forced host devices of each.", lower_bound=1)
    flags.DEFINE_integer("saved_by", 8, "Forced host devices that the model is saved from.", 1)
    flags.DEFINE_list("only", list(CASES), f"Of {', '.join(CASES)}.")
    flags.DEFINE_integer("width", 1024, "The saved model's width.", lower_bound=64)
    flags.DEFINE_string("worker", "", "What a process of a measurement is told; for itself.")
    define_json()


def main() -> None:
    """Measures the cases that ``--only`` names and prints one table."""
    values = flags.FLAGS
    if values.worker:
        print(json.dumps(_work(json.loads(values.worker))), flush=True)
        return
    for name in values.only:
        if name not in CASES:
            raise UserError(f"{name!r} is not measured; choose of {', '.join(CASES)}.")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"tiny": 64, "model": values.width}
        for name, width in sizes.items():
            told = dict(save=f"{folder}/{name}", width=width, host_devices=values.saved_by)
            _run([told | dict(run=RUN in values.only)])
        for case in values.only:
            port = free_port()
            told = dict(
                case=case,
                warm=f"{folder}/tiny",
                folder=f"{folder}/model",
                sizes=sizes,
                host_devices=values.host_devices,
                processes=values.processes,
                coordinator=f"localhost:{port}",
            )
            found = _run([told | dict(index=i) for i in range(values.processes)])
            worst = max(found, key=lambda one: one["peak"] / one["own"])
            rows.append(dict(case=case, **worst))
    table = Table(box=box.SIMPLE, show_edge=False)
    table.add_column("restored")
    for name in ("whole MiB", "own shards MiB", "peak MiB", "peak / own"):
        table.add_column(name, justify="right")
    for row in rows:
        figures = (row["whole"], row["own"], row["peak"])
        ratio = f"{row['peak'] / row['own']:.2f}"
        table.add_row(row["case"], *(f"{figure / MIB:,.0f}" for figure in figures), ratio)
    table.caption = f"of {values.processes} processes, the one with the highest peak"
    Console(highlight=False).print(table)
    if values.json:
        write_json(values.json, dict(rows=rows))


def _run(told: list[dict]) -> list[dict]:
    """Runs a worker for each, and returns what they say."""
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "bench.restoring", f"--worker={json.dumps(one)}"],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"MALLOC_MMAP_THRESHOLD_": str(MIB)},
        )
        for one in told
    ]
    said = [worker.communicate()[0] for worker in workers]
    if any(worker.returncode for worker in workers):
        raise UserError("a process of the measurement failed; see above.")
    return [json.loads(text.splitlines()[-1]) for text in said]


def _config(width: int, changes: dict[str, Any]) -> ConfigDict:
    config = base.get_config()
    config.update_from_flattened_dict(
        {
            "model.embed_dim": width,
            "model.num_layers": 8,
            "model.num_heads": 16,
            "model.num_kv_heads": 8,
            "model.head_dim": 64,
            "model.vocab_size": 32_000,
            **changes,
        }
    )
    return resolved.resolve(config, config.model.vocab_size)


def _work(told: dict) -> dict:
    """Saves a model and a run, or restores one and returns the bytes that it took."""
    split_host(told["host_devices"])
    if "save" in told:
        config = _config(told["width"], {})
        shape = ModelConfig.from_config(config.model, 1, config.length)
        mesh, path = make_mesh(SIZES), Path(told["save"])
        with jax.set_mesh(mesh):
            model = jax.jit(lambda key: Transformer(shape, key))(jax.random.key(0))
            documents = {CONFIG: resolved.to_json(config)}
            save(path / "model", {MODEL: named_arrays(model)}, documents).result()
            if told["run"]:
                del model
                with Checkpoints(path, config, None) as checkpoints:
                    state = _start(config, mesh).first(checkpoints, None, Processes())
                    checkpoints.save(state, 1)
        return {}
    if told["processes"] > 1:
        jax.distributed.initialize(told["coordinator"], told["processes"], told["index"])
    restore = _go_on if told["case"] == RUN else _begin
    restore(Path(told["warm"]), _config(told["sizes"]["tiny"], CASES[told["case"]]))
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    arrays = restore(Path(told["folder"]), _config(told["sizes"]["model"], CASES[told["case"]]))
    peak = _status("VmHWM") - before
    leaves = jax.tree.leaves(arrays)
    own = sum(shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards)
    return dict(own=own, peak=peak, whole=sum(leaf.nbytes for leaf in leaves))


def _begin(folder: Path, config: ConfigDict) -> Transformer:
    """Restores the parameters alone, into a model that may differ."""
    config.checkpoint.restore_from = str(folder / "model")
    shape = ModelConfig.from_config(config.model, 1, config.length)
    mesh = make_mesh(SIZES)
    with jax.set_mesh(mesh):
        abstract = jax.eval_shape(lambda key: Transformer(shape, key), jax.random.key(0))
        model, _ = start_from(open_saved(folder / "model"), config, abstract, None, mesh)
        return jax.block_until_ready(model)


def _go_on(folder: Path, config: ConfigDict) -> TrainState:
    """Restores all of a run's state, having verified it without the help of other processes."""
    mesh, checkpoints = make_mesh(SIZES), Checkpoints(folder, config, None)
    with jax.set_mesh(mesh):
        start = _start(config, mesh)
        return jax.block_until_ready(start.at(checkpoints.find(), checkpoints, None, Processes()))


def _start(config: ConfigDict, mesh: Mesh) -> Start:
    shape = ModelConfig.from_config(config.model, 1, config.length)
    return Start(config, shape, make_optimizer(config, shape), mesh)


def _status(name: str) -> int:
    """Returns a figure of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


if __name__ == "__main__":
    command.run(main, _define_flags)
