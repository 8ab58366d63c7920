"""The collectives of a layer, read in programs compiled for TPUs that are not here."""

import json

import pytest

from tests.model import on_tpu

QUERY, UP, DOWN, VALUE_UP = [2048, 16, 128], [2048, 8192], [8192, 2048], [16, 128, 2048]


@pytest.mark.extras
def test_a_layer_gathers_each_matrix_once_and_scatters_each_gradient(extra):
    extra("libtpu")
    found = json.loads(on_tpu.run("tests.model.collectives_on_tpu"))
    alone = found["fsdp 8"]
    every = [[VALUE_UP, 1], [QUERY, 3], [UP, 1], [DOWN, 1]]
    for way in ("forward", "backward"):
        assert alone[way]["gathered"] == every
        assert alone[way]["synchronous"] <= 1
        assert alone[way]["synchronous"] + alone[way]["asynchronous"] == 6
    # Query, key and value_down; value_up; up; down.
    of_matrices = ["bhtr,btd->hrd", *["btd,bhtk->dhk"] * 3, "btd,btf->df", "btf,btd->fd"]
    assert alone["backward"]["scattered"] == of_matrices
    # Only the gains of two norms are summed whole.
    assert alone["backward"]["summed"] == [[[2048], 1]]
    assert alone["forward"]["summed"] == []

    split = found["fsdp 4, heads 2"]
    # Rows of a device, tokens, width: the updates of attention and MLP forward; backward one
    # cotangent of queries, keys and values together, and one of the MLP.
    residual = [4, 1024, 2048]
    assert split["forward"]["summed"] == [[residual, 2]]
    assert split["backward"]["summed"] == [[residual, 2], [[2048], 1]]
    assert set(split["backward"]["permuted"]) == set(of_matrices)

    # With heads alone nothing moves but the residual, in the type of activations, and where it is
    # sharded the sums of the norms' gains.
    whole, shard = ["bf16", [16, 1024, 2048]], ["bf16", [16, 128, 2048]]
    for way in ("forward", "backward"):
        assert found["heads 8, replicated"][way] == [[["all-reduce", "heads", *whole], 2]]
    gathers, scatters = (
        ["all-gather", "heads", *shard],
        ["reduce-scatter", "heads", *whole],
    )
    sharded = found["heads 8, sharded"]
    assert sharded["forward"] == [[gathers, 2], [scatters, 2]]
    gains = ["all-reduce", "heads", "f32", [2048]]
    assert sharded["backward"] == [[gathers, 4], [gains, 2], [scatters, 2]]
