"""The README's programs run as they are printed."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tests.train import tiny
from train.loop import train

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
PROGRAMS = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", README, re.DOTALL))
# The field that names each, and its value: model.attention, gated_heads:GatedHeads.
NAMED = re.findall(rf"--config\.(\S+)=((?:{'|'.join(PROGRAMS)}):\w+)", README)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder that has the programs, on Python's path."""
    for name, text in PROGRAMS.items():
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_program_is_named_in_a_command():
    assert {value.split(":")[0] for _, value in NAMED} == PROGRAMS.keys() - {"look"}


@pytest.mark.parametrize(("field", "value"), NAMED)
def test_a_program_trains_on_a_mesh(folder, field, value):
    fields = {"steps": 2, "steps_per_call": 2, "model.num_layers": 1, field: value}
    stepper = tiny.Stepper(tiny.config(fields), tiny.mesh(fsdp=2, heads=2))
    _, losses = stepper.losses(stepper.start(), 2)
    assert np.isfinite(losses).all()
    assert losses[0] != losses[1]


def test_a_saved_model_is_looked_at(folder):
    fields = {"steps": 2, "steps_per_call": 2, "log.eval_batches": 1, "model.num_layers": 1}
    words = {"data.source": "grammar", "data.tokenizer": "word", "data.documents": 200}
    words |= {"data.validation_documents": 4}
    config = tiny.config(fields | words | {"model.vocab_size": None, "length": 64})
    train(config, folder / "runs" / "toy", Console(quiet=True))
    found: dict = {}
    exec(compile(PROGRAMS["look"], "look.py", "exec"), found)
    width, heads = config.model.embed_dim, config.model.num_heads
    assert found["query"].shape[:3] == (1, width, heads)
    assert found["logits"].shape[:2] == found["tokens"].shape
