"""The record of a run."""

import json
import os

import pytest

from configs.errors import UserError
from train.metrics import NAME, Metrics, read


def rows(steps):
    return [dict(step=step, loss=step / 7, learning_rate=1e-5 * step) for step in steps]


def written(workdir, steps, start=0):
    metrics = Metrics(workdir, start, False)
    for row in rows(steps):
        metrics.write(row["step"], {name: row[name] for name in ("loss", "learning_rate")})
    metrics.sync()
    metrics.close()


def test_rows_come_back_with_the_same_bits(tmp_path):
    written(tmp_path, range(1, 6))
    assert read(tmp_path) == rows(range(1, 6))
    for line, row in zip(
        (tmp_path / NAME).read_text().splitlines(), rows(range(1, 6)), strict=True
    ):
        assert json.loads(line) == row


def test_a_run_without_a_record_has_no_rows(tmp_path):
    assert read(tmp_path) == []


def test_a_row_can_be_read_while_the_run_goes_on(tmp_path):
    metrics = Metrics(tmp_path, 0, False)
    metrics.write(1, dict(loss=2.0))
    assert read(tmp_path) == [dict(step=1, loss=2.0)]
    metrics.close()


@pytest.mark.parametrize("start", [0, 3, 9])
def test_going_on_drops_the_rows_past_the_saved_step_alone(tmp_path, start):
    written(tmp_path, range(1, 8))
    written(tmp_path, range(start + 1, 11), start)
    assert read(tmp_path) == rows(range(1, min(start, 7) + 1)) + rows(range(start + 1, 11))


@pytest.mark.parametrize("kept", [1, 20, -1])
def test_a_row_that_was_cut_off_is_left_out_and_the_next_begins_a_line(tmp_path, kept):
    written(tmp_path, range(1, 5))
    path = tmp_path / NAME
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], lines[3][:kept]]))
    assert read(tmp_path) == rows(range(1, 4))
    written(tmp_path, range(4, 6), start=3)
    assert read(tmp_path) == rows(range(1, 6))


def test_tensorboard_has_an_event_a_value_a_step(tmp_path):
    metrics = Metrics(tmp_path, 0, True)
    for row in rows(range(1, 4)):
        metrics.write(row["step"], dict(loss=row["loss"]))
    metrics.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert events.read_bytes().count(b"loss") == 3


def test_an_evaluation_joins_the_row_of_its_step(tmp_path):
    metrics = Metrics(tmp_path, 0, False)
    for step, figures in ((1, {"loss": 3.0}), (1, {"eval/loss": 2.5}), (2, {"loss": 2.0})):
        metrics.write(step, figures)
    metrics.close()
    assert read(tmp_path) == [{"step": 1, "loss": 3.0, "eval/loss": 2.5}, {"step": 2, "loss": 2.0}]


@pytest.mark.parametrize("name", [NAME, "tensorboard"])
def test_what_stands_in_the_way_is_named(tmp_path, name):
    if name == NAME:
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=rf"/{name} cannot be written \(.*move what is there away"):
        Metrics(tmp_path, 0, True)


def test_a_full_disk_is_told(tmp_path):
    metrics = Metrics(tmp_path, 0, False)
    for device in ("/dev/full", os.devnull):
        with open(device, "r+") as stands_in:
            os.dup2(stands_in.fileno(), metrics._file._file.fileno())
        if device != os.devnull:
            with pytest.raises(UserError, match="cannot be written .No space left on device"):
                metrics.write(1, {"loss": 1.0})
    metrics.close()
