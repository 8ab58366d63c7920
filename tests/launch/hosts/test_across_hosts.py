"""A run across three hosts of real networks: what becomes of it when hosts and links fail."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.hosts.plan import job_name
from model import manifest
from tests.launch.hosts import network
from tests.launch.hosts.launching import TINY, Launch, left
from tests.train.processes import running
from train.metrics import read

STEPS = 300
RUN = (*TINY, f"--config.steps={STEPS}", "--config.checkpoint.every=20")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    """Returns a network of three hosts."""
    network.require()
    with network.Network(tmp_path_factory.mktemp("network")) as made:
        yield made


def launched(net, folder, *words, **options):
    own = (f"--interpreter={sys.executable}", f"--workdir={folder}/run", f"--logs={folder}/logs")
    return Launch(net, *own, *words, **options)


def name(folder):
    """Returns the name of the job whose run is in a folder."""
    return job_name("", f"{folder}/run")


def losses(folder):
    return {row["step"]: row["loss"] for row in read(folder / "run") if "loss" in row}


def reach(folder, step):
    running.wait_until(lambda: max(losses(folder), default=0) >= step, 200)


@pytest.fixture(scope="module")
def undisturbed(hosts, tmp_path_factory):
    """Returns the losses of a run that nothing happens to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run = launched(hosts, folder, *RUN)
    assert run.ended() == 0, run.lines
    assert manifest.whole_steps(folder / "run")[-1] == STEPS
    assert not left(hosts)
    return losses(folder)


def test_a_killed_host_is_waited_for_and_the_run_goes_on_as_if_it_had_not_been(
    hosts, undisturbed, tmp_path
):
    run = launched(hosts, tmp_path, *RUN, "--restarts=4", "--backoff=2")
    reach(tmp_path, 60)
    host = hosts.hosts["b"]
    host.kill()
    line = run.until("^restart 1 of 4: ")
    assert re.search("b cannot be reached .*; the run goes on from step [0-9]+0 in 2 s", line)
    time.sleep(5)
    host.boot()
    assert run.ended() == 0, run.lines
    assert losses(tmp_path) == undisturbed
    assert not left(hosts)


def test_a_cut_link_between_hosts_ends_and_starts_all_again(hosts, undisturbed, tmp_path):
    run = launched(hosts, tmp_path, *RUN, "--restarts=4", "--backoff=2")
    reach(tmp_path, 60)
    a, b, c = hosts.hosts.values()
    b.cut(a, c)
    assert re.search("75|process", run.until("^restart 1 of 4: "))
    for host in (a, b, c):
        host.open()
    assert run.ended() == 0, run.lines
    assert losses(tmp_path) == undisturbed


def test_a_cut_link_to_the_launcher_is_nothing_to_the_run(hosts, undisturbed, tmp_path):
    run = launched(hosts, tmp_path, *RUN, "--restarts=4")
    reach(tmp_path, 30)
    c = hosts.hosts["c"]
    c.firewall("ip", "saddr", str(hosts.subnet[254]))
    run.until("^c cannot be reached")
    c.open()
    assert run.ended() == 0, run.lines
    assert "c is reached again" in run.lines
    assert not [line for line in run.lines if line.startswith("restart")]
    assert losses(tmp_path) == undisturbed


def test_a_hang_shows_where_all_processes_are_and_all_start_again(hosts, undisturbed, tmp_path):
    # Not while a step is saved, which may take longer.
    words = ("--config.checkpoint.every=200", "--restarts=2", "--backoff=1", "--stall=0.25")
    run = launched(hosts, tmp_path, *RUN, *words)
    reach(tmp_path, 30)
    b = hosts.hosts["b"]
    (pid,) = json.loads(
        next(b.home.glob(f"manyheads/jobs/{name(tmp_path)}/*/state.json")).read_text()
    )["pids"]
    b.enter("kill", "-STOP", str(pid))
    line = run.until("^restart 1 of 2: ")
    assert "for 0.25 min (--stall=0.25)" in line
    shown = "\n".join(run.lines)
    for host, process in (("a", 0), ("b", 1), ("c", 2)):
        assert re.search(rf"\[{host}\] process {process}: .*train/loop.py", shown)
        (kept,) = (tmp_path / "run" / "stacks").glob(f"*/process-{process}.txt")
        assert "train/loop.py" in kept.read_text()
    assert run.ended() == 0, run.lines
    assert losses(tmp_path) == undisturbed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_stop_all_after_a_saved_step(hosts, tmp_path, number):
    run = launched(hosts, tmp_path, *RUN, "--restarts=2")
    reach(tmp_path, 20)
    run.process.send_signal(number)
    assert run.ended() == 128 + number
    step = manifest.whole_steps(tmp_path / "run")[-1]
    assert f"[a] stopped by a signal and saved at step {step}; run again to go on." in run.lines
    assert not left(hosts)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGKILL])
