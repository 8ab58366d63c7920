"""The processes of a run on one machine: what ends them, and how that is told."""

import io
import os
import signal
import subprocess
import sys

import pytest

from launch import group
from launch.group import Group, Share, Start
from tests.train.processes import running


def sleeper(code):
    return subprocess.Popen([sys.executable, "-c", code], text=True)


def test_what_gloo_says_is_not_shown_whole_or_in_pieces():
    said = (
        "[Gloo] Rank 0 is connected to 3 peer ranks. Expected number of connected peer ranks is : "
        "3\n"
        "[Gloo] Rank [Gloo] Rank 01 is connected to  is connected to 3\n"
        " 3 peer ranks. Expected number of connected peer ranks is : 3\n"
        "0\n"
        "step 3/100  loss 4.2\n"
        "3\n"
    )
    shown = io.StringIO()
    group._show(1, io.StringIO(said), shown)
    assert shown.getvalue() == "process 1: step 3/100  loss 4.2\nprocess 1: 3\n"


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_a_process_whose_parent_was_killed_already_ends():
    none = 1 << 23  # above what Linux gives
    for parent, expected in ((none, (128 + signal.SIGTERM, "")), (os.getpid(), (0, "goes on\n"))):
        code = f"from launch import group; group._end_with_parent({parent}); print('goes on')"
        (ended,) = running.ended(
            [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)], 30
        )
        assert (ended.status, ended.out) == expected


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        (("pass", "pass"), (0, "")),
        (("pass", "import sys; sys.exit(3)"), (3, "")),
        (
            (
                "import time; time.sleep(60)",
                "import os; os.kill(os.getpid(), 9)",
                "import time, signal as s; s.signal(15, s.SIG_IGN); time.sleep(60)",
            ),
            (128 + 9, "process 1 was ended by SIGKILL"),
        ),
    ],
)
def test_the_first_that_fails_gives_the_status_and_none_is_left(codes, expected):
    processes = [sleeper(code) for code in codes]
    assert group.wait(processes, patience=1.0, grace=2.0) == expected
    statuses = [process.poll() for process in processes]
    assert None not in statuses
    if len(codes) == 3:
        assert statuses == [-signal.SIGTERM, -signal.SIGKILL, -signal.SIGKILL]


def test_processes_that_cannot_be_started_are_a_crash():
    started = []

    def start(*arguments):
        if started:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        started.append(sleeper("import time; time.sleep(60)"))
        return started[0]

    status, reason, *_ = Group(Share(2), start).run()
    expected = "the processes could not be started (Resource temporarily unavailable)"
    assert (status, reason, started[0].returncode) == (1, expected, -signal.SIGKILL)


SAYS = """
import os, sys, time
print(*[word for word in sys.argv[1:] if "=" in word], os.environ.get("ADDED"), flush=True)
if "--process_id=3" in sys.argv:
    time.sleep(0.5)
    os.kill(os.getpid(), 9)
time.sleep(1)
"""


# Of jax, where another test has loaded it: a launcher has not.
@pytest.mark.filterwarnings("ignore:os.fork")
def test_a_share_of_a_run_is_numbered_as_the_run_is(monkeypatch, capfd):
    monkeypatch.setattr(group, "TRAINING", ("-c", SAYS))
    share = Share(2, first=2, total=6, coordinator="10.0.0.1:8476")
    ending = Group(share, Start(["--a= b"], dict(ADDED="c d"))).run()
    assert (ending.status, ending.reason) == (128 + 9, "process 3 was ended by SIGKILL")
    place = "--a= b --num_processes=6 --coordinator=10.0.0.1:8476"
    assert sorted(capfd.readouterr().out.splitlines()) == [
        f"process {index}: {place} --process_id={index} c d" for index in (2, 3)
    ]
