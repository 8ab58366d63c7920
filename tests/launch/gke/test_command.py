"""The command, with a stub in the place of kubectl."""

import subprocess
import sys

import pytest
import yaml

from tests.train.processes import running

ODD = "--workdir=gs://bucket/a b;'$(touch x)`touch y`\n- z"
TPU = [
    *("--config=configs/gpt3.py:125m", ODD, "--name=heads", "--image=m:1", "--topology=4x4"),
    *("--accelerator=tpu-v5-lite-podslice", "--slices=2"),
]


def called(*words, **variables):
    """Runs the command."""
    return subprocess.run(
        [sys.executable, "-m", "launch.gke", *words],
        cwd=running.ROOT,
        env=running.environment() | variables,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.extras
def test_kubectl_is_given_the_manifest_and_no_value(extra, tmp_path):
    extra("kubeflow_trainer_api")
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(
        f"#!{sys.executable}\nimport pathlib, sys\nhere = pathlib.Path({str(tmp_path)!r})\n"
        "(here / 'words').write_text(' '.join(sys.argv[1:]))\n"
        "(here / 'given').write_text(sys.stdin.read())\nsys.exit((here / 'fail').exists())\n"
    )
    kubectl.chmod(0o755)
    words = [*TPU, "--secret=keys", "--env=TOKEN=s3cr3t", "--namespace=lab"]
    done = called(*words, PATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "words").read_text() == "apply --namespace=lab --filename=-"
    given = (tmp_path / "given").read_text()
    assert "s3cr3t" not in given + done.stdout + done.stderr
    (container,) = yaml.safe_load(given)["spec"]["replicatedJobs"][0]["template"]["spec"][
        "template"
    ]["spec"]["containers"]
    assert container["args"][-1] == ODD.replace("$", "$$")
    assert "kubectl delete jobset heads --namespace=lab" in done.stdout
    (tmp_path / "fail").touch()
    done = called(*words, PATH=str(tmp_path))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


@pytest.mark.extras
def test_it_is_shown_or_written_and_not_given(extra, tmp_path):
    extra("kubeflow_trainer_api")
    file = tmp_path / "heads.yaml"
    shown = called(*TPU, "--dry_run", f"--out={file}", PATH=str(tmp_path))
    assert (shown.returncode, shown.stderr, file.exists()) == (0, "", False)
    written = called(*TPU, f"--out={file}", PATH=str(tmp_path))
    assert written.returncode == 0
    made = yaml.safe_load(file.read_text())
    assert yaml.safe_load(shown.stdout.partition("\n\ngiven to: ")[0]) == made
    assert made["spec"]["replicatedJobs"][0]["replicas"] == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--accelerator is missing"),
        ([*TPU, "--nodes=2"], "--nodes is for GPUs"),
        ([*TPU, "--accelerator=nvidia-l4"], "--topology is for TPUs"),
        (["--accelerator=nvidia-l4", "--image=m", "--name=a"], "--gpus_per_node is missing"),
        ([*TPU, "--workdir=runs/a"], "goes with its machine"),
        ([*TPU, "--env=TOKEN=s3cr3t"], "put it into a Secret"),
    ],
)
def test_a_mistake_is_one_sentence(words, said):
    done = called(*words)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert said in done.stderr
    assert "s3cr3t" not in done.stderr
