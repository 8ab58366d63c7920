"""Steps with saves and without are measured side by side."""

import json
import subprocess
import sys

import pytest

from tests.train.processes import running


def measured(*words):
    return subprocess.run(
        [sys.executable, "-m", "bench.saving", *words],
        cwd=running.ROOT,
        env=running.environment(),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_saves_are_counted_and_compared_with_none(tmp_path):
    figures = tmp_path / "figures.json"
    done = measured("--steps=8", "--every=4", "--rounds=2", f"--json={figures}")
    assert done.returncode == 0, done.stderr
    without, saving = json.loads(figures.read_text())["rows"]
    assert (without["every"], saving["every"], saving["saves"]) == (0, 4, 4)
    assert saving["bytes"] > 1e6
    assert saving["ratio"]["lowest"] <= saving["ratio"]["median"] <= saving["ratio"]["highest"]


@pytest.mark.slow
@pytest.mark.parametrize("every", ["0", "3", "x", "4,4"])
def test_steps_that_a_save_does_not_divide_are_refused(every):
    done = measured("--steps=8", f"--every={every}")
    assert done.returncode == 2
    assert f"--every={every} must be different whole numbers that divide --steps=8" in done.stderr
