"""Declarations: names, shapes, axes, and the scale at which parameters start."""

import math

import jax
import numpy as np
import pytest
from flax import nnx

from configs.errors import UserError
from model.axes import ShardingRules
from model.mlp import MLP
from model.parameter import Declare, declarations, parameters
from model.transformer import Transformer
from tests.model import reference, small


def by_path(**changes):
    return {d.path: d for d in declarations(small.abstract(small.config(**changes)))}


def test_names_shapes_and_axes():
    found = by_path(num_layers=4, window=(None, 3), num_kv_heads=2, mlp="swiglu")
    expected = {
        "attention.query": ((2, 12, 4, 6), ("layers", "embed", "heads", "head_dim")),
        "attention.key": ((2, 12, 2, 6), ("layers", "embed", "kv_heads", "head_dim")),
        "attention.value_down": ((2, 12, 2, 5), ("layers", "embed", "kv_heads", "value_dim")),
        "attention.value_up": ((2, 4, 5, 12), ("layers", "heads", "value_dim", "embed")),
        "attention_norm.gain": ((2, 12), ("layers", None)),
        "mlp_norm.gain": ((2, 12), ("layers", None)),
        "mlp.up": ((2, 12, 20), ("layers", "embed", "mlp")),
        "mlp.gate": ((2, 12, 20), ("layers", "embed", "mlp")),
        "mlp.down": ((2, 20, 12), ("layers", "mlp", "embed")),
    }
    whole = {
        "embedding": ((128, 12), ("vocab", "embed")),
        "unembedding": ((128, 12), ("vocab", "embed")),
        "norm.gain": ((12,), (None,)),
    }
    expected = {f"blocks.{i}.{k}": v for i in range(2) for k, v in expected.items()} | whole
    assert {path: (d.shape, d.axes) for path, d in found.items()} == expected


def test_kinds():
    kinds = {
        path.rpartition(".")[2]: d.kind
        for path, d in by_path(biases=True, norm="layernorm", positions="learned").items()
    }
    assert kinds["query"] == kinds["value_up"] == kinds["down"] == "matrix"
    assert kinds["embedding"] == kinds["positions"] == "embedding"
    assert kinds["unembedding"] == "unembedding"
    assert kinds["gain"] == "gain"
    biases = {name for name, kind in kinds.items() if kind == "bias"}
    assert biases == {
        *("query_bias", "key_bias", "value_bias", "update_bias", "up_bias", "down_bias", "bias")
    }


def test_rows_and_columns_of_one_matrix():
    found = by_path(value_map="full")
    query, full = found["blocks.0.attention.query"], found["blocks.0.attention.value_full"]
    assert (query.rows, query.columns) == ((1,), (3,))
    assert (full.rows, full.columns) == ((2,), (3,))
    up = by_path()["blocks.0.attention.value_up"]
    assert (up.rows, up.columns) == ((2,), (3,))
    assert (up.size, up.length("heads"), up.length("mlp")) == (2 * 4 * 5 * 12, 4, 1)


def test_declarations_of_real_and_abstract_models_agree():
    config = small.config(biases=True)
    assert declarations(small.abstract(config)) == declarations(small.drawn(config))


@pytest.fixture(scope="module")
def start():
    """A network large enough to measure a standard deviation to 2%, as it starts."""
    config = small.config(
        embed_dim=64,
        num_heads=4,
        head_dim=16,
        value_dim=8,
        mlp_dim=48,
        num_layers=4,
        window=(None, 3),
        biases=True,
    )
    draw = jax.jit(lambda key: Transformer(config, key))
    return reference.weights(draw(jax.random.key(0)))


@pytest.mark.parametrize(
    ("path", "fan_in", "depth"),
    [
        ("attention.query", 64, 1),
        ("attention.key", 64, 1),
        ("attention.value_down", 64, 1),
        ("attention.value_up", 4 * 8, 8),  # 4 heads of rank 8 are summed; 4 layers make 8 updates
        ("mlp.up", 64, 1),
        ("mlp.down", 48, 8),
    ],
)
def test_scale_of_matrices(start, path, fan_in, depth):
    value = start[f"blocks.0.{path}"]
    error = 5 / math.sqrt(2 * value.size)
    assert value.std() == pytest.approx(math.sqrt(0.4 / fan_in / depth), rel=error)
    assert abs(value.mean()) < 5 * value.std() / math.sqrt(value.size)


