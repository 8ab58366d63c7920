"""The newest rows of a record: what is read of it, and that it is what the whole record says."""

import itertools
import json
import os
import random
import statistics

import pytest

from configs.parts import versions
from launch.status import rows as module
from launch.status.rows import KEPT, Rows
from tests.launch.status import workdirs
from train import metrics


def look(record, folder):
    record.look(versions(folder).get(metrics.NAME))
    return record


def append(folder, *lines):
    with open(folder / metrics.NAME, "a", encoding="utf-8") as file:
        file.write("".join(lines))


def text(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def check(record, folder):
    """Compares with what the whole record says, read by training's own reader."""
    whole = metrics.read(folder)
    trained = [row for row in whole if "loss" in row]
    last = trained[-KEPT:]
    assert record.step() == (trained[-1]["step"] if trained else None)
    assert record.loss() == (trained[-1]["loss"] if trained else None)
    rates = [row["tokens_per_second"] for row in last]
    assert record.tokens_per_second() == (statistics.median(rates) if rates else None)
    evaluations = [row["eval/loss"] for row in whole if "eval/loss" in row]
    assert record.held_out == (evaluations[-1] if evaluations else None)


def test_rows_that_come_in_any_pieces_are_read_once_each(tmp_path, monkeypatch):
    read, part = [], module.part

    def counted(path, start, stop):
        read.append((start, stop))
        return part(path, start, stop)

    monkeypatch.setattr(module, "part", counted)
    draw, record = random.Random(0), Rows(tmp_path / metrics.NAME)
    look(record, tmp_path)
    check(record, tmp_path)
    all_text = text(workdirs.rows(300, 300, rate=1000.0, hosts=(0.1, 0.2)))
    place = 0
    while place < len(all_text):
        cut = place + draw.randint(1, 900)
        append(tmp_path, all_text[place:cut])
        place = cut
        look(record, tmp_path)
        look(record, tmp_path)
    check(record, tmp_path)
    assert record.host_seconds() == {0: 0.1, 1: 0.2}
    assert sum(stop - start for start, stop in read) == len(all_text)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(read))


def test_of_a_large_record_the_end_is_read_until_an_evaluation_is_in_it(tmp_path, monkeypatch):
    read, part = [], module.part

    def counted(path, start, stop):
        read.append(stop - start)
        return part(path, start, stop)

    monkeypatch.setattr(module, "part", counted)
    trained = [row for row in workdirs.rows(60_000, 60_000) if "loss" in row]
    (tmp_path / metrics.NAME).write_text(text([{"step": 1, "eval/loss": 2.5}, *trained]))
    size = os.path.getsize(tmp_path / metrics.NAME)
    assert size > 2 << 20
    record = look(Rows(tmp_path / metrics.NAME), tmp_path)
    assert (record.step(), record.held_out) == (60_000, 2.5)
    assert read == [module.FIRST, 8 * module.FIRST, size]
    read.clear()
    append(tmp_path, text([{"step": 60_000, "eval/loss": 1.5}]))
    assert look(record, tmp_path).held_out == 1.5
    assert sum(read) < 100
    read.clear()
    assert look(Rows(tmp_path / metrics.NAME), tmp_path).held_out == 1.5
    assert read == [module.FIRST]


def test_a_record_that_a_run_wrote_anew_is_read_anew(tmp_path):
    record = Rows(tmp_path / metrics.NAME)
    append(tmp_path, text(workdirs.rows(300)))
    look(record, tmp_path)
    again = tmp_path / "part"  # as a run that goes on from step 200 does
    again.write_text(text(workdirs.rows(200)) + text(workdirs.rows(290, 90, rate=5.0)))
    os.replace(again, tmp_path / metrics.NAME)
    look(record, tmp_path)
    assert (record.step(), record.tokens_per_second()) == (290, 5.0)
    os.truncate(tmp_path / metrics.NAME, 0)
    assert look(record, tmp_path).step() is None
    (tmp_path / metrics.NAME).unlink()
    assert look(record, tmp_path).step() is None


@pytest.mark.parametrize("last", ['{"step": 9, "los', "\0\0\0\0", "[1, 2]\n", '{"step": -4}\n'])
def test_a_line_that_is_cut_off_or_none_is_passed_over(tmp_path, last):
    append(tmp_path, text(workdirs.rows(8)), last)
    assert look(Rows(tmp_path / metrics.NAME), tmp_path).step() == 8


def test_a_loss_that_is_no_number_leaves_the_one_before(tmp_path):
    append(tmp_path, text(workdirs.rows(8)), '{"step": 9, "loss": null}\n')
    record = look(Rows(tmp_path / metrics.NAME), tmp_path)
    assert (record.step(), record.loss()) == (9, 1 / 8)
