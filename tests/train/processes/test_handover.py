"""A process that ends while JAX joins them is noticed by the others, and named."""

import socket

import pytest

from launch.group import free_port
from tests.train.processes import running
from train.processes.environment import Place
from train.processes.gathering import gather
from train.processes.handover import Handover
from train.processes.watch import LOST


def ends(*names):
    """Returns the ends of connections of process 0, and those of the others."""
    pairs = {name: socket.socketpair() for name in names}
    mine = {name: pair[0] for name, pair in pairs.items()}
    return Handover(mine), [Handover({"process 0": pair[1]}) for pair in pairs.values()]


def test_who_ends_before_jax_has_joined_it_is_told_to_all():
    first, (second, third) = ends("process 1 on a", "process 2 on b")
    assert first.lost() is None
    with pytest.raises(KeyboardInterrupt), second:
        raise KeyboardInterrupt
    sentence = "process 1 on a ended before JAX had joined all processes; start all again."
    assert first.lost() == sentence
    assert third.lost() == sentence
    with first:
        pass


def test_who_has_been_joined_may_leave():
    first, (second, third) = ends("process 1 on a", "process 2 on b")
    with second:
        pass
    assert first.lost() is None
    with first:
        pass
    assert third.lost() is None
    assert third.lost() is None


@pytest.mark.parametrize("dead", [0, 1])
def test_a_process_that_dies_before_jax_joins_it_ends_the_others(tmp_path, dead):
    port = free_port()
    words = [*running.TINY, "--config.mesh.data=2", f"--workdir={tmp_path}"]
    both = [None if index == dead else words for index in (0, 1)]
    [alive] = running.start(both, port=port)
    connections = gather(Place(f"localhost:{port}", 2, dead), 60.0)
    for connection in connections.values():
        connection.close()
    [ended] = running.ended([alive], 30)
    assert ended.status == LOST, ended
    assert f"process {dead} " in ended.err
    assert "ended before JAX had joined all processes; start all again." in ended.err
    assert "Traceback" not in ended.err
