"""Processes find each other at a port, or all say why they do not."""

import json
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from configs.errors import UserError
from launch.group import free_port
from tests.train.processes import running
from train.processes import gathering
from train.processes.environment import Place
from train.processes.gathering import gather


@pytest.fixture
def port():
    return free_port()


def start(pool, port, index, count=3, timeout=20.0, patience=0.5, said=None, found="the flags"):
    place = Place(f"localhost:{port}", count, index, None, found)
    say = (lambda line: None) if said is None else said.append

    def come():
        connections = gather(place, timeout, patience, say)
        if index == 0:
            socket.create_server(("", port)).close()  # it is free, whoever is still connected
        for connection in connections.values():
            connection.close()

    return pool.submit(come)


def mistake(future):
    with pytest.raises(UserError) as error:
        future.result(timeout=20)
    return str(error.value)


def test_all_go_on_when_all_have_come(port, monkeypatch):
    monkeypatch.setattr(gathering, "EVERY", 0.2)
    said = []
    with ThreadPoolExecutor(3) as pool:
        first = [start(pool, port, 2), start(pool, port, 0, said=said)]
        time.sleep(2.5)
        assert not any(future.done() for future in first)
        assert "process 0 waits for process 1 at" in said[-1]
        for future in [*first, start(pool, port, 1)]:
            future.result(timeout=20)


def test_who_does_not_come_is_named(port):
    with ThreadPoolExecutor(2) as pool:
        both = [start(pool, port, 0, timeout=2.0), start(pool, port, 2)]
        for future in both:
            assert "process 1 did not come to localhost" in mistake(future)


def test_one_that_ends_before_all_have_come_ends_the_others(port):
    with ThreadPoolExecutor(2) as pool:
        others = [start(pool, port, index, count=4) for index in (0, 1)]
        address = ("localhost", port)
        connection = None
        while connection is None:
            try:
                connection = socket.create_connection(address)
            except OSError:
                time.sleep(0.1)
        who = dict(index=2, host="there", run="the flags/4")
        connection.sendall(json.dumps(who).encode() + b"\n")
        time.sleep(1.5)
        connection.close()
        for future in others:
            assert "process 2 on there ended before all" in mistake(future)


@pytest.mark.parametrize(
    ("index", "found", "sentence"),
    [
        (1, "the flags", "process 1 of 3 has come already, from "),
        (2, "SLURM", "is the coordinator of another run"),
    ],
)
def test_a_stranger_is_refused_and_the_others_go_on(port, index, found, sentence):
    with ThreadPoolExecutor(4) as pool:
        known = [start(pool, port, 0), start(pool, port, 1)]
        time.sleep(1.5)
        assert sentence in mistake(start(pool, port, index, found=found))
        for future in [*known, start(pool, port, 2)]:
            future.result(timeout=20)


def test_a_port_that_another_program_has_is_left_alone(port):
    """It answers, and not as process 0 does."""
    over = threading.Event()

    def answer(server):
        server.settimeout(0.2)
        while not over.is_set():
            try:
                server.accept()[0].close()
            except TimeoutError:
                continue

    with socket.create_server(("", port)) as server, ThreadPoolExecutor(3) as pool:
        pool.submit(answer, server)
        found = [mistake(start(pool, port, index)) for index in (0, 1)]
        over.set()
    assert f"port {port} of" in found[0]
    assert "--coordinator_port" in found[0]
    assert "another program, or another run, answers there" in found[1]


@pytest.mark.slow
def test_a_second_run_at_the_port_leaves_the_first_alone(tmp_path, port):
    words = [*running.TINY, "--config.mesh.data=2", "--config.steps=100000"]
    first = running.start([[*words, f"--workdir={tmp_path}/first"]] * 2, port=port)
    running.wait_until(lambda: (tmp_path / "first" / "metrics.jsonl").exists())
    second = running.start([[*words, f"--workdir={tmp_path}/second"]] * 2, port=port)
    time.sleep(15)
    assert [process.poll() for process in first] == [None, None]
    for process in second:
        process.kill()
        process.communicate()
    os.kill(first[1].pid, signal.SIGTERM)
    ended = running.ended(first, 60)
    assert [process.status for process in ended] == [143, 143], ended
