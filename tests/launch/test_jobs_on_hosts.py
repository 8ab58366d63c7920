"""What is shown of jobs on hosts, and what a host that does not answer is to that."""

import json
import socket

import pytest
from absl import flags
from absl.testing import flagsaver

from configs.errors import UserError
from launch import jobs_on_hosts
from launch.hosts.host import Host
from tests.launch.hosts.local import HERE

GONE = Host("gone", "gone", ("sh", "-c", "echo 'No route to host' >&2; exit 255"))


@pytest.fixture
def given(tmp_path):
    """Returns the flags of a command, with a root that has a job that has ended."""
    values = flags.FlagValues()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flags, "FLAGS", values)
        flags.DEFINE_string("root", str(tmp_path), "", flag_values=values)
        flags.DEFINE_bool("dry_run", False, "", flag_values=values)
        flags.DEFINE_bool("now", False, "", flag_values=values)
        flags.DEFINE_string("logs", str(tmp_path / "logs"), "", flag_values=values)
        values.mark_as_parsed()
        folder = tmp_path / "jobs" / "one" / socket.gethostname()
        folder.mkdir(parents=True)
        state = dict(attempt="20261101-000000", state="ended", status=3, step=7)
        (folder / "state.json").write_text(json.dumps(state))
        (folder / "job.json").write_text(json.dumps(dict(config="a[b].py", workdir="/w")))
        (folder / "20261101-000000.log").write_text("what it said\n")
        with flagsaver.flagsaver():
            yield values


def test_jobs_are_listed_and_who_does_not_answer_is_named(given, capsys):
    with pytest.raises(SystemExit) as ended:
        jobs_on_hosts.list_jobs([HERE, GONE])
    assert ended.value.code == 1
    said = capsys.readouterr()
    (row,) = [line.split() for line in said.out.splitlines() if " one " in line]
    assert row == ["here", "one", "ended", "with", "3", "7", "a[b].py", "/w"]
    assert said.err == "gone cannot be reached (No route to host)\n"


def test_none_is_said(given, capsys, tmp_path):
    given.root = str(tmp_path / "other")
    jobs_on_hosts.list_jobs([HERE])
    assert capsys.readouterr().out == "no jobs on these hosts\n"


def test_what_has_ended_cannot_be_stopped_and_is_shown(given, capsys):
    with pytest.raises(UserError, match="no job one runs on these hosts; list shows"):
        jobs_on_hosts.stop([HERE], "one")
    jobs_on_hosts.logs([HERE], "one")
    shown = capsys.readouterr()
    assert shown.out == "[here] what it said\n"
    assert shown.err.endswith("the processes on here ended with exit status 3\n")
    with pytest.raises(UserError, match="no job two ran on these hosts"):
        jobs_on_hosts.logs([HERE], "two")
    with pytest.raises(UserError, match="gone cannot be reached .No route to host.; see"):
        jobs_on_hosts.logs([GONE], "one")
