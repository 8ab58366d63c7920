"""A job that is moved to machines that have the code alone."""

import dataclasses

import pytest

from configs.errors import UserError
from launch import elsewhere
from launch.job import Job


def test_the_config_is_named_as_it_is_among_the_copied_code(monkeypatch, tmp_path):
    described = Job("configs/gpt3.py:125m", "gs://b/run", ("--config.steps=3",))
    monkeypatch.chdir(elsewhere.CODE)
    assert elsewhere.moved(described) == described
    monkeypatch.chdir(elsewhere.CODE / "launch")
    for name in ("../configs/gpt3.py:125m", str(elsewhere.CODE / "configs" / "gpt3.py:125m")):
        assert elsewhere.moved(dataclasses.replace(described, config=name)) == described
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"--config=mine.py is outside of"):
        elsewhere.moved(dataclasses.replace(described, config="mine.py"))


@pytest.mark.parametrize("workdir", ["runs/a", "~/run", "./a", "run"])
def test_a_folder_that_would_be_lost_is_refused(workdir, monkeypatch):
    monkeypatch.chdir(elsewhere.CODE)
    with pytest.raises(UserError, match="goes with its machine"):
        elsewhere.moved(Job("configs/toy.py", workdir))
    with pytest.raises(UserError, match="--workdir is missing"):
        elsewhere.moved(Job("configs/toy.py", ""))
    assert elsewhere.moved(Job("configs/toy.py", "/mnt/run")).workdir == "/mnt/run"


def test_the_extras_are_those_of_the_accelerator_and_the_stores():
    assert elsewhere.extras(Job("a.py", "/mnt/a"), "cuda") == ["cuda"]
    read = Job("a.py", "gs://b/a", ("--config.data.path=s3://c/d",))
    assert elsewhere.extras(read, "tpu") == ["tpu", "gs", "s3"]
