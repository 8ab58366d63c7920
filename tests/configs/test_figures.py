"""Figures are written as JSON that every reader takes."""

import json
import math

from configs.figures import write_json


def test_what_is_not_finite_becomes_null(tmp_path):
    figures = dict(loss=math.nan, rows=[dict(rate=math.inf, steps=3), (0.5, -math.inf)], name="a")
    write_json(str(tmp_path / "figures.json"), figures)

    def refuse(constant):
        raise AssertionError(constant)

    found = json.loads((tmp_path / "figures.json").read_text(), parse_constant=refuse)
    assert found == dict(loss=None, rows=[dict(rate=None, steps=3), [0.5, None]], name="a")
