"""What hosts say: whole lines with their names, and a copy that is the same to the byte."""

import random

from launch.hosts.host import Host
from launch.hosts.logs import Logs

SAID = "one\ntwo é ü\n\nthree\xff".encode("latin-1") + "später\nrest".encode()


def test_whatever_pieces_come_in_lines_are_whole_and_bytes_the_same(tmp_path, capsys):
    draw = random.Random(0)
    for number in range(20):
        logs = Logs(tmp_path / str(number))
        hosts = [Host("a", "a", ()), Host("[::1]:22", "b", ())]
        left = dict.fromkeys(hosts, SAID)
        while any(left.values()):
            host = draw.choice([host for host in hosts if left[host]])
            size = draw.randint(1, 9)
            logs.add(host, "1", left[host][:size])
            left[host] = left[host][size:]
        for host in hosts:
            logs.end(host, "1")
            assert logs.path(host, "1").read_bytes() == SAID
            assert logs.known(host, "1") == len(SAID)
            assert logs.known(host, "2") == 0
        shown = capsys.readouterr().out.splitlines()
        for host in hosts:
            lines = [line for line in shown if line.startswith(f"[{host.name}] ")]
            assert [line.removeprefix(f"[{host.name}] ") for line in lines] == SAID.decode(
                errors="replace"
            ).split("\n")
    assert logs.path(hosts[1], "1").name == "___1__22.1.log"
