"""Plans on forced host devices, against counts by hand."""

import json
import subprocess
import sys

import pytest

from configs.errors import UserError
from launch.plan.__main__ import plan
from tests.train import tiny

FIELDS = {
    "batch_size": 8,
    "length": 16,
    "model.num_layers": 2,
    "model.scan_layers": True,
    "model.norm": "rmsnorm",
    "mesh.fsdp": 1,
    "mesh.heads": 8,
    "model.num_heads": 8,
    "model.head_dim": 4,
    "model.mlp_dim": 64,
    "model.attention_backend": "dense",
}


def planned(**changes):
    return plan(tiny.config(FIELDS | changes), "cpu:8")[0]


def wire(figures, axis):
    return sum(w.bytes for w in figures.wire if axis in w.axes)


def test_products_agree_with_the_tally():
    figures = planned(**{"mesh.heads": 1, "mesh.fsdp": 8})
    # A device has one row of 16 tokens. Of pairs all are computed, the tally has those that are
    # seen; and the vocabulary is padded.
    shape = tiny.model_config(tiny.config(FIELDS))
    pairs = 2 * 2 * 8 * (shape.head_dim + shape.value_dim) * (16 * 16 - 16 * 17 / 2)
    padding = 2 * 16 * shape.embed_dim * (shape.padded_vocab_size - shape.vocab_size)
    assert figures.products == pytest.approx(figures.counted + 3 * (pairs + padding), rel=0.01)


def test_wire_over_heads_is_that_of_the_sums():
    figures = planned()
    config = tiny.config(FIELDS)
    tokens, width = config.batch_size * config.length, config.model.embed_dim
    residual = 4 * tokens * width
    sums = 2 * 2 * 2 * residual  # of layers, of attention and MLP, forward and backward
    sums += residual  # of rows that are looked up
    sums += residual + 3 * 4 * tokens  # of the loss: the residual's gradient; maxima, sums, labels
    # The squares of eight gradients, four of heads, two of the MLP, of both tables: for the clip,
    # and for the norm that is recorded.
    sums += 4 * 2 * 8
    ring = 2 * 7 / 8
    assert wire(figures, "heads") == ring * sums
    assert wire(figures, "fsdp") == 0


def test_activations_are_those_that_the_remat_policy_keeps():
    config = tiny.config(FIELDS)
    tokens, width = config.batch_size * config.length, config.model.embed_dim
    residual = 4 * tokens * width
    figures = {
        remat: planned(**{"model.remat": remat})
        for remat in ("none", "matmuls", "block", "offload")
    }
    kept = {remat: of_remat.memory.activations for remat, of_remat in figures.items()}
    layers = config.model.num_layers
    in_host = {remat: of_remat.host_traffic for remat, of_remat in figures.items()}
    assert in_host == dict(none=0, matmuls=0, block=0, offload=2 * layers * residual)
    # A block's input each, and a few of the last residual; the host's are not the device's.
    assert kept["block"] - kept["offload"] == layers * residual
    # Beside it queries, keys, values and what heads read, of one head a device, the hidden layer of
    # the MLP and the update of the attention.
    per_head = 2 * (config.model.head_dim + tiny.model_config(config).value_dim)
    products = 4 * tokens * (per_head + config.model.mlp_dim // 8)
    assert kept["matmuls"] - kept["block"] >= layers * products
    assert kept["none"] > kept["matmuls"]


@pytest.mark.parametrize(("remat", "accumulate"), [("matmuls", 1), ("matmuls", 4), ("block", 1)])
def test_memory_is_crossed_by_the_state_twice_and_by_matrices_in_each_pass(remat, accumulate):
    figures = planned(**{"optim.accumulate": accumulate, "model.remat": remat})
    m, config, again = figures.memory, tiny.config(FIELDS), remat == "block"
    # Of one head a device: queries, keys, values and what it reads; the MLP; two updates.
    per_head = 2 * (config.model.head_dim + tiny.model_config(config).value_dim)
    of_layer = per_head + config.model.mlp_dim // 8 + 2 * config.model.embed_dim
    made = again * 4 * config.batch_size * config.length * config.model.num_layers * of_layer
    # All is float32, so that a matrix is read as it is kept.
    of_microbatch = 2 * (m.gradients + m.activations + made) + (4 if again else 3) * m.parameters
    assert figures.traffic == 2 * (m.parameters + m.optimizer) + accumulate * of_microbatch


def test_a_sharded_residual_takes_less_memory():
    fields = {"batch_size": 64, "model.remat": "block"}
    whole, sharded = (planned(**fields, **{"mesh.residual": r}) for r in ("replicated", "sharded"))
    assert sharded.memory.parameters == whole.memory.parameters
    # Of each layer's input in float32 an eighth is left.
    inputs = 4 * 2 * 64 * 16 * tiny.config(FIELDS).model.embed_dim
    assert whole.memory.peak - sharded.memory.peak > 0.8 * 7 / 8 * inputs


def test_state_is_counted_by_kind():
    figures = planned(**{"mesh.heads": 1, "mesh.fsdp": 8, "optim.ema": 0.9, "optim.name": "adamw"})
    memory = figures.memory
    assert memory.optimizer == pytest.approx(2 * memory.parameters, abs=8)
    assert memory.averages == memory.parameters
    assert memory.gradients == memory.parameters
    narrow = {"model.param_dtype": "bfloat16", "optim.accumulate": 2}
    memory = planned(**narrow).memory
    assert memory.gradients == 2 * memory.parameters  # summed in float32
    assert memory.peak >= memory.parameters + memory.optimizer + memory.averages + memory.batches


@pytest.mark.parametrize(
    ("topology", "changes", "sentence"),
    [
        ("v9:4", {}, "--topology=v9:4 is no topology .*mean 'v4'.*such as v5p:4x4x8"),
        ("cpu:0", {}, "--topology=cpu:0 is no topology; write one of"),
        ("h100:64x64", {}, "--topology=h100:64x64 has 4,096 devices, and at most 2,048 can be"),
        ("cpu:8", {"mesh.heads": 3}, "config.mesh .* change a size"),
        ("cpu:8", {"length": 20, "mesh.residual": "sharded"}, "length = 20 .*mesh.residual"),
    ],
)
def test_what_cannot_be_planned_says_why(topology, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        plan(tiny.config(FIELDS | {"mesh.fsdp": -1} | changes), topology)


def test_the_command_prints_and_writes_its_figures(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "launch.plan", "--config=configs/induction.py"),
            *("--topology=h100:4", "--config.mesh.heads=2", "--config.model.num_kv_heads=1"),
            f"--json={tmp_path}/plan.json",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "plan.json").read_text())
    assert figures["mesh"] == dict(data=1, fsdp=2, heads=2, context=1)
    assert figures["memory"]["available"] == 80e9
    assert 1e8 < figures["compiler"]["memory"] < 24e9
    for words in ("peak", "computing at 989 TFLOP/s", "wire in all", "days for"):
        assert words in done.stdout
    assert "a GPU sends less than this wire" in done.stdout
    assert "model.num_kv_heads = 1 is not divisible by mesh.heads = 2" in done.stdout
