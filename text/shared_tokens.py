"""Tokens that two tokenizers have in common, whatever their numbers."""

import numpy as np
from jaxtyping import Int

from text.tokenizers import Tokenizer


def shared_tokens(old: Tokenizer, new: Tokenizer) -> Int[np.ndarray, "v"]:
    """Returns the old number of each token of a tokenizer; -1 for one that the old one has not.

    Tokens are the same where they stand for the same bytes of text, special ones where they have
    the same name, and the ends of a document are. Where several old ones stand for the same bytes,
    as the letter and the byte of some SentencePiece files, it is the first.
    """
    numbers: dict[str | bytes, int] = {}
    for number, source in old.sources().items():
        numbers.setdefault(source, number)
    found = np.full(new.vocab_size, -1)
    for number, source in new.sources().items():
        found[number] = numbers.get(source, -1)
    if new.end_id is not None and old.end_id is not None:
        found[new.end_id] = old.end_id
    return found
