"""Traces cover the steps that are named, and open as what XProf and Perfetto read."""

import gzip
import json

from rich.console import Console

from tests.train import tiny
from train.loop import train

FIELDS = {
    "steps": 6,
    "steps_per_call": 4,
    "log.eval_batches": 1,
    "model.num_layers": 1,
    "model.mlp": "none",
}


def test_a_run_traces_the_steps_that_are_named(tmp_path):
    train(tiny.config(FIELDS | {"log.profile": (3, 5)}), tmp_path, Console(quiet=True))
    (folder,) = (tmp_path / "profile" / "plugins" / "profile").iterdir()
    (of_xprof,) = folder.glob("*.xplane.pb")
    assert of_xprof.stat().st_size > 1000
    with gzip.open(folder / "perfetto_trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    # Calls take steps 1 and 2, 3 to 5, and 6: one of them is in the trace.
    steps = [event["args"]["step_num"] for event in events if event.get("name") == "train"]
    assert steps == ["3"]


def test_a_trace_changes_no_step_and_is_written_when_the_run_ends_early(tmp_path):
    losses = []
    for name, steps in (("plain", ()), ("traced", (6, 99))):
        changes = FIELDS | {"log.profile": steps}
        losses.append(train(tiny.config(changes), tmp_path / name, Console(quiet=True)).loss)
    assert losses[0] == losses[1]
    assert list((tmp_path / "traced").glob("profile/**/perfetto_trace.json.gz"))
    assert not (tmp_path / "plain" / "profile").exists()
