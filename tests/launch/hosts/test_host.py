"""The words that reach a machine: constant, whatever it is called."""

import shlex
import subprocess

import pytest

from configs.errors import UserError
from launch.hosts import host
from launch.hosts.host import COMMAND, ssh_hosts


def test_hosts_are_named_as_ssh_names_them(tmp_path):
    config = tmp_path / "config"
    config.write_text("Host near\n  HostName 10.0.0.7\n  User someone\n")
    targets = ["near", "me@far.example:2222", "[fe80::1]:22", "[::1]"]
    found = ssh_hosts(targets, str(config))
    assert [one.name for one in found] == ["near", "far.example:2222", "[fe80::1]:22", "[::1]"]
    assert [one.address for one in found] == ["10.0.0.7", "far.example", "fe80::1", "::1"]
    words = [one.words for one in found]
    assert [w[w.index("--") + 1 :] for w in words] == [
        ("near", COMMAND),
        ("me@far.example", COMMAND),
        ("fe80::1", COMMAND),
        ("::1", COMMAND),
    ]
    assert ["-p" in w and w[w.index("-p") + 1] for w in words] == [False, "2222", "22", False]
    assert all(w[:3] == ("ssh", "-F", str(config)) for w in words)


@pytest.mark.parametrize(
    "target",
    ["", "-oProxyCommand=touch x", "a b", "a;b", "$(touch x)", "a\nb", "a'b", "@a", "a:", "a:x"],
)
def test_what_is_no_host_is_refused(target):
    with pytest.raises(UserError, match="no host; name each as HOST"):
        ssh_hosts([target])


def test_a_host_twice_is_refused():
    with pytest.raises(UserError, match="twice"):
        ssh_hosts(["a", "b", "root@a"])


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_the_command_runs_what_it_is_sent(shell):
    program = "print('$(touch x); `y`', n)"
    sent = f"{len(program)}\n{program}rest"
    done = subprocess.run(
        [shell, "-c", COMMAND], input=sent, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"$(touch x); `y` {len(program)}\n"
    assert len(shlex.split(COMMAND)) == 4


def test_ssh_that_cannot_read_its_config_is_a_sentence(tmp_path, monkeypatch):
    config = tmp_path / "config"
    config.write_text("Nonsense here\n")
    with pytest.raises(UserError, match="ssh cannot read its config for a"):
        ssh_hosts(["a"], str(config))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="ssh is not found"):
        host.ssh_hosts(["a"])
