"""A task of SkyPilot: what it says, and that odd words arrive through its constant scripts."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import UserError
from launch import elsewhere
from launch.job import Job, Resources
from launch.sky import node, task

ODD = ["a b", "c'd\"e", ";touch f", "$(touch g)`touch h`", "l\nm\n", "\\", "*", "é\t", "--x=$HOME"]
GPUS = Resources(2, 1, "A100:8")


def job(arguments=(), resources=GPUS, environment=None):
    """Returns a job."""
    words = tuple(f"--config.data.path={word}" for word in arguments)
    return Job("configs/toy.py", "gs://b/r", words, environment or {}, resources)


@pytest.fixture
def folder(tmp_path):
    """Returns a folder as ~/sky_workdir is: the code, its environment, and a stub of training."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (tmp_path / "launch").symlink_to(elsewhere.CODE / "launch")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "__init__.py").touch()
    stub = "import json, sys\nprint(json.dumps(sys.argv[1:]))\n"
    (tmp_path / "train" / "__main__.py").write_text(stub)
    return tmp_path


def ran(folder, rendered, **variables):
    """Returns the arguments that training had when the run script was run."""
    done = subprocess.run(
        ["bash", "-c", rendered["run"]],
        cwd=folder,
        env={"PATH": os.environ["PATH"]} | rendered["envs"] | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_odd_words_arrive_and_each_node_is_told_its_place(folder):
    described = job(ODD)
    rendered = yaml.safe_load(task.text(task.task(described, "heads")))
    before = set(folder.iterdir())
    for rank in (0, 1):
        place = ["--num_processes=2", "--coordinator=10.0.0.7", f"--process_id={rank}"]
        variables = dict(SKYPILOT_NUM_NODES="2", SKYPILOT_NODE_RANK=str(rank))
        found = ran(folder, rendered, SKYPILOT_NODE_IPS="10.0.0.7\n10.0.0.8", **variables)
        assert found == [*described.arguments(), *place]
    assert set(folder.iterdir()) == before  # nothing was executed


def test_one_node_is_alone_and_hosts_of_a_slice_find_themselves(folder):
    alone = job(resources=Resources(1, 1, "A100"))
    rendered = task.task(alone, "heads")
    one = dict(SKYPILOT_NUM_NODES="1", SKYPILOT_NODE_RANK="0", SKYPILOT_NODE_IPS="10.0.0.7")
    assert ran(folder, rendered, **one) == [*alone.arguments(), "--num_processes=1"]
    slice_ = job(ODD, Resources(1, 1, "tpu-v5litepod-16"))
    four = dict(SKYPILOT_NUM_NODES="4", SKYPILOT_NODE_RANK="3", SKYPILOT_NODE_IPS="a\nb\nc\nd")
    assert ran(folder, task.task(slice_, "heads"), **four) == slice_.arguments()


def test_an_address_of_version_6_is_bracketed():
    variables = dict(
        SKYPILOT_NUM_NODES="2", SKYPILOT_NODE_RANK="1", SKYPILOT_NODE_IPS="fd::1\nfd::2"
    )
    variables[node.VARIABLE] = node.description([], node.NODES)
    assert node.words(variables, "python")[-2:] == ["--coordinator=[fd::1]", "--process_id=1"]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))))
def test_what_the_task_says_is_read_back(words):
    described = job(words)
    rendered = yaml.safe_load(task.text(task.task(described, "heads")))
    told = rendered["envs"][node.VARIABLE]
    assert told.isascii()
    assert told.isprintable()
    assert json.loads(told)["arguments"] == described.arguments()
    assert (rendered["setup"], rendered["run"]) == (task.SETUP, task.RUN)


def test_the_code_is_installed_once_at_the_locked_versions(tmp_path):
    (tmp_path / "bin").mkdir()
    # A Python that is too old, and one that makes environments in which pip tells what it is given.
    old, new = tmp_path / "bin" / "python3", tmp_path / "bin" / "python3.12"
    old.write_text("#!/bin/bash\nexit 1\n")
    new.write_text(
        '#!/bin/bash\nif test "$1" = -c; then exit 0; fi\necho made >> made\nmkdir -p .venv/bin\n'
        'printf \'#!/bin/bash\\nprintf "%%s\\\\n" "$@"\\n\' > .venv/bin/python\n'
        "chmod +x .venv/bin/python\n"
    )
    for python in (old, new):
        python.chmod(0o755)
    rendered = task.task(job(resources=Resources(1, 1, "tpu-v5litepod-8")), "heads")
    for _ in range(2):
        done = subprocess.run(
            ["bash", "-c", rendered["setup"]],
            cwd=tmp_path,
            env={"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"} | rendered["envs"],
            capture_output=True,
            text=True,
            check=True,
        )
        words = ["-m", "pip", "install", "-q", "-c", "requirements.lock", "-e", ".[tpu,gs]"]
        assert done.stdout.splitlines() == words
    assert (tmp_path / "made").read_text() == "made\n"


def test_no_value_of_the_environment_is_in_the_task():
    text = task.text(task.task(job(environment=dict(TOKEN="s3cr3t", A="s3cr3t")), "heads"))
    assert "s3cr3t" not in text
    assert yaml.safe_load(text)["secrets"] == dict(A=None, TOKEN=None)
    assert "secrets" not in task.task(job(), "heads")


def test_a_managed_job_goes_on_after_a_preemption_and_repeats_no_mistake():
    spot = job(resources=Resources(1, 1, "tpu-v6e-8", spot=True))
    resources = task.task(spot, "heads", "gcp/us-east5", managed=True)["resources"]
    assert resources == dict(
        accelerators="tpu-v6e-8:1",
        accelerator_args=dict(runtime_version="v2-alpha-tpuv6e"),
        use_spot=True,
        infra="gcp/us-east5",
        job_recovery=dict(max_restarts_on_errors=0, recover_on_exit_codes=[143]),
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(accelerator="a b"), "--accelerator="),
        (dict(accelerator="tpu-v5"), "--accelerator="),
        (dict(accelerator="A100:0"), "--accelerator="),
        (dict(accelerator="A100\nx: y"), "--accelerator="),
        (dict(accelerator="tpu-v6e-8", nodes=2), "does not join slices"),
        (dict(name="Heads"), "--name="),
        (dict(name="a" * 41), "--name="),
        (dict(name="a;b"), "--name="),
        (dict(infra="gcp us"), "--infra="),
        (dict(environment=dict(SKYPILOT_NUM_NODES="secret")), "--env=SKYPILOT_NUM_NODES"),
        (dict(environment=dict(MANYHEADS_JOB="secret")), "--env=MANYHEADS_JOB"),
    ],
)
def test_what_cannot_be_is_refused(change, said):
    resources = Resources(change.get("nodes", 1), 1, change.get("accelerator", "A100"))
    described = job(resources=resources, environment=change.get("environment"))
    with pytest.raises(UserError, match=said) as error:
        task.task(described, change.get("name", "heads"), change.get("infra", ""))
    assert "secret" not in str(error.value)
