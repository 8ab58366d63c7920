"""A machine, and the words that run a command there."""

import dataclasses
import re
import subprocess

from configs.errors import UserError

# Constant: whatever a user gave is sent over standard input, and no shell reads it.
COMMAND = (
    "exec python3 -c 'import sys; n = int(sys.stdin.buffer.readline()); "
    'exec(compile(sys.stdin.buffer.read(n), "manyheads", "exec"))\''
)
# Seconds until a host that does not answer counts as unreachable, and between two signs of life
# of a connection, of which three may be missing.
CONNECTING, ALIVE = 10, 5

_TARGET = re.compile(r"(?:[A-Za-z0-9._-]+@)?(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?")


@dataclasses.dataclass(frozen=True)
class Host:
    """A machine of a job."""

    name: str  # in what is shown
    address: str  # by which the other hosts reach it
    words: tuple[str, ...]  # that run ``COMMAND`` there


def ssh_hosts(targets: list[str], config: str = "") -> list[Host]:
    """Returns machines that ssh reaches.

    Args:
      targets: [USER@]HOST[:PORT] of each; HOST may be an alias of ssh's config.
      config: ssh's config file; the user's where empty.

    Raises:
      UserError: one is ill-formed, or named twice.
    """
    for target in targets:
        if target.startswith("-") or not _TARGET.fullmatch(target):
            raise UserError(
                f"--hosts has {target!r}, no host; name each as HOST, USER@HOST or HOST:PORT."
            )
        if [_name(other) for other in targets].count(_name(target)) > 1:
            raise UserError(f"--hosts names {_name(target)} twice; name each host once.")
    return [
        Host(_name(target), _address(target, config), ssh_words(target, config))
        for target in targets
    ]


def ssh_words(target: str, config: str = "") -> tuple[str, ...]:
    """Returns the words that run ``COMMAND`` on a machine by ssh."""
    host, port = _split(target)
    return (
        "ssh",
        *(("-F", config) if config else ()),
        *("-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECTING}"),
        *("-o", f"ServerAliveInterval={ALIVE}", "-o", "ServerAliveCountMax=3"),
        *(("-p", port) if port else ()),
        *("-T", "--", host, COMMAND),
    )


def _split(target: str) -> tuple[str, str]:
    """Returns [USER@]HOST as ssh takes it, and the port or an empty text."""
    matched = re.fullmatch(r"((?:[^@]+@)?(?:\[[^\]]+\]|[^:]+))(?::([0-9]+))?", target)
    assert matched is not None
    return re.sub(r"\[(.*)\]$", r"\1", matched[1]), matched[2] or ""


def _name(target: str) -> str:
    """Returns how a host is called: without the user."""
    return target.rpartition("@")[2]


def _address(target: str, config: str) -> str:
    """Returns the name or address that ssh's config gives an alias; nothing is connected to."""
    host, _ = _split(target)
    words = ["ssh", *(("-F", config) if config else ()), "-G", "--", host]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise UserError("ssh is not found; install an OpenSSH client.") from error
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise UserError(f"ssh cannot read its config for {host} ({said}); put that right.")
    found = re.search(r"^hostname (.+)$", done.stdout, re.MULTILINE)
    return found[1] if found else host.rpartition("@")[2]