def test_a_run_whose_launcher_has_gone_goes_on_and_the_same_command_comes_back_to_it(
    hosts, tmp_path, number
):
    words, steps = (*RUN, "--config.checkpoint.every=0"), 800
    run = launched(hosts, tmp_path, *words, f"--config.steps={steps}", start_new_session=True)
    reach(tmp_path, 10)
    run.process.send_signal(number)
    run.ended(20)
    assert left(hosts)
    again = launched(hosts, tmp_path, *words, f"--config.steps={steps}")
    assert "following it" in again.until("^the job run-.* runs already")
    assert again.ended(600) == 0, again.lines
    assert sorted(losses(tmp_path)) == list(range(1, steps + 1))
    # Nothing is lost, and nothing twice, of what was said while nobody listened.
    (kept,) = (path.read_bytes() for path in (tmp_path / "logs").glob("a.*.log"))
    logs = hosts.hosts["a"].home.glob("manyheads/jobs/run-*/*/*.log")
    assert kept in [log.read_bytes() for log in logs]
    assert b"saved in" in kept


def test_a_launcher_that_goes_before_the_start_leaves_nothing(hosts, tmp_path):
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL):
        run = launched(hosts, tmp_path, *RUN, start_new_session=True)
        time.sleep(3)  # the hosts are asked and looked at
        run.process.send_signal(number)
        run.ended(20)
        running.wait_until(lambda: not left(hosts), 20)
        assert not (tmp_path / "run").exists()


def test_a_job_is_listed_and_stopped(hosts, tmp_path):
    words = ("--detach", "--name=one", *RUN)
    run = launched(hosts, tmp_path, *words)
    assert run.ended() == 0, run.lines
    reach(tmp_path, 10)
    out = command(hosts, "list").stdout.splitlines()
    assert [line.split()[:3] for line in out if " one " in line] == [
        [host, "one", "running"] for host in hosts.hosts
    ]
    again = launched(hosts, tmp_path, *words)
    assert again.ended() == 0
    assert "runs already" in " ".join(again.lines)
    changed = launched(hosts, tmp_path, *words, "--config.seed=5")
    assert changed.ended() == 2
    assert "runs already with another overrides; stop it" in " ".join(changed.lines)
    # One that looks after it does not start again what somebody has stopped.
    watching = launched(hosts, tmp_path, *words[1:], "--restarts=5")
    watching.until("runs already; following it")
    assert command(hosts, "stop", "--name=one").returncode == 0
    assert watching.ended(100) == 143, watching.lines
    assert "as somebody stopped it; run again to go on." in " ".join(watching.lines)
    running.wait_until(lambda: not left(hosts), 60)
    assert manifest.whole_steps(tmp_path / "run")
    assert command(hosts, "stop", "--name=one").returncode == 2


def command(net, verb, *words):
    own = [f"--hosts={net.names}", f"--ssh_config={net.config}"]
    return subprocess.run(
        [sys.executable, "-m", "launch.ssh", verb, *own, *words],
        cwd=running.ROOT,
        env=running.environment(),
        capture_output=True,
        text=True,
        check=False,
    )


ODD = "a b'c\"d;e$(touch /tmp/executed)`touch /tmp/executed`\nf\\ *"


def test_odd_names_and_values_arrive_intact_and_secrets_are_nowhere(hosts, tmp_path):
    folder, secret = tmp_path / ODD.replace("/tmp/", ""), "a secret's value"
    folder.mkdir()
    words = (*TINY, "--config.steps=2", f"--config.sample.prompts=({ODD!r},)")
    run = launched(hosts, folder, *words, f"--env=TOKEN={secret}", f"--env=ODD={ODD}")
    assert run.ended() == 0, run.lines
    assert not Path("/tmp/executed").exists()
    config = json.loads((folder / "run" / "config.json").read_text())
    assert config["sample"]["prompts"] == [ODD]
    files = [*folder.rglob("*"), *(p for h in hosts.hosts.values() for p in h.home.rglob("*"))]
    texts = [path for path in files if path.is_file() and "/code/" not in str(path)]
    assert len(texts) > 10
    for path in texts:
        assert secret.encode() not in path.read_bytes(), path
    assert secret not in " ".join(run.lines)


def test_hosts_are_set_up_from_the_lock_once(hosts, tmp_path, wheels):
    for host in hosts.hosts.values():
        config = host.home / ".config" / "pip" / "pip.conf"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(f"[global]\nno-index = true\nfind-links = {wheels}\n")
    words = (f"--workdir={tmp_path}/run", f"--logs={tmp_path}/logs", *TINY, "--config.steps=2")
    first = Launch(hosts, *words, "--name=set-up")
    assert first.ended(900) == 0, first.lines
    made = [line for line in first.lines if "makes an environment with Python 3" in line]
    assert sorted(line[:3] for line in made) == ["[a]", "[b]", "[c]"]
    second = Launch(hosts, *words, "--name=set-up", "--config.steps=4")
    assert second.ended() == 0, second.lines
    assert not [line for line in second.lines if "makes an environment" in line]
    assert sorted(losses(tmp_path)) == [1, 2, 3, 4]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """Returns a folder with the packages of the lock, as hosts without internet have them."""
    folder = tmp_path_factory.mktemp("wheels")
    lock = running.ROOT / "requirements.lock"
    words = ["download", "--quiet", "--disable-pip-version-check", "--dest", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", *words, "-r", str(lock)], check=True)
    return folder


@pytest.fixture(autouse=True)
def opened(hosts):
    """Opens all links again, and has all hosts as they were, after a test."""
    yield
    Launch.end_all()
    for host in hosts.hosts.values():
        host.open()
        if not host.runs():
            host.boot()
    if left(hosts):  # of a test that failed
        for host in hosts.hosts.values():
            host.kill()
            host.boot()
