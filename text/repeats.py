"""Rows of random tokens that repeat: the task on which induction heads form."""

import numpy as np
from jaxtyping import Int

from configs.errors import UserError
from text.rows import Rows


class RepeatRows:
    """Each row draws distinct tokens and repeats them with a period of its own.

    Within a period no token occurs twice, so nothing before the first repetition tells the
    next token, and everything after does. The period is drawn anew for each row: with one
    fixed period a model learns the distance and no induction (a position, not a match).
    """

    def __init__(self, vocab_size: int, length: int, periods: tuple[int, ...], seed: int):
        """Args: tokens to draw from, T, shortest and longest period in tokens, of the draws.

        Raises:
          UserError: the periods do not fit the vocabulary or the length.
        """
        if len(periods) != 2 or not 1 <= periods[0] <= periods[1]:
            raise UserError(
                f"data.periods = {periods} must be (shortest, longest), such as (4, 16)."
            )
        if periods[1] > vocab_size:
            raise UserError(
                f"data.periods = {periods} needs {periods[1]} distinct tokens and "
                f"model.vocab_size = {vocab_size}; shorten the periods or raise the vocabulary."
            )
        if periods[1] > length:
            raise UserError(
                f"data.periods = {periods} is longer than length = {length}: nothing would "
                "repeat; shorten the periods or lengthen the sequences."
            )
        self.vocab_size, self.length, self.periods, self.seed = vocab_size, length, periods, seed

    def training(self, numbers: Int[np.ndarray, "B"]) -> Rows:
        """Returns rows by number; a pure function of seed and numbers."""
        return self._rows(numbers, 0)

    def evaluation(self, numbers: Int[np.ndarray, "B"]) -> Rows:
        """Returns rows that training never draws."""
        return self._rows(numbers, 1)

    @property
    def evaluation_rows(self) -> int:
        """Number of rows of an evaluation over all: fresh ones are endless, this is enough."""
        return 1024

    def _rows(self, numbers: Int[np.ndarray, "B"], split: int) -> Rows:
        whole = np.stack([self._row(int(n), split) for n in numbers])
        counted = np.ones((len(numbers), self.length), bool)
        return Rows(whole[:, :-1], whole[:, 1:], counted)

    def _row(self, number: int, split: int) -> Int[np.ndarray, "tokens"]:
        draw = np.random.Generator(np.random.Philox(key=[self.seed, 2 * number + split]))
        period = int(draw.integers(self.periods[0], self.periods[1] + 1))
        tokens = draw.permutation(self.vocab_size)[:period]
        return tokens[np.arange(self.length + 1) % period].astype(np.int32)
