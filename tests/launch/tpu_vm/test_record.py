"""What is remembered on disk."""

import pytest

from configs.errors import UserError
from launch.tpu_vm import record
from launch.tpu_vm.place import Place
from launch.tpu_vm.replies import Node, Queued

HERE = Place("heads", "us-west4-a", "example.com:my-project")


@pytest.fixture(autouse=True)
def _state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


def test_it_is_kept():
    shelf = record.disk(HERE)
    assert shelf.read() is None
    kept = record.new(HERE, 2)
    kept.attempts, kept.asked, kept.adopted = 3, 1.5, ["2026"]
    shelf.write(kept)
    assert shelf.read() == kept
    assert shelf.path.name == "heads.json"
    assert list(shelf.path.parent.iterdir()) == [shelf.path]
    other = record.new(Place("other", "us-east1-d", HERE.project), 1)
    record.disk(other.place).write(other)
    assert record.all_records(HERE.project) == [other, kept]
    assert record.all_records(HERE.project, "us-west4-a") == [kept]
    shelf.delete()
    shelf.delete()
    assert shelf.read() is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"form": 2}', '{"form": 1, "odd": 1}', "\0"])
def test_what_is_no_record(text):
    shelf = record.disk(HERE)
    shelf.write(record.new(HERE, 1))
    shelf.path.write_text(text)
    with pytest.raises(UserError, match="is no record of a TPU VM"):
        shelf.read()


def test_one_command_at_a_time():
    with (
        record.disk(HERE).held(),
        pytest.raises(UserError, match="is looked after by another"),
        record.disk(HERE).held(),
    ):
        pass
    with record.disk(HERE).held():
        pass


def test_whose_it_is():
    kept = record.new(HERE, 1)
    labels = {"launched-by": "manyheads", "manyheads-run": kept.run}
    assert kept.owns(Queued("heads", "ACTIVE", "1", "", labels=labels))
    assert not kept.owns(Queued("heads", "ACTIVE", "1", "", labels={"manyheads-run": kept.run}))
    assert not kept.owns(
        Node("heads", "READY", "1", "", labels=dict(labels, **{"manyheads-run": ""}))
    )
    assert not kept.owns(Node("heads", "READY", "1", ""))
    kept.adopted.append("1")
    assert kept.owns(Node("heads", "READY", "1", ""))
    assert record.new(HERE, 1).run != kept.run


def test_what_is_gone_is_remembered_for_a_while():
    kept = record.new(HERE, 1)
    for number in (*range(20), 19):
        kept.forget(str(number))
    kept.forget("")
    assert kept.gone == [str(number) for number in range(12, 20)]
