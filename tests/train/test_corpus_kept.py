"""A run goes on with the text it began with, or not at all; a new one may have other tokens."""

import io

import pytest
from rich.console import Console

from configs import text
from configs.errors import UserError
from train.loop import train

QUIET = Console(quiet=True)


def run_config(path, cache, **changes):
    config = text.get_config()
    config.update_from_flattened_dict(
        {
            "steps": 2,
            "length": 8,
            "batch_size": 4,
            "steps_per_call": 2,
            "data.path": str(path),
            "data.cache_dir": str(cache),
            "model.embed_dim": 16,
            "model.num_layers": 1,
            "model.num_heads": 2,
            "model.mlp_dim": 16,
            "mesh.fsdp": 1,
            "optim.name": "adamw",
            "optim.schedule": "constant",
            "log.tensorboard": False,
            **changes,
        }
    )
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two texts of as many characters, a moved copy of the first, and a run on the first."""
    path = tmp_path_factory.mktemp("texts")
    (path / "a.txt").write_text("abcdefghij klmnop.\n" * 40)
    (path / "b.txt").write_text("zyxwvutsrq KLMNOP!\n" * 40)
    (path / "moved.txt").write_text((path / "a.txt").read_text())
    train(run_config(path / "a.txt", path / "cache"), path / "run", QUIET)
    return path


def test_another_text_is_refused(folder):
    config = run_config(folder / "b.txt", folder / "cache", steps=4)
    with pytest.raises(UserError, match="trained on another text"):
        train(config, folder / "run", QUIET)


def test_a_text_that_moved_is_taken(folder, tmp_path):
    first = run_config(folder / "a.txt", folder / "cache")
    train(first, tmp_path / "run", QUIET)
    config = run_config(folder / "moved.txt", folder / "cache", steps=3)
    assert train(config, tmp_path / "run", QUIET).step == 3


def test_parameters_of_other_tokens_are_matched_by_text_and_it_is_told(folder, tmp_path):
    changes = {"checkpoint.restore_from": str(folder / "run")}
    config = run_config(folder / "b.txt", folder / "cache", **changes)
    console = Console(record=True, width=200, file=io.StringIO())
    assert train(config, tmp_path / "run", console).step == 2
    # Of its 19 characters the space and the end of a line are the first text's too.
    assert "2 of 19 tokens by their text, 17 are new: embedding, unemb" in console.export_text()


def test_a_loss_that_is_not_finite_ends_the_run_before_a_save(folder, tmp_path):
    changes = {"optim.learning_rate": 1e30, "optim.clip": 0.0, "steps": 8, "steps_per_call": 4}
    config = run_config(folder / "a.txt", folder / "cache", **changes)
    with pytest.raises(UserError, match="is not finite, and nothing is saved"):
        train(config, tmp_path / "run", QUIET)
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_fewer_steps_than_were_taken_leave_the_record(folder, tmp_path):
    train(run_config(folder / "a.txt", folder / "cache"), tmp_path / "run", QUIET)
    record = (tmp_path / "run" / "config.json").read_text()
    outcome = train(
        run_config(folder / "a.txt", folder / "cache", steps=1), tmp_path / "run", QUIET
    )
    assert outcome.step == 2
    assert (tmp_path / "run" / "config.json").read_text() == record


def test_a_held_out_text_shorter_than_a_row_is_evaluated(folder, tmp_path):
    changes = {"length": 128, "data.validation": 0.1}
    config = run_config(folder / "a.txt", folder / "cache", **changes)
    outcome = train(config, tmp_path / "run", QUIET)
    assert outcome.evaluation["loss"] > 0
