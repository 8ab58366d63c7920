"""What a run reads: the rows of a config's source to train on, and those held out."""

import dataclasses

import numpy as np
from ml_collections import ConfigDict

from configs.errors import UserError
from text import corpora
from text.repeats import RepeatRows
from text.rows import CorpusRows
from text.tokenizers import Tokenizer

RowSource = CorpusRows | RepeatRows


@dataclasses.dataclass(frozen=True)
class Sources:
    """Rows to train on and rows held out, with the tokenizer that made them, if one did.

    The digest names the text and its tokens: equal digests give equal rows.
    """

    train: RowSource
    validation: RowSource
    tokenizer: Tokenizer | None
    vocab_size: int
    digest: str


def open_sources(config: ConfigDict, tokenizer: Tokenizer | None = None) -> Sources:
    """Reads the corpus of a config, or sets up its random one.

    Args:
      config: whole.
      tokenizer: of a saved model, whose tokens the text must be read with.

    Raises:
      UserError: the corpus is missing, empty, or does not suit the config.
    """
    data = config.data
    if data.source == "repeats":
        size = config.model.vocab_size
        if size is None:
            raise UserError("model.vocab_size is None; random tokens need it: set it, say to 64.")
        repeats = RepeatRows(size, config.length, tuple(data.periods), config.seed)
        return Sources(repeats, repeats, None, size, "repeats")
    prepared = corpora.prepare(data)
    if tokenizer is not None and tokenizer.to_json() != prepared.tokenizer.to_json():
        raise UserError(
            "data.tokenizer gives other tokens for this text than the saved model was trained "
            "with; restore the text, or name the saved tokenizer.json in data.tokenizer."
        )

    made = prepared.tokenizer
    longest = int(np.diff(prepared.validation.starts).max())
    if data.source == "grammar" and longest > config.length:
        # Its documents are examined whole.
        raise UserError(
            f"length = {config.length} is shorter than a document of the grammar ({longest} "
            "tokens); raise it."
        )

    def cut(corpus: corpora.Corpus) -> CorpusRows:
        return CorpusRows(corpus, data.rows, config.length, config.seed, made.end_id)

    return Sources(
        cut(prepared.train), cut(prepared.validation), made, made.vocab_size, prepared.digest
    )
