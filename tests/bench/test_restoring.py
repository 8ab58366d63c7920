"""No process holds the whole model while it restores its share."""

import json
import subprocess
import sys

import pytest

from tests.train.processes import running


@pytest.mark.slow
def test_a_restore_takes_little_more_than_a_process_shards(tmp_path):
    figures = tmp_path / "figures.json"
    cases = ["a run that goes on", "the same", "less rank"]
    command = [sys.executable, "-m", "bench.restoring", "--processes=4", f"--json={figures}"]
    done = subprocess.run(
        [*command, f"--only={','.join(cases)}"],
        cwd=running.ROOT,
        env=running.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(figures.read_text())["rows"]
    assert [row["case"] for row in rows] == cases
    for row in rows:
        assert row["own"] == pytest.approx(row["whole"] / 4, rel=0.01)
        # Half as much again are copies on their way; all of the model would be three times.
        assert row["peak"] - row["own"] < row["own"] < row["whole"] / 3, row
