"""What is wrong on real hosts is named, each within a minute: before a start, and during one."""

import json
import re
import sys
import time

import pytest

from tests.launch.hosts import network
from tests.launch.hosts.launching import TINY, Launch

pytestmark = pytest.mark.slow

FOUND = {
    "unreachable": (
        "error: b cannot be reached (ssh: connect to host {b} port 22: .*); see that it runs, and "
        "that ssh logs in there without a password."
    ),
    "port": (
        "error: c cannot reach the coordinator, port 8476 of a ({a}: it does not answer); open "
        "that port to it in the firewall, .*"
    ),
    "revision": (
        "error: b has other code (train/loop.py differs there); delete {home}/manyheads/code/.* "
        "there, and launch again."
    ),
    "disk": (
        "error: {run} on c cannot be written (No space left on device); free space there, make it "
        "writable, or name another --workdir."
    ),
}


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    """Returns three hosts that are set up, and the words of a run on them."""
    network.require()
    folder = tmp_path_factory.mktemp("network")
    (folder / "run").mkdir()
    with network.Network(folder) as made:
        words = (f"--workdir={folder}/run", f"--logs={folder}/logs", *TINY, "--config.steps=2")
        made.words = (*words, f"--interpreter={sys.executable}")
        first = Launch(made, *made.words)
        assert first.ended() == 0, first.lines
        yield made


@pytest.fixture
def broken(request, hosts):
    """Breaks something on the hosts; returns the sentence that is to name it."""
    a, b, c = hosts.hosts.values()
    run = hosts.folder / "run"
    match request.param:
        case "unreachable":
            b.kill()
            mend = b.boot
        case "port":
            a.firewall("tcp", "dport", "8476", "ip", "saddr", c.address)
            mend = a.open
        case "revision":
            (code,) = b.home.glob("manyheads/code/*/train/loop.py")
            before = code.read_bytes()
            code.write_bytes(before + b"\n")

            def mend():
                code.write_bytes(before)

        case "disk":
            c.enter("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(run))

            def mend():
                c.enter("umount", str(run))

    sentence = FOUND[request.param].format(a=a.address, b=b.address, home=b.home, run=run)
    yield re.escape(sentence).replace(r"\.\*", ".*")
    mend()


def test_nothing_is_found_where_nothing_is_wrong(hosts, tmp_path):
    began = time.monotonic()
    doctor = Launch(hosts, *hosts.words, f"--json={tmp_path}/found.json", module="launch.doctor")
    assert doctor.ended() == 0, doctor.lines
    assert doctor.lines[-1] == "nothing that is wrong was found"
    assert time.monotonic() < began + 60
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found["hosts"]) == ["a", "b", "c"]
    assert len({h["packages"]["config"]["digest"] for h in found["hosts"].values()}) == 1
    assert all(h["packages"]["devices"]["kind"] == "cpu" for h in found["hosts"].values())


@pytest.mark.parametrize("broken", FOUND, indirect=True)
def test_each_is_named_with_its_host_within_a_minute(hosts, broken):
    began = time.monotonic()
    doctor = Launch(hosts, *hosts.words, module="launch.doctor")
    assert doctor.ended() == 1, doctor.lines
    assert time.monotonic() < began + 60
    errors = [line for line in doctor.lines if line.startswith("error: ")]
    assert len(errors) == 1, errors
    assert re.fullmatch(broken, errors[0])


@pytest.mark.parametrize("broken", ["revision", "disk"], indirect=True)
def test_a_start_is_refused_with_it(hosts, broken):
    run = Launch(hosts, *hosts.words, "--config.steps=4")
    assert run.ended() == 2
    assert re.fullmatch(broken, run.lines[-1])


@pytest.mark.parametrize("broken", ["port"], indirect=True)
def test_it_runs_by_itself_when_a_start_takes_more_than_a_minute(hosts, broken):
    began = time.monotonic()
    run = Launch(hosts, *hosts.words, "--nocheck", "--config.steps=4")
    run.until("^not all processes are joined after 60 s; looking why")
    line = run.until("^c cannot reach the coordinator")
    assert re.fullmatch(broken, f"error: {line}")
    assert time.monotonic() < began + 60 + 60
    hosts.hosts["a"].open()
    assert run.ended() == 0, run.lines
