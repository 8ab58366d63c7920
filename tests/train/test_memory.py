"""What no memory holds is refused with its bytes; whatever might fit is not."""

import pytest

from configs.errors import UserError
from tests.train import tiny
from train import memory
from train.memory import check_memory


def check(changes=None):
    config = tiny.config(changes)
    check_memory(config, tiny.model_config(config), tiny.mesh())


def test_the_host_has_memory():
    assert 2**28 < memory.memory(tiny.mesh()) < 2**50


# 128 padded tokens twice; two layers of 2 gains, 8 heads of 4 + 4 + 3 + 3, and an MLP; a gain.
PARAMETERS = 2 * 128 * 16 + 2 * (2 * 16 + 8 * 16 * (4 + 4 + 3 + 3) + 2 * 16 * 24) + 16
# 5 steps of 16 sequences of 8: token, label, counted; one microbatch of two with 16 float32.
BATCHES = 5 * 16 * 8 * 9 + 8 * 8 * 16 * 4


@pytest.mark.parametrize(
    ("needed", "sentence"),
    [
        (4 * PARAMETERS, f"take {4 * PARAMETERS:,} bytes, and there are {{}}; lower model"),
        (BATCHES, "batch_size = 1000 .* take 360,000 bytes as tokens .* 256,000 as"),
    ],
)
def test_a_byte_too_little_is_refused(monkeypatch, needed, sentence):
    changes = {"optim.accumulate": 2}
    if needed == BATCHES:
        changes |= {"batch_size": 1000}
        needed = BATCHES // 16 * 1000
    monkeypatch.setattr(memory, "memory", lambda mesh: needed)
    check(changes)
    monkeypatch.setattr(memory, "memory", lambda mesh: needed - 1)
    with pytest.raises(UserError, match=sentence.format(f"{needed - 1:,}")):
        check(changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"model.embed_dim": 500_000_000},
        {"model.num_layers": 2 * 10**9},
        {"batch_size": 99_999_999_999},
        {"length": 2_000_000_000},
    ],
    ids=str,
)
def test_absurd_sizes_are_refused_at_once(changes):
    with pytest.raises(UserError, match=r"take [0-9]+(,[0-9]{3}){4,} bytes"):
        check(changes)
