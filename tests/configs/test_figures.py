"""Figures are written as JSON that every reader takes."""

import json
import math
import subprocess
import sys

import pytest

from configs.figures import write_json


def test_what_is_not_finite_becomes_null(tmp_path):
    figures = dict(loss=math.nan, rows=[dict(rate=math.inf, steps=3), (0.5, -math.inf)], name="a")
    write_json(str(tmp_path / "figures.json"), figures)

    def refuse(constant):
        raise AssertionError(constant)

    found = json.loads((tmp_path / "figures.json").read_text(), parse_constant=refuse)
    assert found == dict(loss=None, rows=[dict(rate=None, steps=3), [0.5, None]], name="a")


@pytest.mark.parametrize(
    ("name", "why"),
    [("none/figures.json", "there is no such folder"), (".", "it is a folder")],
)
def test_a_file_that_cannot_be_written_is_found_before_the_work(tmp_path, name, why):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "model.tally",
            "--config=configs/toy.py",
            f"--json={tmp_path}/{name}",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert not done.stdout
    assert done.stderr == (
        f"error: --json={tmp_path}/{name} cannot be written ({why}); name a file in a folder that "
        "exists and that you may write.\n"
    )
