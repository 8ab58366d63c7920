"""What a host is found to have: its port, code, disk, variables, and who has its devices."""

import hashlib
import json
import os
import socket
import subprocess
import sys

import jax
import pytest
from jax._src import hardware_utils

from launch.hosts import facts
from launch.hosts.call import Call
from launch.hosts.remote import places, probe
from tests.launch.hosts.local import HERE
from tests.train.processes import running


def asked(tmp_path, **more):
    request = dict(
        root=str(tmp_path),
        name="one",
        code="abc",
        checkout="",
        files={},
        interpreter="",
        workdir=str(tmp_path / "run"),
        arguments=[],
        environment={},
        devices=False,
    )
    return request | more


def test_a_port_that_is_taken_is_taken_by_somebody(tmp_path):
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with Call(HERE, "probe") as call:

            def found(**request):
                call.send(**request)
                return next(call.messages(30))["found"]

            taken = found(act="listen", port=port)["taken"]
            assert taken.startswith(f"process {os.getpid()} (")
            assert found(act="connect", address="127.0.0.1", port=port) == {}
            server.close()
            refused = found(act="connect", address="127.0.0.1", port=port)
            assert refused == dict(error="Connection refused")
            assert found(act="listen", port=port) == {}
            socket.create_connection(("127.0.0.1", port), timeout=5).close()


def test_other_code_is_named_file_by_file(tmp_path):
    code = tmp_path / "code" / "abc"
    assert probe.look(asked(tmp_path))["code"] == dict(folder=str(code), there=False)
    (code / "a").mkdir(parents=True)
    (code / "a" / "b $(x).py").write_text("same")
    (code / "c.py").write_text("other")
    (code / "code.json").write_text(json.dumps(dict(revision="r1")))
    files = dict.fromkeys(["a/b $(x).py", "c.py", "gone.py"], hashlib.sha256(b"same").hexdigest())
    found = probe.look(asked(tmp_path, files=files))["code"]
    assert (found["differing"], found["revision"]) == (["c.py", "gone.py"], "r1")


def test_a_disk_is_written_to_and_nothing_is_left(tmp_path):
    before = sorted(tmp_path.rglob("*"))
    disk = probe.look(asked(tmp_path))["disk"]
    assert (disk["folder"], "error" in disk) == (str(tmp_path), False)
    assert 0 < disk["free"] <= disk["total"]
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "file").write_text("")
    found = probe.look(asked(tmp_path, workdir=str(tmp_path / "file" / "run")))["disk"]
    assert found == dict(folder=str(tmp_path / "file"), error="Not a directory")


def test_only_variables_of_jax_and_devices_are_told(tmp_path, monkeypatch):
    for name, value in (("MEGASCALE_NUM_SLICES", "2"), ("MY_TOKEN", "secret"), ("JAXY", "x")):
        monkeypatch.setenv(name, value)
    environment = dict(TPU_VISIBLE_CHIPS="secret", PASSWORD="secret")
    found = probe.look(asked(tmp_path, environment=environment))
    assert found["variables"]["MEGASCALE_NUM_SLICES"] == "2"
    assert "JAXY" not in found["variables"]
    assert "secret" not in json.dumps(found)


def test_who_has_a_device_is_named(tmp_path, monkeypatch):
    device = tmp_path / "accel0"
    device.touch()
    monkeypatch.setattr(probe, "_DEVICES", (str(tmp_path / "accel[0-9]*"),))
    code = "import sys, time; f = open(sys.argv[1]); print('open', flush=True); time.sleep(60)"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(device), "--password=x"], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "open\n"
    (busy,) = probe.look(asked(tmp_path))["busy"]
    assert (busy["pid"], busy["devices"]) == (holder.pid, [str(device)])
    assert "password" not in busy["command"]
    folder = tmp_path / "jobs" / "one" / socket.gethostname()
    folder.mkdir(parents=True)
    state = dict(state="running", pid=1, pids=[holder.pid])
    places.write_json(str(folder / places.STATE), state)
    assert probe.look(asked(tmp_path))["busy"] == []
    holder.kill()
    holder.communicate()


def test_what_the_environment_says_is_passed_on(tmp_path):
    arguments = ["--config=configs/toy.py", "--config.steps=3", f"--workdir={tmp_path}"]
    found = probe.look(
        asked(
            tmp_path,
            checkout=str(running.ROOT),
            interpreter=sys.executable,
            arguments=arguments,
            environment=dict(JAX_PLATFORMS="cpu"),
            devices=True,
        )
    )["packages"]
    assert found["packages"]["jax"]
    assert len(found["config"]["digest"]) == 12
    assert found["config"]["bytes"] > 1e5
    assert found["devices"]["platform"] == "cpu"
    broken = asked(tmp_path, checkout=str(running.ROOT), interpreter="/bin/false")
    assert probe.look(broken)["packages"] == dict(error="no answer")


def test_chips_of_a_tpu_are_counted_and_not_opened(monkeypatch):
    found = (4, hardware_utils.TpuVersion.v5e)
    monkeypatch.setattr(hardware_utils, "num_available_tpu_chips_and_device_id", lambda: found)
    monkeypatch.setattr(jax, "local_devices", lambda: pytest.fail("they were opened"))
    request = dict(arguments=[], workdir="", devices=True)
    assert facts.facts(request)["devices"] == dict(count=4, kind="TPU v5e", platform="tpu")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--config=no.py"], "no.py"), (["--config=configs/toy.py", "--config.no=1"], "config.no")],
)
def test_a_config_that_cannot_be_read_is_said(arguments, said):
    request = dict(arguments=arguments, workdir="", devices=False)
    done = subprocess.run(
        [sys.executable, "-m", "launch.hosts.facts"],
        input=json.dumps(request),
        cwd=running.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert said in json.loads(done.stdout)["config"]["error"]
    assert facts.PACKAGES[0] == "jax"
