"""The picture has every chip once, with what the mesh gives it."""

import math
import xml.etree.ElementTree as ET

import pytest

from launch.plan.picture import picture
from tests.train import tiny

SVG = "{http://www.w3.org/2000/svg}"


def drawn(sizes, **changes):
    config = tiny.config({"length": 16, **changes})
    shape, mesh = tiny.model_config(config), tiny.mesh(**sizes)
    root = ET.fromstring(picture(config, shape, mesh, "a < b"))
    words = [text.text for text in root.iter(f"{SVG}text")]
    chips = [rect for rect in root.iter(f"{SVG}rect") if rect.find(f"{SVG}title") is not None]
    return words, chips


def test_every_chip_is_drawn_once_in_the_colour_of_its_heads():
    words, chips = drawn(dict(fsdp=2, heads=4))
    titles = {chip.find(f"{SVG}title").text: chip.get("fill") for chip in chips}
    assert len(chips) == len(titles) == len(set(titles.values())) == 8
    assert len({(chip.get("x"), chip.get("y")) for chip in chips}) == 8
    assert "a < b" in words
    for label in ("heads 0-1", "heads 6-7", "sequences 0-7", "sequences 8-15"):
        assert label in words
    assert any("all 2 layers: 2 of 8 heads, and 1/2 of their matrices" in text for text in words)
    assert "Down a column, each sum over heads is an all-reduce." in words


def test_a_ring_gives_each_chip_two_pieces_of_the_sequence():
    words, _ = drawn(dict(heads=2, context=4), **{"mesh.context_attention": "ring"})
    assert {"heads 0-3, tokens 0-1 and 14-15", "heads 4-7, tokens 6-7 and 8-9"} <= {*words}
    words, _ = drawn(dict(context=4), **{"mesh.context_attention": "all_to_all"})
    assert "heads 0-7, tokens 4-7" in words


@pytest.mark.parametrize(
    ("sizes", "changes", "line"),
    [
        (dict(context=8), {}, "It computes 16 of 16 sequences a step, 2 of 16 tokens each."),
        (dict(data=4, heads=2), {"optim.accumulate": 2}, "4 of 16 sequences a step, in 2 micro"),
        (dict(heads=8), {"mesh.residual": "sharded"}, "is scattered over tokens and gathered"),
        (dict(heads=4), {"model.num_kv_heads": 2}, "The 2 groups of keys are replicated"),
        (dict(data=8), {}, "8 of 8 heads; 8 replicas."),
        ({}, {}, "Each chip has all 2 layers: 8 of 8 heads."),
    ],
)
def test_the_lines_below_say_what_the_mesh_does(sizes, changes, line):
    words, chips = drawn(sizes, **changes)
    assert any(line in text for text in words), words
    assert len(chips) == math.prod(sizes.values())
