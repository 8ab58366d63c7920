"""The collectives of a training step, read in programs compiled for TPUs that are not here."""

import json

import pytest

from tests.model import on_tpu

# What is scattered backward: query, key and value_down; value_up; up; down.
GRADIENTS = ["bhtr,btd->hrd", "btd,bhtk->dhk", "btd,btf->df", "btf,btd->fd"]


def gathers(width, heads, mlp):
    """Returns the all-gathers of a layer's matrices: four of heads, two of the MLP."""
    every = ((4, [width, heads, 128]), (2, [width, mlp]))
    return [[["all-gather", "fsdp", "bf16", shape], count] for count, shape in every]


@pytest.mark.extras
def test_a_layer_gathers_each_matrix_once_and_scatters_each_gradient(extra):
    extra("libtpu")
    found = json.loads(on_tpu.run("tests.model.collectives_on_tpu"))
    alone = found["fsdp 8"]
    assert alone["forward"]["moved"] == gathers(256, 16, 8192)
    # Only the gains of two norms are summed whole.
    gains = [["all-reduce", "fsdp", "f32", [2048]], 2]
    assert alone["backward"]["moved"] == [*gathers(256, 16, 8192), gains]
    assert alone["forward"]["waited"] <= 1
    assert alone["backward"]["waited"] <= 2  # the gains among them
    assert alone["backward"]["scattered"] == GRADIENTS

    # Beside layers only the table, once to be looked up and once for logits, which do not move.
    table = ["fsdp", "f32", [32000, 2048]]
    of_table = [["all-gather", "fsdp", "bf16", [32000, 256]], ["reduce-scatter", *table]]
    gain = ["all-reduce", "fsdp", "f32", [2048]]
    assert alone["once"] == sorted([*of_table, *of_table, gain])

    # Rows of a device, tokens, width: the updates of attention and MLP forward; backward one
    # cotangent of queries, keys and values together, and one of the MLP.
    split = found["fsdp 4, heads 2"]
    sums = [["all-reduce", "heads", "bf16", [4, 1024, 2048]], 2]
    assert split["forward"]["moved"] == [*gathers(512, 8, 4096), sums]
    assert split["backward"]["moved"] == [*gathers(512, 8, 4096), gains, sums]
    assert split["backward"]["scattered"] == GRADIENTS
    # Of half of the vocabulary, and of a device's rows, what either axis moves by itself.
    table = ["fsdp", "f32", [16000, 2048]]
    of_table = [["all-gather", "fsdp", "bf16", [16000, 512]], ["reduce-scatter", *table]]
    of_tokens = ["all-reduce", "heads", "f32", [4 * 1024]]
    once = [*of_table, *of_table, gain, sums[0], sums[0], *[of_tokens] * 3]
    assert split["once"] == sorted(once)

    # With heads alone nothing moves but the residual, in the type of activations, and where it is
    # sharded the sums of the norms' gains.
    whole, shard = ["bf16", [16, 1024, 2048]], ["bf16", [16, 128, 2048]]
    for way in ("forward", "backward"):
        moved = found["heads 8, replicated"][way]
        assert moved["moved"] == [[["all-reduce", "heads", *whole], 2]]
        assert not moved["scattered"]
    # What is looked up, and the loss's gradient; of the vocabulary a maximum, a sum and the label's
    # logit a token.
    of_tokens = ["all-reduce", "heads", "f32", [16 * 1024]]
    residual = ["all-reduce", "heads", *whole]
    once = sorted([residual, residual, *[of_tokens] * 3])
    assert found["heads 8, replicated"]["once"] == once
    gathered, scattered = ["all-gather", "heads", *shard], ["reduce-scatter", "heads", *whole]
    sharded = found["heads 8, sharded"]
    assert sharded["forward"]["moved"] == [[gathered, 2], [scattered, 2]]
    gains = ["all-reduce", "heads", "f32", [2048]]
    assert sharded["backward"]["moved"] == [[gathered, 4], [gains, 2], [scattered, 2]]
    once = [gathered, gathered, scattered, scattered, gains, *[of_tokens] * 3]
    assert sharded["once"] == sorted(once)
