"""What becomes of each parameter, read off declarations alone."""

import pytest

from configs.errors import UserError
from model.parameter import declarations
from model.surgery.plan import plan
from tests.model import small
from tests.model.variants.test_variants import VARIANTS
from tests.model.variants.test_variants import config as of_variant


def planned(old, new, **more):
    return plan(*(declarations(small.abstract(shape)) for shape in (old, new)), **more)


def paths(declared):
    return {one.path for one in declared}


@pytest.mark.parametrize("name", small.VARIANTS)
def test_every_kind_of_network_fits_itself(name):
    shape = small.config(**small.VARIANTS[name])
    found = planned(shape, shape)
    assert paths(found.same) == paths(declarations(small.abstract(shape)))
    assert (found.changed, found.new, found.left) == ((), (), ())


@pytest.mark.parametrize("name", VARIANTS)
def test_what_a_variant_adds_is_new_and_what_it_had_is_left(name):
    with_own, plain = of_variant(name), of_variant(name, attention="multihead")
    own = {f"blocks.0.attention.{added}" for added in VARIANTS[name][2]}
    assert paths(planned(plain, with_own).new) == own
    left = {family.name for family in planned(with_own, plain).left}
    assert left == {path.replace(".0.", ".*.") for path in own}


def test_layers_are_found_in_the_stacks_of_another_period():
    """Layers 0 to 3 in stacks of every second, of 6 layers in stacks of every third."""
    old = small.config(num_layers=4, window=(None, 3))
    new = small.config(num_layers=6, window=(None, 3, 5))
    found = {change.made[0].path: change for change in planned(old, new).changed}
    picks = [found[f"blocks.{i}.attention.query"].picks for i in range(3)]
    assert picks == [((0, 0), (1, 1)), ((1, 0),), ((0, 1),)]
    assert found["blocks.0.attention.query"].how == "all 4 layers, 2 new"
    one = planned(old, new, layers=1)
    assert "blocks.1.attention.query" in paths(one.new)
    assert {change.how for change in one.changed} == {"the first 1 of 4 layers, 5 new"}


def test_an_unembedding_begins_as_the_embedding_that_was_tied():
    found = planned(small.config(tie_embeddings=True), small.config())
    ((made,), (read,)) = found.changed[0].made, found.changed[0].read
    assert (made.path, read.name) == ("unembedding", "embedding")
    back = planned(small.config(), small.config(tie_embeddings=True))
    assert [family.name for family in back.left] == ["unembedding"]


def only(*names):
    return lambda path: path.rpartition(".")[2] in names


@pytest.mark.parametrize(
    ("old", "new", "chosen", "sentence"),
    [
        (
            {},
            dict(embed_dim=18),
            None,
            r"key as \(2, 12, 4, 6\), .* .*key as \(2, 18, 4, 6\).* axis embed;",
        ),
        ({}, dict(mlp_dim=24), None, r"mlp.down as \(2, 20, 12\).* axis mlp;.*restore_only"),
        ({}, dict(head_dim=8), None, r"attention.key as \(2, 12, 4, 6\).* axis head_dim;"),
        (
            {},
            dict(num_heads=2, num_kv_heads=2),
            only("query"),
            r"query as .* \(2, 12, 2, 6\).* axis heads;",
        ),
        (
            dict(value_map="full"),
            dict(num_heads=2, num_kv_heads=2),
            only("value_down", "value_up"),
            r"value_full as \(2, 4, 12, 12\).*value_up as \(2, 2, 5, 12\).* its axes;",
        ),
        ({}, dict(value_dim=3), only("value_up"), "value_up alone.* value_down and value_up"),
        ({}, {}, only("else"), "no parameter for this run"),
        (
            dict(attention="model.variants.differential:Differential", head_dim=8),
            dict(attention="model.variants.differential:Differential", head_dim=8, value_dim=3),
            None,
            r"mixed_norm.gain as \(2, 5\).* changes axis 1;",  # a norm over the rank
        ),
    ],
)
def test_what_no_rule_fits_is_refused_by_name(old, new, chosen, sentence):
    with pytest.raises(UserError, match=sentence):
        planned(small.config(**old), small.config(**new), **(dict(chosen=chosen) if chosen else {}))
