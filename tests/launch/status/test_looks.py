"""Which runs are found, and that one that does not answer keeps no other waiting."""

import threading
import time

import pytest

from configs.errors import UserError
from configs.parts import versions
from launch.status import found
from launch.status.found import RunFiles
from launch.status.looks import Looks
from launch.status.patience import AT_ONCE, Patience
from tests.launch.status import workdirs
from tests.launch.status.workdirs import build, session


def states(looks, seconds=20.0):
    return {report.workdir: report.state for report in looks.round(seconds)}


def test_runs_are_found_in_folders_of_runs_and_those_that_run_come_first(tmp_path):
    build(tmp_path / "a", session(state="finished"))
    build(tmp_path / "sweep" / "one", session(state="failed"))
    build(tmp_path / "sweep" / "two; $(x) 'y'", session())
    build(tmp_path / "sweep" / "two; $(x) 'y'" / "checkpoints" / "5")  # is in a run
    build(tmp_path / "too" / "deep" / "down", session())
    build(tmp_path / ".hidden", session())
    (tmp_path / "file").touch()
    assert list(states(Looks([str(tmp_path)])).items()) == [
        (f"{tmp_path}/sweep/two; $(x) 'y'", "running"),
        (f"{tmp_path}/a", "finished"),
        (f"{tmp_path}/sweep/one", "failed"),
    ]


def test_folders_are_told_in_their_order_and_one_that_is_not_there_is_not_begun(tmp_path):
    build(tmp_path / "a", session(state="finished"))
    words = [str(tmp_path / "none"), str(tmp_path / "a"), str(tmp_path / "none")]
    looks = Looks(words)
    assert list(states(looks).items()) == [(words[0], "not begun"), (words[1], "finished")]
    build(tmp_path / "none" / "b", session())
    assert list(states(looks)) == [f"{words[0]}/b", words[1]], "it has become a folder of runs"


def test_a_folder_that_cannot_be_one_is_refused(tmp_path):
    with pytest.raises(UserError, match="WORKDIR=ftp://host/run"):
        Looks(["ftp://host/run"])


def test_a_disk_that_does_not_answer_is_that_runs_trouble(tmp_path, monkeypatch):
    build(tmp_path / "a", session())
    build(tmp_path / "b", session())
    hangs, look = threading.Event(), RunFiles.look

    def maybe(files):
        if files.workdir.name == "a" and hangs.is_set():
            time.sleep(1.5)
        return look(files)

    monkeypatch.setattr(RunFiles, "look", maybe)
    looks = Looks([str(tmp_path)])
    assert set(states(looks).values()) == {"running"}
    hangs.set()
    build(tmp_path / "a", session(state="finished"))
    build(tmp_path / "b", session(state="finished"))
    a, b = looks.round(0.5)
    assert (a.workdir[-1], a.state, b.state) == ("a", "running", "finished")
    assert a.notes[-1].startswith("its disk or store has not answered for ")
    assert not b.notes
    hangs.clear()
    assert set(states(looks).values()) == {"finished"}, "the answer that came late counts"


def test_a_store_that_cannot_be_reached_is_that_runs_trouble(tmp_path, monkeypatch):
    build(tmp_path / "a", session())
    build(tmp_path / "b", session())

    def away(folder):
        if folder.name == "a":
            raise UserError(f"{folder} cannot be read (no route); see that it can be reached.")
        return versions(folder)

    monkeypatch.setattr(found, "versions", away)
    a, b = sorted(Looks([str(tmp_path)]).round(20), key=lambda report: report.workdir)
    assert (a.state, b.state, b.notes) == ("unknown", "running", [])
    assert a.notes == [f"{tmp_path}/a cannot be read (no route); see that it can be reached."]


def test_jobs_that_hang_are_not_begun_again_and_do_not_use_up_the_turns(monkeypatch):
    monkeypatch.setattr("launch.status.patience.TURN", 0.2)
    patience, over, begun = Patience(), threading.Event(), []

    def hang(name):
        begun.append(name)
        over.wait(20)
        return name

    hanging = {f"h{i}": lambda i=i: hang(f"h{i}") for i in range(AT_ONCE)}
    assert patience.results(hanging, 0.1) == {}
    found = patience.results(hanging | {"quick": lambda: 5}, 1.0)
    assert found.get("quick") == 5
    assert sorted(begun) == sorted(hanging)
    assert patience.late("h0") > 0.1
    assert patience.late("quick") == 0
    over.set()
    assert patience.results(hanging, 10) == {name: name for name in hanging}


def test_a_run_elsewhere_that_only_seems_silent_is_asked_again(tmp_path):
    elsewhere = [workdirs.ELSEWHERE | dict(seconds=0.1)]
    build(tmp_path / "a", session(ago=200, processes=elsewhere, beat=1))
    build(tmp_path / "b", session(state="finished"))
    looks = Looks([str(tmp_path)])
    first = looks.round(20)
    assert [report.doubtful for report in first] == [True, False]
    build(tmp_path / "a", session(ago=190, processes=elsewhere, beat=2))
    (again, other) = looks.round(20, [first[0].workdir])
    assert (again.state, again.doubtful, other.state) == ("running", False, "finished")
