"""What a process may read at once, by hand; and that arrays are written in chunks."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import pytest

from model import reading
from model.saving import save
from tests.model import small


def saved(shape, chunk):
    stored = SimpleNamespace(chunk_shape=chunk)
    return SimpleNamespace(shape=shape, dtype=np.dtype(np.float32), storage_metadata=stored)


@pytest.mark.parametrize(
    ("shape", "chunk", "elements"),
    [
        ((1024, 16), (1024, 16), 1024 * 16),  # a shard of 128 rows needs the one chunk there is
        ((1024, 16), (128, 16), 2 * 128 * 16),  # two, where it may begin in the middle of one
        ((1024, 16), (100, 16), 3 * 100 * 16),
        ((1024, 16), (1024, 4), 1024 * 16),
        ((1024, 16), None, 1024 * 16),
    ],
)
def test_any_shard_alone_may_be_read(monkeypatch, shape, chunk, elements):
    sharding = jax.NamedSharding(small.mesh(dict(fsdp=8)), jax.P("fsdp"))
    wanted = {"a": jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)}
    assert reading.bytes_at_once({"a": saved(shape, chunk)}, wanted) == reading.AT_ONCE
    monkeypatch.setattr(reading, "AT_ONCE", 0)
    assert reading.bytes_at_once({"a": saved(shape, chunk)}, wanted) == 1 + 4 * elements


def test_arrays_are_written_in_chunks(monkeypatch, tmp_path):
    monkeypatch.setattr("model.stored.CHUNK", 1 << 10)
    save(tmp_path / "model", {"model": {"a": jnp.ones((64, 32)), "b": jnp.ones(8)}}, {}).result()
    found = ocp.checkpointables_metadata(tmp_path / "model").metadata["model"]
    sizes = {n: 4 * math.prod(x.storage_metadata.chunk_shape) for n, x in found.items()}
    assert sizes == {"a": 1 << 10, "b": 32}
