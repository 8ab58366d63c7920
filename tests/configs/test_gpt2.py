"""The four sizes against the parameter counts of the released weights."""

import pytest

from configs import gpt2
from configs.errors import UserError
from configs.resolved import check

# Counts of the released checkpoints, biases and norms included.
RELEASED = {
    "small": 124_439_808,
    "medium": 354_823_168,
    "large": 774_030_080,
    "xl": 1_557_611_200,
}


@pytest.mark.parametrize("size", RELEASED)
def test_parameters_are_the_releases(size: str):
    config = gpt2.get_config(size)
    check(config)
    model = config.model
    width, mlp = model.embed_dim, model.mlp_dim
    assert width == 64 * model.num_heads
    norm = 2 * width
    block = 4 * (width * width + width) + (2 * width * mlp + mlp + width) + 2 * norm
    embeddings = (model.vocab_size + config.length) * width
    assert model.num_layers * block + embeddings + norm == RELEASED[size]


def test_unknown_size_names_the_sizes():
    with pytest.raises(UserError, match=r"'huge'.*small, medium, large, xl"):
        gpt2.get_config("huge")
