"""Two pens that follow the same stories: one writes a text, the other reads one.

A story (``text.stories``) is a function of a pen. It asks the pen for words and tells it which
of them are determined, so that a single description of the grammar both generates and parses.
The next word alone decides every choice of a story: reading needs no search inside a story.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

END = "<end>"


@dataclass(frozen=True)
class Determined:
    """A word that the earlier words determine: the grammar allows no other one there."""

    position: int
    """Index of the word in the text's words."""
    word: str
    sources: tuple[int, ...]
    """Positions of the earlier words that determine it, all below ``position``."""
    rule: str
    """"sense", "echo", "agreement", "clue", or "phrase" (see ``text.grammar.explain``)."""
    held_out: bool
    """Whether its combination of sources is one that training never shows."""


@dataclass(frozen=True)
class Sense:
    """An ambiguous word in a text and the sense that its context gives it."""

    position: int
    word: str
    sense: str


class Word(NamedTuple):
    """A word that a story has put down, and where."""

    position: int
    text: str


class Pen(ABC):
    """What a story may do. ``words`` are the story's words so far.

    Positions count from the beginning of the text, in which the story begins at ``start``.
    """

    def __init__(self, start: int = 0) -> None:
        self.start = start
        self.words: list[str] = []
        self.determined: list[Determined] = []
        self.senses: list[Sense] = []
        self.reserved = False

    @property
    def position(self) -> int:
        """The position of the next word."""
        return self.start + len(self.words)

    @abstractmethod
    def _put(self, options: Sequence[str]) -> str:
        """Puts down one of ``options`` and returns it."""

    @abstractmethod
    def branch(self, *alternatives: Sequence[str], odds: Sequence[int] = ()) -> int:
        """Returns which alternative the story goes on with; puts down nothing.

        An alternative lists the words that it may begin with; ``(END,)`` ends the text. No
        word begins two alternatives. ``odds`` are the writer's relative frequencies.
        """

    def choose(self, options: Sequence[str]) -> Word:
        """Puts down any of ``options``: a free choice. A repeated option is likelier."""
        return Word(self.position, self._put(options))

    def say(self, phrase: str) -> None:
        """Puts down the words of a fixed phrase."""
        for word in phrase.split():
            self._put((word,))

    def must(self, word: str, rule: str, *sources: Word, held_out: bool = False) -> Word:
        """Puts down the one word that ``sources`` leave, by the given rule."""
        position = self.position
        self._put((word,))
        places = tuple(sorted({source.position for source in sources}))
        self.determined.append(Determined(position, word, places, rule, held_out))
        return Word(position, word)

    def note_sense(self, word: Word, sense: str) -> None:
        """Notes the sense of an ambiguous word."""
        self.senses.append(Sense(word.position, word.text, sense))

    def reserve(self, held_out: bool) -> bool:
        """Keeps the whole text out of training if ``held_out``; returns ``held_out``."""
        self.reserved |= held_out
        return held_out


class Dice:
    """Fair draws from the BLAKE2b digests of a key.

    Digests are the same on every platform and for every version of Python and NumPy, which
    NumPy does not promise of the methods of its generators.
    """

    def __init__(self, key: str) -> None:
        self._key = key
        self._block = 0
        self._pool = 0

    def draw(self, n: int) -> int:
        """Returns a number in ``range(n)``; its bias is below ``n / 2**64``."""
        if self._pool < 1 << 64:
            digest = hashlib.blake2b(f"{self._key}/{self._block}".encode()).digest()
            self._pool = int.from_bytes(digest, "big")
            self._block += 1
        self._pool, number = divmod(self._pool, n)
        return number


class Writer(Pen):
    """Writes a text with the dice's choices."""

    def __init__(self, dice: Dice) -> None:
        super().__init__()
        self._dice = dice

    def _put(self, options: Sequence[str]) -> str:
        word = options[self._dice.draw(len(options))] if len(options) > 1 else options[0]
        self.words.append(word)
        return word

    def branch(self, *alternatives: Sequence[str], odds: Sequence[int] = ()) -> int:
        weights = tuple(odds) or (1,) * len(alternatives)
        number = self._dice.draw(sum(weights))
        for index, weight in enumerate(weights):
            number -= weight
            if number < 0:
                return index
        raise AssertionError("unreachable: the number is below the sum of the weights")


class _Stop(Exception):
    """A reader can go no further: the text is over, or its next word does not fit."""


class Reader(Pen):
    """Reads the words of a text from ``start`` on, and notes what could stand at each place.

    ``allowed[i]`` holds the words that the story allows at position ``start + i``: at each
    word that was read, and at the place where reading came to an end. ``follow`` reads.
    """

    def __init__(self, text: Sequence[str], start: int = 0) -> None:
        super().__init__(start)
        self.allowed: list[frozenset[str]] = []
        self._text = text
        self._begins: frozenset[str] = frozenset()

    def _put(self, options: Sequence[str]) -> str:
        position = self.position
        self.allowed.append(self._begins or frozenset(options))
        self._begins = frozenset()
        if position == len(self._text) or self._text[position] not in options:
            raise _Stop
        self.words.append(self._text[position])
        return self._text[position]

    def branch(self, *alternatives: Sequence[str], odds: Sequence[int] = ()) -> int:
        # Branches may follow each other before a word is put down; the first sees them all.
        if not self._begins:
            self._begins = frozenset(word for words in alternatives for word in words)
        position = self.position
        word = self._text[position] if position < len(self._text) else END
        ending = None
        for index, words in enumerate(alternatives):
            if word in words:
                return index
            if END in words:
                ending = index
        if ending is None:
            self.allowed.append(self._begins)
            raise _Stop
        return ending

    def follow(self, story: Callable[[Pen], None]) -> bool:
        """Reads a story; returns whether it came to its end."""
        try:
            story(self)
        except _Stop:
            return False
        self.allowed.append(self._begins or frozenset((END,)))
        return True
