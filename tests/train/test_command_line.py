"""``python -m train`` and its sisters as a person starts them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from configs import resolved
from model import saving
from model.parameter import named_arrays
from tests.train import tiny
from tests.train.processes import running
from text import tokenizers

ROOT = Path(__file__).parents[2]


def command(module, *arguments, forced=True, stdout=subprocess.PIPE):
    """Starts a command without waiting for it, on eight forced host devices or on one device."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=os.environ if forced else running.environment(),
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )


def save(config, path, documents):
    """Saves an untrained model, zeros as its average, and documents beside its config."""
    stepper = tiny.Stepper(config, tiny.mesh())
    model = named_arrays(stepper.start().model)
    items = dict(model=model, ema=jax.tree.map(jax.numpy.zeros_like, model))
    with jax.set_mesh(stepper.mesh):
        saving.save(path, items, {"config.json": resolved.to_json(config), **documents}).result()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with another run, a text, a model with words and one without."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "other").mkdir()
    (folder / "other" / "config.json").write_text(resolved.to_json(tiny.config({"seed": 7})))
    (folder / "other" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    (folder / "empty").mkdir()
    text = "a rose is a \\[red] rose\n" * 20
    (folder / "rose.txt").write_text(text)
    tokenizer = tokenizers.train("char", [text])
    words = {
        "data.source": "files",
        "data.path": str(folder / "rose.txt"),
        "data.tokenizer": "char",
        "data.cache_dir": str(folder / "cache"),
        "data.held_out": "tail",
        "model.vocab_size": tokenizer.vocab_size,
        "host_devices": 2,
    }
    save(tiny.config(), folder / "random", {})
    words_json = {"tokenizer.json": tokenizer.to_json()}
    save(tiny.config(words), folder / "rose", words_json)
    state = json.dumps(dict(step=1, corpus="another"))
    save(tiny.config(words), folder / "moved", {**words_json, "state.json": state})
    return folder


REPEATS = "--config=configs/induction.py"
MISTAKES = {
    "unknown field": (
        ("train", REPEATS, "--workdir={}/new", "--config.model.num_head=3"),
        "config.model.num_head is not a field (did you mean 'model.num_heads'?)",
    ),
    "a number that a flag does not take": (
        ("train", REPEATS, "--workdir={}/new", "--process_id=-1"),
        "flag --process_id=-1: -1 is not a non-negative integer; --help lists the flags.",
    ),
    "sizes that do not divide": (
        ("train", REPEATS, "--workdir={}/new", "--config.mesh.fsdp=1", "--config.mesh.heads=3"),
        "model.num_heads = 4 is not divisible by mesh.heads = 3",
    ),
    "no such text": (
        ("train", "--config=configs/text.py", "--workdir={}/new", "--config.data.path={}/none.txt"),
        "there is no file",
    ),
    "longer than the positions": (
        ("train", REPEATS, "--workdir={}/new", "--config.model.max_length=16"),
        "length = 32 is longer than model.max_length = 16",
    ),
    "another run's folder": (
        ("train", REPEATS, "--workdir={}/other"),
        "holds a run of another config",
    ),
    "an empty folder": (("train.sample", "--checkpoint={}/empty"), "neither a run with"),
    "no words": (("train.sample", "--checkpoint={}/random"), "random tokens"),
    "an unknown word": (
        ("train.sample", "--checkpoint={}/rose", "--prompt=zebra"),
        "the prompt 'zebra' cannot be read: tokens outside the vocabulary: character 'z'",
    ),
    "no number": (
        ("train.sample", "--checkpoint={}/rose", "--mesh=fsdp=\N{SUPERSCRIPT TWO}"),
        "--mesh=fsdp=\N{SUPERSCRIPT TWO} must be sizes of context, data, fsdp, heads",
    ),
    "a mesh that does not divide": (
        ("train.sample", "--checkpoint={}/rose", "--mesh=heads=3", "--host_devices=3"),
        "is not divisible by mesh.heads = 3",
    ),
    "no prompts": (
        ("train.sample", "--checkpoint={}/rose", "--prompts=/dev/null"),
        "--prompts=/dev/null is empty",
    ),
    "another text": (
        ("train.evaluate", "--checkpoint={}/moved"),
        "trained on another text than data.path",
    ),
}


@pytest.fixture(scope="module")
def mistakes(folder):
    """Makes all mistakes, two at a time."""
    left, running, found = list(MISTAKES.items()), {}, {}
    while left or running:
        while left and len(running) < 2:
            name, ((module, *arguments), _) = left.pop(0)
            running[name] = command(module, *(a.format(folder) for a in arguments))
        name = next(iter(running))
        process = running.pop(name)
        said, complaint = process.communicate(timeout=120)
        found[name] = (process.returncode, said, complaint)
    return found


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_with_one_sentence_and_status_2(mistakes, folder, name):
    status, said, complaint = mistakes[name]
    assert status == 2, complaint
    assert complaint.startswith("error: ")
    assert complaint.count("\n") == 1
    assert MISTAKES[name][1] in complaint
    assert "Traceback" not in said + complaint
    assert not (folder / "new").exists()


def test_a_saved_model_is_evaluated_and_continues_its_prompts(folder):
    # A mesh of the run's forced host devices, and one of more.
    evaluate = command(
        *("train.evaluate", f"--checkpoint={folder}/rose", f"--json={folder}/figures.json"),
        "--mesh=fsdp=2",
        forced=False,
    )
    averages = [
        command(
            *(module, f"--checkpoint={folder}/rose", "--ema", f"--json={folder}/{module}.json"),
            *arguments,
        )
        for module, *arguments in (
            ("train.evaluate",),
            ("train.sample", "--prompt=is", "--tokens=5", "--temperature=0"),
        )
    ]
    sample = command(
        *("train.sample", f"--checkpoint={folder}/rose", f"--json={folder}/samples.json"),
        *("--tokens=7", "--temperature=0", "--prompt=is a", r"--prompt=\[red] "),
        *("--mesh=heads=4", "--host_devices=4"),
        forced=False,
    )
    said, complaint = evaluate.communicate(timeout=200)
    assert evaluate.returncode == 0, complaint
    figures = json.loads((folder / "figures.json").read_text())
    assert f"{figures['loss']:.4f}" in said
    # An untrained network finds all of its 12 tokens about equally likely.
    assert abs(figures["perplexity"] - 12) < 1
    said, complaint = sample.communicate(timeout=200)
    assert sample.returncode == 0, complaint
    samples = json.loads((folder / "samples.json").read_text())["samples"]
    assert [s["prompt"] for s in samples] == ["is a", "\\[red] "]
    assert all(s["prompt"] + s["text"] in said for s in samples)

    # Zeros find every token exactly as likely as any other.
    for command_line in averages:
        complaint = command_line.communicate(timeout=200)[1]
        assert command_line.returncode == 0, complaint
    figures = json.loads((folder / "train.evaluate.json").read_text())
    assert abs(figures["perplexity"] - 12) < 1e-4
    samples = json.loads((folder / "train.sample.json").read_text())["samples"]
    assert len(set(samples[0]["text"])) == 1


def test_commands_on_a_checkpoint_explain_the_same_flags():
    helps = [command(module, "--help") for module in ("train.evaluate", "train.sample")]
    said = [helped.communicate(timeout=120)[0] for helped in helps]
    for flag in ("checkpoint", "json", "mesh", "host_devices"):
        lines = [re.findall(rf"^ *--{flag}: (.*)", text, re.MULTILINE) for text in said]
        assert lines[0] == lines[1] != []


def test_a_run_that_nobody_can_read_goes_on_and_saves(folder):
    arguments = (
        *("train", REPEATS, "--config.steps=4", "--config.steps_per_call=1"),
        *("--config.log.eval_every=1", "--config.log.eval_batches=1"),
        *("--config.log.tensorboard=False", "--config.data.prefetch=1", "--config.mesh.fsdp=1"),
    )
    unread = command(*arguments, f"--workdir={folder}/unread")
    with open("/dev/full", "w") as full:
        lost = command(*arguments, f"--workdir={folder}/lost", stdout=full)
    unread.stdout.readline()
    unread.stdout.close()
    complaint = unread.stderr.read()
    unread.stderr.close()
    assert unread.wait(timeout=200) == 0, complaint
    _, complaint = lost.communicate(timeout=200)
    assert lost.returncode == 2
    said = [line for line in complaint.splitlines() if line.startswith("error: ")]
    assert len(said) == 1, complaint
    assert said[0].startswith("error: standard output could not be written (No space left")
    assert "Traceback" not in complaint
    for name in ("unread", "lost"):
        assert (folder / name / "checkpoints" / "4" / "manifest.json").exists()
