"""What a config reads, and what it cannot."""

import pytest

from configs.errors import UserError
from tests.train import tiny
from text.reading import open_sources


def test_sources_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(UserError, match="model.vocab_size is None"):
        open_sources(tiny.config({"model.vocab_size": None}))
    files = {"data.source": "files", "data.cache_dir": str(tmp_path / "cache")}
    with pytest.raises(UserError, match="data.path"):
        open_sources(tiny.config({**files, "data.path": str(tmp_path / "none.txt")}))


def test_text_must_be_read_with_the_tokens_of_the_saved_model(tmp_path):
    def config(text):
        (tmp_path / "text.txt").write_text(text)
        return tiny.config(
            {
                "data.source": "files",
                "data.path": str(tmp_path / "text.txt"),
                "data.cache_dir": str(tmp_path / "cache"),
                "data.tokenizer": "char",
                "data.held_out": "tail",
                "data.validation": 0.3,
                "model.vocab_size": None,
            }
        )

    saved = open_sources(config("abcd" * 30)).tokenizer
    assert open_sources(config("dcba" * 30), saved).vocab_size == 4
    with pytest.raises(UserError, match="data.tokenizer gives other tokens"):
        open_sources(config("abce" * 30), saved)
