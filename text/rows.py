"""Rows of a batch from a corpus: which tokens stand together, in which order.

A row is a range of tokens to predict; what the model reads is each token's predecessor. So
a document's first word is predicted from the end of the document before it.
"""

from typing import Any, NamedTuple

import numpy as np
from grain.experimental import index_shuffle
from jaxtyping import Bool, Int

from configs.errors import UserError, nearest
from text.corpora import Corpus

KINDS = ("packed", "stream")


class Rows(NamedTuple):
    """Some rows; padding reads token 0 and is not counted.

    They are arrays on the host, or on a mesh, where a leading axis may stack those of several
    steps.

    Attributes:
      tokens: read by the model.
      labels: to predict.
      counted: where the loss counts.
      positions: of each token in its document, or None for 0, 1, 2, ...
      segments: document of each token, -1 where padded, or None where all is one.
    """

    tokens: Int[Any, "*steps B T"]
    labels: Int[Any, "*steps B T"]
    counted: Bool[Any, "*steps B T"]
    positions: Int[Any, "*steps B T"] | None = None
    segments: Int[Any, "*steps B T"] | None = None


class CorpusRows:
    """The rows of a corpus, numbered without end: each epoch takes all in another order.

    "packed" puts whole documents together up to the length, and cuts the ones that are
    longer; documents do not see each other. "stream" cuts the joined documents at every
    ``length`` tokens, from another place in each epoch.
    """

    def __init__(self, corpus: Corpus, kind: str, length: int, seed: int, end_id: int | None):
        """Args: the tokens, one of ``KINDS``, T in tokens, of the order, the end token.

        Raises:
          UserError: no such kind, no end token to pack with, or no token to predict.
        """
        if kind not in KINDS:
            raise UserError(
                f"data.rows = {kind!r} is no kind of rows{nearest(kind, KINDS)}; "
                f"choose one of {', '.join(KINDS)}."
            )
        if kind == "packed" and end_id is None:
            raise UserError(
                "data.rows = 'packed' needs a tokenizer with an end token, and this one has none; "
                "set data.rows = 'stream'."
            )
        self.corpus, self.kind, self.length, self.seed = corpus, kind, length, seed
        self.end_id = end_id
        if kind == "packed":
            self.ranges = _pack(np.asarray(corpus.starts), length)
            self.per_epoch = len(self.ranges)
        else:
            self.per_epoch = max(1, (len(corpus.tokens) - length) // length)
        fewest = 1 if kind == "packed" else 2
        if len(corpus.tokens) < fewest:
            raise UserError(
                f"data.path gives {len(corpus.tokens)} tokens to train on or to hold out, and "
                f"rows need at least {fewest}; give more text."
            )

    def training(self, numbers: Int[np.ndarray, "B"]) -> Rows:
        """Returns rows by number in the endless order; a pure function of seed and numbers."""
        ranges = np.array([self._range(int(n)) for n in numbers], np.int64).reshape(-1, 2)
        return self._rows(ranges)

    def evaluation(self, numbers: Int[np.ndarray, "B"]) -> Rows:
        """Returns rows in the corpus' own order; a number past the last gives padding."""
        return self._rows(self.in_order(numbers))

    def in_order(self, numbers: Int[np.ndarray, "B"]) -> Int[np.ndarray, "B 2"]:
        """Returns the token ranges of ``evaluation``; an empty range past the last."""
        if self.kind == "packed":
            inside = numbers < len(self.ranges)
            found = self.ranges[np.where(inside, numbers, 0)]
            return np.where(inside[:, None], found, 0)
        # The first token has no predecessor to be predicted from.
        start = 1 + numbers.astype(np.int64) * self.length
        ends = np.minimum(start + self.length, len(self.corpus.tokens))
        return np.stack([np.minimum(start, ends), ends], axis=1)

    @property
    def evaluation_rows(self) -> int:
        """Number of rows that cover the corpus once."""
        if self.kind == "packed":
            return len(self.ranges)
        return -(-(len(self.corpus.tokens) - 1) // self.length)

    def _range(self, number: int) -> tuple[int, int]:
        epoch, index = divmod(number, self.per_epoch)
        seed = int(np.random.SeedSequence([self.seed, epoch]).generate_state(1)[0])
        index = index_shuffle(index, max_index=self.per_epoch - 1, seed=seed, rounds=4)
        if self.kind == "packed":
            first, end = self.ranges[index].tolist()
            return first, end
        start = 1 + seed % self.length + index * self.length
        start = max(1, min(start, len(self.corpus.tokens) - self.length))
        return start, min(start + self.length, len(self.corpus.tokens))

    def _rows(self, ranges: Int[np.ndarray, "B 2"]) -> Rows:
        tokens, starts = self.corpus.tokens, self.corpus.starts
        place = ranges[:, :1] + np.arange(self.length)
        counted = place < ranges[:, 1:]
        place = np.where(counted, place, 0)
        labels = np.where(counted, tokens[place], 0).astype(np.int32)
        read = np.where(counted, tokens[np.maximum(place - 1, 0)], 0).astype(np.int32)
        if self.kind == "stream":
            return Rows(read, labels, counted)
        document = np.searchsorted(starts, place, side="right") - 1
        first = starts[document]
        assert self.end_id is not None
        read = np.where(counted & (place == first), self.end_id, read).astype(np.int32)
        positions = np.where(counted, place - np.maximum(first, ranges[:, :1]), 0)
        segments = np.where(counted, document - document[:, :1], -1)
        return Rows(read, labels, counted, positions.astype(np.int32), segments.astype(np.int32))


def _pack(starts: Int[np.ndarray, "starts"], length: int) -> Int[np.ndarray, "rows 2"]:
    """Puts consecutive documents together while they fit; cuts what is longer than a row."""
    ranges = []
    begin = int(starts[0])
    for first, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        if end - begin > length and first > begin:
            ranges.append((begin, first))
            begin = first
        while end - begin > length:
            ranges.append((begin, begin + length))
            begin += length
    if begin < starts[-1]:
        ranges.append((begin, int(starts[-1])))
    return np.array(ranges, np.int64).reshape(-1, 2)