def test_a_full_value_map_starts_as_large_as_the_product():
    config = small.config(embed_dim=64, num_layers=1, value_map="full", mlp="none")
    draw = jax.jit(lambda key: Transformer(config, key))
    full = reference.weights(draw(jax.random.key(0)))["blocks.0.attention.value_full"]
    product = math.sqrt(5 * (0.4 / 64) * (0.4 / (4 * 5) / 2))
    assert full.std() == pytest.approx(product, rel=0.03)


def test_gains_start_at_1_and_biases_at_0(start):
    ones = {path for path, value in start.items() if (value == 1).all()}
    zeros = {path for path, value in start.items() if (value == 0).all()}
    assert ones == {path for path in start if path.endswith("gain")}
    assert zeros == {path for path in start if path.endswith("bias")}


def test_no_two_parameters_or_layers_are_drawn_alike(start):
    drawn = []
    for value in start.values():
        if value.std() > 0:
            stacked = value.ndim > 2
            drawn += [layer.ravel()[:64] / layer.std() for layer in (value if stacked else [value])]
    likeness = np.corrcoef(np.stack(drawn)) - np.eye(len(drawn))
    assert np.abs(likeness).max() < 0.7


def test_a_parameter_depends_on_its_key_and_name_alone():
    def draw(seed, *names):
        declare = Declare(jax.random.key(seed), ShardingRules(), "float32").inside("attention")
        made = {n: declare.matrix(n, (3, 2), ("embed", "mlp"), "embed") for n in names}
        return {n: np.asarray(p[...]) for n, p in made.items()}

    one, both, other = draw(0, "a"), draw(0, "b", "a"), draw(1, "a")
    np.testing.assert_array_equal(one["a"], both["a"])
    assert (both["b"] != both["a"]).all()
    assert (other["a"] != one["a"]).all()


def test_parameters_come_in_the_order_of_the_leaves():
    model = small.drawn(small.config(biases=True, num_layers=4, window=(None, 3)))
    values = [np.asarray(param[...]) for param in parameters(model).values()]
    for value, leaf in zip(values, jax.tree.leaves(model), strict=True):
        np.testing.assert_array_equal(value, leaf)


@pytest.mark.parametrize(
    ("axes", "contracted", "stacked"),
    [
        (("heads", "talking"), "heads", "heads"),
        (("heads", "talking"), "heads talking", ""),
        (("heads", "talking"), "", ""),
        (("heads", "embed"), "embed", "heads"),
        (("heads", "embed"), "width", ""),
        (("heads", "embed"), "embed", "layers"),
    ],
)
def test_a_matrix_without_rows_or_columns_is_refused(axes, contracted, stacked):
    declare = Declare(jax.random.key(0), ShardingRules(), "float32")
    with pytest.raises(UserError, match="the matrix talk .* no rows or no columns"):
        declare.matrix("talk", (4, 4), axes, contracted, stacked)


def test_what_contracts_heads_may_be_a_matrix_or_a_stack():
    found = {d.path: d for d in declarations(small.abstract(small.config()))}
    up = found["blocks.0.attention.value_up"]
    assert (up.stacked, up.rows, up.columns) == (("layers", "heads"), (2,), (3,))
    talking = small.config(attention="model.variants.talking:Talking")
    found = {d.path: d for d in declarations(small.abstract(talking))}
    talk = found["blocks.0.attention.talk"]
    assert (talk.stacked, talk.rows, talk.columns) == (("layers",), (1,), (2,))


@pytest.mark.parametrize(
    ("second", "axes", "words"),
    [
        ("first", ("heads",), "declared twice"),
        ("second", ("head",), "axis 'head' .*mean 'heads'"),
        ("second", ("heads", "embed"), "one for each dimension"),
    ],
)
def test_a_declaration_that_must_be_a_mistake_is_refused(second, axes, words):
    declare = Declare(jax.random.key(0), ShardingRules(), "float32")
    declare.gain("first", (4,), ("heads",))
    declare.inside("part").gain("first", (4,), ("heads",))
    with pytest.raises(UserError, match=f"the parameter {second}.* {words}"):
        declare.bias(second, (4,), axes)
    with pytest.raises(UserError, match=r"the parameter none \(4, 0\) .* none of size 0"):
        declare.gain("none", (4, 0), ("heads", "width"))


class Undeclared(MLP):
    """Makes its parameters by Flax's own layers."""

    def __init__(self, config, declare, compute):
        super().__init__(config, declare, compute)
        self.more = nnx.Linear(config.embed_dim, 3, rngs=nnx.Rngs(0))


def test_parameters_that_are_not_declared_are_refused():
    with pytest.raises(UserError, match=r"blocks.0.mlp.more.\w+ is not declared; make .*matrix"):
        declarations(small.abstract(small.config(mlp=f"{__name__}:Undeclared")))
