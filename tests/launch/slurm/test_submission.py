"""The file that sbatch is given, and what is refused rather than written into it."""

import os
import pickle
import pickletools
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from configs.errors import UserError
from launch.job import Job
from tests.launch.slurm import double
from tests.train.processes import running

pytestmark = pytest.mark.extras
ODD = "a b'c\"d;e$(touch f)`g`\nh\\"


@pytest.fixture(autouse=True)
def _submitit(extra):
    extra("submitit")


def read(text):
    """Returns options and commands of a batch file, as sbatch and bash read them."""
    options, commands = {}, []
    for line in text.splitlines():
        if line.startswith("#SBATCH "):
            (word,) = shlex.split(line.removeprefix("#SBATCH "))
            name, _, value = word.removeprefix("--").partition("=")
            options[name] = value
        elif line and not line.startswith("#"):
            commands.append(shlex.split(line))
    return options, commands


def test_the_file_asks_for_what_is_wanted(tmp_path):
    from launch.slurm import submission

    folder = tmp_path / "a b;c(d)"
    asked = submission.Allocation(
        *(2, 4, 90),
        notice=120,
        name="heads-1",
        gpus="a100:4",
        cpus=7,
        memory=64,
        partition="gpu,big",
        account="x.y",
        qos="high",
        constraint="[a100|h100]&nvlink",
    )
    options, commands = read(submission.executor(asked, folder).text())
    assert options == {
        "nodes": "2",
        "ntasks-per-node": "4",
        "time": "90",
        "signal": "USR2@120",
        "job-name": "heads-1",
        "gpus-per-node": "a100:4",
        "cpus-per-task": "7",
        "mem": "64G",
        "partition": "gpu,big",
        "account": "x.y",
        "qos": "high",
        "constraint": "[a100|h100]&nvlink",
        "requeue": "",
        "export": "ALL",
        "open-mode": "append",
        "output": f"{folder}/%j_0_log.out",
        "error": f"{folder}/%j_0_log.err",
    }
    srun = ["srun", "--unbuffered", "--output", f"{folder}/%j_%t_log.out"]
    srun += ["--error", f"{folder}/%j_%t_log.err", "--kill-on-bad-exit=0", "--wait=0"]
    task = [sys.executable, "-u", "-m", "submitit.core._submit", str(folder)]
    assert commands == [
        ["export", "SUBMITIT_EXECUTOR=slurm"],
        [*srun, "--cpus-per-task=7", *task],
    ]
    once = submission.Allocation(1, 1, 60, requeues=0)
    plain, _ = read(submission.executor(once, tmp_path).text())
    assert "no-requeue" in plain
    assert "requeue" not in plain
    assert not {"mem", "partition", "gpus-per-node", "wckey"} & set(plain)


@pytest.mark.parametrize("field", ["name", "partition", "account", "qos", "gpus", "constraint"])
@pytest.mark.parametrize("value", ["a\ntouch b", "a b", "a'b", "$(touch c)", "a;b", "`d`", "é"])
def test_what_would_be_a_line_of_its_own_is_refused(tmp_path, field, value):
    from launch.slurm import submission

    flag = "gpus_per_node" if field == "gpus" else field
    with pytest.raises(UserError, match=f"--{flag}="):
        submission.executor(submission.Allocation(1, 1, 60, **{field: value}), tmp_path)


@pytest.mark.parametrize("sign", ["\n", "'", '"', "\\", "%", "$", "`", "#"])
def test_a_folder_that_sbatch_reads_as_another_is_refused(tmp_path, sign):
    from launch.slurm import submission

    with pytest.raises(UserError, match="--logs"):
        submission.executor(submission.Allocation(1, 1, 60), tmp_path / f"a{sign}b")


def test_times_counts_and_variables_that_cannot_be_are_refused(tmp_path):
    from launch.slurm import submission

    for asked, said in (
        (submission.Allocation(1, 1, 5, notice=300), "--notice=300"),
        (submission.Allocation(1, 1, 60, gpus="a100"), "no count"),
        (submission.Allocation(1, 1, 60, gpus="0"), "no count"),
    ):
        with pytest.raises(UserError, match=said):
            submission.executor(asked, tmp_path)
    for name in ("SLURM_NTASKS", "SBATCH_EXPORT", "SUBMITIT_FOLDER"):
        with pytest.raises(UserError, match=f"--env={name} ") as error:
            submission.check_environment({name: "secret"})
        assert "secret" not in str(error.value)


def test_what_the_tasks_read_has_the_arguments_as_they_were_and_no_value(tmp_path, monkeypatch):
    from launch.slurm import submission

    (tmp_path / "bin").mkdir()
    sbatch = tmp_path / "bin" / "sbatch"
    # It keeps what it was given; the value is compared with the environment's, by its length.
    sbatch.write_text(
        '#!/bin/sh\ncp "$1" script\nprintf %s "$TOKEN" | wc -c > length\n'
        'printf %s "$SLURM_JOB_ID$SBATCH_EXPORT$SUBMITIT_FOLDER" > left\n'
        'printf %s "-$SBATCH_ACCOUNT-$SLURM_CONF" >> left\n'
        "echo Submitted batch job 42\n"
    )
    sbatch.chmod(0o755)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    inside = dict(SLURM_JOB_ID="7", SBATCH_EXPORT="NONE", SUBMITIT_FOLDER="x")
    for name, value in (inside | dict(SBATCH_ACCOUNT="mine", SLURM_CONF="conf")).items():
        monkeypatch.setenv(name, value)
    secret = "s3cr3t\n$(touch x)"
    job = Job("a.py", "w", (f"--config.data.path={ODD}",), {"TOKEN": secret})
    before = dict(os.environ)
    logs = tmp_path / "logs"
    assert submission.submit(job, submission.Allocation(1, 1, 60), logs) == "42"
    assert dict(os.environ) == before
    assert int(Path("length").read_text()) == len(secret)
    assert Path("left").read_text() == "-mine-conf"
    written = [path for path in (*logs.iterdir(), Path("script")) if path.is_file()]
    assert len(written) >= 3
    assert not [path for path in written if b"s3cr3t" in path.read_bytes()]
    dumped = (logs / "42_submitted.pkl").read_bytes()
    texts = [argument for _, argument, _ in pickletools.genops(dumped) if type(argument) is str]
    assert f"--config.data.path={ODD}" in texts
    assert pickle.loads(dumped).function._requeues == 10
    assert not (tmp_path / "here" / "f").exists()
    # Those that come after know how many are left.
    assert pickle.loads(dumped).function.checkpoint().function._requeues == 9


def test_a_refusal_is_one_sentence(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "state").mkdir()
    double.install(tmp_path / "bin")
    ours = {"CLUSTER_DOUBLE": str(tmp_path / "state")}
    words = ["--config=configs/toy.py", f"--workdir={tmp_path / 'w'}", "--partition=none"]
    for path, said in (
        (f"{tmp_path / 'bin'}:{os.environ['PATH']}", "Invalid partition name specified"),
        (str(Path(sys.executable).parent), "sbatch is not found"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "launch.slurm", *words],
            cwd=running.ROOT,
            env=running.environment() | ours | {"PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert said in done.stderr
