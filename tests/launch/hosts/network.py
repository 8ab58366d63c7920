"""Hosts on this machine: network namespaces with addresses of their own, each with a real sshd.

A host has its own network, processes, mounts, name and home. It can be killed and started again,
cut off from others, and have a port closed by a firewall (nftables). Needs root, iproute2,
util-linux, nftables and OpenSSH's server, as ``.ci/run`` installs them.
"""

import contextlib
import ipaddress
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

NEEDED = ("ip", "nft", "unshare", "nsenter", "sshd", "ssh", "ssh-keygen")


def require() -> None:
    """Skips a test where hosts cannot be made; fails where they have to be."""
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    missing = [name for name in NEEDED if shutil.which(name) is None]
    reason = f"{', '.join(missing)} not installed" if missing else ""
    if os.geteuid():
        reason = "network namespaces need root"
    if reason and os.environ.get("MANYHEADS_NETWORK") == "required":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


def run(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs a command of the system."""
    return subprocess.run(words, check=check, capture_output=True, text=True)


class Host:
    """One of them."""

    def __init__(self, network: "Network", name: str, number: int):
        """Args: the network; the host's name; its number, from 1."""
        self.network, self.name = network, name
        self.address = str(network.subnet[number])
        self.space = f"{network.name}{name}"
        self.folder = network.folder / name
        self.home = self.folder / "home"
        self.home.mkdir(parents=True)
        self._init: subprocess.Popen | None = None
        inside, outside = f"{self.space}i", f"{self.space}o"
        run("ip", "netns", "add", self.space)
        run("ip", "link", "add", inside, "type", "veth", "peer", "name", outside)
        run("ip", "link", "set", inside, "netns", self.space, "name", "eth0")
        run("ip", "link", "set", outside, "master", network.bridge, "up")
        self.inside("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        self.inside("ip", "link", "set", "eth0", "up")
        self.inside("ip", "link", "set", "lo", "up")

    def inside(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs a command in the host's network."""
        return run("ip", "netns", "exec", self.space, *words, check=check)

    def boot(self) -> None:
        """Starts the host, and returns when its sshd answers."""
        run("ip", "link", "set", f"{self.space}o", "up")
        script = """
        set -e
        hostname "$1"
        mount --make-rprivate /
        mkdir -p /run/sshd
        mount --bind "$3" /etc/hosts
        exec /usr/sbin/sshd -D -e -f "$2"
        """
        own = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--uts", "--mount-proc")
        with open(self.folder / "sshd.log", "ab") as log:
            self._init = subprocess.Popen(
                ["ip", "netns", "exec", self.space, *own]
                + ["sh", "-c", script, "sh", self.name, str(self._config()), self._names()],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until = time.monotonic() + 20
        while run("ssh", *self.network.options, self.address, "true", check=False).returncode:
            assert time.monotonic() < until, (self.folder / "sshd.log").read_text()
            time.sleep(0.2)

    def kill(self) -> None:
        """Ends the host as a power failure does: with all its processes and its link, at once."""
        run("ip", "link", "set", f"{self.space}o", "down")
        if self._init is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._init.pid, signal.SIGKILL)
            self._init.wait()
            self._init = None

    def runs(self) -> bool:
        """Tells whether the host is up."""
        return self._init is not None

    def enter(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs a command on the host, without its network."""
        assert self._init is not None
        pid = Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children").read_text().split()[0]
        return run("nsenter", "--all", "--target", pid, *words, check=check)

    def firewall(self, *rule: str) -> None:
        """Drops what arrives and matches a rule of nftables."""
        self.inside("nft", "add", "table", "inet", "wall")
        chain = ("add", "chain", "inet", "wall", "in", "{ type filter hook input priority 0 ; }")
        self.inside("nft", *chain)
        self.inside("nft", "add", "rule", "inet", "wall", "in", *rule, "drop")

    def cut(self, *others: "Host") -> None:
        """Cuts the links to other hosts, in both directions."""
        for other in others:
            self.firewall("ip", "saddr", other.address)
            other.firewall("ip", "saddr", self.address)

    def open(self) -> None:
        """Ends what ``firewall`` and ``cut`` have made here."""
        self.inside("nft", "flush", "ruleset")

    def remove(self) -> None:
        """Ends the host, and takes its network away."""
        self.kill()
        run("ip", "netns", "delete", self.space, check=False)

    def _names(self) -> str:
        """Returns the file by which the host knows itself and the others."""
        path, known = self.folder / "hosts", enumerate(self.network.letters, 1)
        lines = ["127.0.0.1 localhost", *(f"{self.network.subnet[n]} {name}" for n, name in known)]
        path.write_text("\n".join(lines) + "\n")
        return str(path)

    def _config(self) -> Path:
        path = self.folder / "sshd_config"
        python = Path(sys.base_prefix, "bin")
        lines = [
            *("Port 22", "AddressFamily inet", f"PidFile {self.folder}/sshd.pid"),
            *(f"HostKey {self.network.folder}/host_key", "UsePAM no", "StrictModes no"),
            *("PermitRootLogin yes", "PasswordAuthentication no", "MaxStartups 100"),
            f"AuthorizedKeysFile {self.network.folder}/key.pub",
            f'SetEnv HOME="{self.home}" PATH="{python}:/usr/bin:/bin"',
        ]
        path.write_text("\n".join(lines) + "\n")
        return path


class Network:
    """A bridge with hosts, for a ``with``."""

    def __init__(self, folder: Path, names: str = "abc"):
        """Args: of the hosts' files; a letter for each host."""
        self.folder = folder
        number = os.getpid() % 200 + 20
        self.name, self.bridge = f"mh{number}", f"mh{number}"
        self.subnet = ipaddress.ip_network(f"10.77.{number}.0/24")
        for key in ("key", "host_key"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key))
        self.config = folder / "ssh_config"
        self.config.write_text(
            f"Host *\n  User root\n  IdentityFile {folder}/key\n  IdentitiesOnly yes\n"
            "  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n"
        )
        self.options = ("-F", str(self.config))
        self.hosts: dict[str, Host] = {}
        self.letters = names

    def __enter__(self) -> "Network":
        run("ip", "link", "delete", self.bridge, check=False)
        run("ip", "link", "add", self.bridge, "type", "bridge")
        run("ip", "address", "add", f"{self.subnet[254]}/24", "dev", self.bridge)
        run("ip", "link", "set", self.bridge, "up")
        aliases = ""
        for number, name in enumerate(self.letters, 1):
            host = self.hosts[name] = Host(self, name, number)
            aliases += f"Host {name}\n  HostName {host.address}\n"
            host.boot()
        self.config.write_text(aliases + self.config.read_text())
        return self

    def __exit__(self, *exception: object) -> None:
        for host in self.hosts.values():
            host.remove()
        run("ip", "link", "delete", self.bridge, check=False)

    @property
    def names(self) -> str:
        """Returns the hosts as a flag takes them."""
        return ",".join(self.hosts)
