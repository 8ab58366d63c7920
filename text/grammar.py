"""The lecture grammar: a small English-like language whose truth is known.

A text ("document") is one short story of 10 to 50 words. Its words are lower case, single
spaces part them, and punctuation stands as words of its own. For every text the grammar knows
which words are *determined*: the earlier words leave exactly one word there. ``explain`` names
them with the earlier words that decide, by one of four rules:

- ``sense``: a cue early on gives an ambiguous word its sense, and the sense decides;
- ``echo``: an adjective comes back with its noun, or a noun with its second mention;
- ``agreement``: a pronoun or verb agrees in gender and number with an earlier noun;
- ``clue``: something that happened early decides how the story ends.

Words that follow from the wording ("thought" after "everyone") or by elimination (the last noun
that is left to recall) are determined too, by the rule ``phrase``; they are explained only on
request, since guessing them is no merit.

Splits. A text is shown in training or in validation, never in both. Validation holds every
text with a held-out combination (``text.lexicon.HELD_OUT_*``: a cue with a word, a scale with a
landmark, a texture with a creature, a noun with a form of its pronoun, a trace with a weapon),
and one in ten of all other texts, by a digest of the text. Each half of a held-out combination
is seen in training with many other partners, so that a model which composes can get it right:
"american" is never seen with "mole", but it is with "bat", "crane" and "seal", and "mole" is with
six other cues of animals.

Texts come from BLAKE2b digests of (seed, split, index), so that a text depends neither on
the number of texts asked for nor on the platform or any library's random numbers.

``python -m text.grammar --count=5 --seed=0 --split=validation --explain`` prints some.
"""

from configs import keyboard

if __name__ == "__main__":
    keyboard.end_at_once()  # the imports below take seconds

import hashlib
from typing import Literal, NamedTuple, get_args

from absl import flags

from configs import command
from configs.errors import UserError, nearest
from text import lexicon
from text.pens import END, Determined, Dice, Reader, Sense, Writer
from text.stories import STORIES, Story

__all__ = [
    "Determined",
    "Sense",
    "Split",
    "continuations",
    "documents",
    "explain",
    "senses",
    "vocabulary",
]

Split = Literal["train", "validation"]

# One text in this many is kept for validation although training shows its combinations.
_UNSEEN_SHARE = 10


def documents(count: int, seed: int, split: Split) -> list[str]:
    """Returns the first ``count`` texts of a seed's split.

    A text depends on (seed, split, its index) only, so a longer list begins with the shorter
    one. No text of one split, under any seed, occurs in the other.

    Raises:
      UserError: an unknown split or a negative count.
    """
    if split not in get_args(Split):
        raise UserError(
            f"split: the lecture grammar has no split {split!r}; use 'train' or 'validation'"
            f"{nearest(str(split), get_args(Split))}."
        )
    if count < 0:
        raise UserError(f"documents: {count} texts cannot be written; give 0 or more.")
    return [" ".join(_write(seed, split, index).words) for index in range(count)]


def explain(text: str, phrases: bool = False) -> list[Determined]:
    """Returns the determined words of a text, in order, with the words that determine them.

    The text may hold several documents, with or without "<end>" between them, and may stop
    anywhere, as a prompt does. It is parsed: nothing is remembered from writing it.

    Args:
      text: words of the grammar, parted by single spaces.
      phrases: include the words that follow from the wording, under the rule
        ``phrase``, with all earlier words of their document as sources. Then the words
        explained are exactly those where ``continuations`` holds a single word.

    Raises:
      UserError: the text is not of the grammar; the sentence names the first word that
        does not fit and what may stand there.
    """
    found = []
    for document in _parse(text.split()):
        known = {truth.position: truth for truth in document.reader.determined}
        for offset in range(len(document.reader.words)):
            position = document.start + offset
            if position in known:
                found.append(known[position])
            elif phrases and len(document.allowed[offset]) == 1:
                sources = tuple(range(document.start, position))
                word = document.reader.words[offset]
                found.append(Determined(position, word, sources, "phrase", False))
    return found


def senses(text: str) -> list[Sense]:
    """Returns the ambiguous words of a text with their senses, in order.

    The sense is the domain that the cue announces ("animal", "chemistry", "medicine", ...), or
    "monument" and "model" for towers, bridges and castles. Only words whose sentence has been
    read far enough to hold them are listed; the text may stop anywhere.

    Raises:
      UserError: as ``explain``.
    """
    return [sense for document in _parse(text.split()) for sense in document.reader.senses]


def continuations(text: str) -> list[str]:
    """Returns every word that the grammar allows after a text, sorted; "<end>" ends a document.

    Raises:
      UserError: as ``explain``.
    """
    words = text.split()
    documents_read = _parse(words)
    last = documents_read[-1]
    return sorted(last.allowed[len(words) - last.start])


def vocabulary() -> list[str]:
    """Returns every word of the grammar once: punctuation first, then in alphabetical order."""
    words = set(lexicon.FUNCTION_WORDS)
    for domain in lexicon.DOMAINS.values():
        words.update(domain.cues, domain.words)
        for verb_and_noun in domain.words.values():
            words.update(verb_and_noun)
    for name, landmark in lexicon.LANDMARKS.items():
        words.update((name, *landmark))
    for furniture_and_material in lexicon.MODELS.values():
        words.update(furniture_and_material)
    for pair in lexicon.PAIRS:
        words.update(pair)
    for forms in (lexicon.HE, lexicon.SHE, lexicon.THEY):
        words.update(forms)
    words.update(
        *(lexicon.NAMES, lexicon.DAYS, lexicon.NEUTRAL, lexicon.OBSERVED, lexicon.SCALES),
        *(lexicon.CREATURES, lexicon.TEXTURES, lexicon.COLOURS, lexicon.LANDSCAPES),
        *(lexicon.MOODS_OF_PLACE, lexicon.MEETINGS, lexicon.BELONGINGS, lexicon.HANDLED),
        *(lexicon.FEELINGS, lexicon.ROOMS, lexicon.THANKED, lexicon.BESIDE, lexicon.SUSPECTS),
        *(
            lexicon.TRACES,
            lexicon.VICTIMS,
            lexicon.WEAPONS,
            lexicon.KEEPSAKES,
            lexicon.PASTIMES,
            lexicon.CHAMBERS,
        ),
    )
    return [*lexicon.PUNCTUATION, *sorted(words)]


def _write(seed: int, split: Split, index: int) -> Writer:
    stories = [story for story, share in STORIES.items() for _ in range(share)]
    attempt = 0
    while True:
        dice = Dice(f"{seed}/{split}/{index}/{attempt}")
        writer = Writer(dice)
        stories[dice.draw(len(stories))](writer)
        if _split_of(writer) == split:
            return writer
        attempt += 1


def _split_of(writer: Writer) -> Split:
    digest = hashlib.blake2b(" ".join(writer.words).encode(), digest_size=8).digest()
    unseen = int.from_bytes(digest, "big") % _UNSEEN_SHARE == 0
    return "validation" if writer.reserved or unseen else "train"


class _Document(NamedTuple):
    """A document within a text: where it starts, who read it, what was allowed where."""

    start: int
    reader: Reader
    allowed: list[frozenset[str]]


def _parse(words: list[str]) -> list[_Document]:
    """Reads the documents of a text; the last one may be unfinished, even empty."""
    found: list[_Document] = []
    start = 0
    while True:
        readings = [_read(story, words, start) for story in STORIES]
        reader, finished = max(readings, key=lambda reading: (reading[0].position, reading[1]))
        allowed = [
            frozenset().union(*(r.allowed[i] for r, _ in readings if len(r.allowed) > i))
            for i in range(len(reader.allowed))
        ]
        stop = reader.position
        if stop < len(words) and not finished:
            # A finished document may be followed by another one instead of going on.
            before = found[-1].allowed[-1] if found and stop == start else frozenset()
            raise UserError(_misfit(words, stop, allowed[-1] | before))
        found.append(_Document(start, reader, allowed))
        if stop == len(words):
            return found
        start = stop + (words[stop] == END)


def _read(story: Story, words: list[str], start: int) -> tuple[Reader, bool]:
    reader = Reader(words, start)
    return reader, reader.follow(story)


def _misfit(words: list[str], position: int, allowed: frozenset[str]) -> str:
    word = words[position]
    before = f" after {' '.join(words[max(0, position - 3) : position])!r}" if position else ""
    fitting = sorted(allowed)
    shown = ", ".join(map(repr, fitting[:8])) + (", ..." if len(fitting) > 8 else "")
    return (
        f"text: word {position}, {word!r}, does not fit the lecture grammar{before}; "
        f"use {'one of ' if len(fitting) > 1 else ''}{shown}{nearest(word, fitting)}."
    )


def _define_flags() -> None:
    flags.DEFINE_integer("count", 5, "Number of texts.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of the texts.", lower_bound=0)
    flags.DEFINE_string("split", "train", "train or validation.")
    flags.DEFINE_bool("explain", False, "Print the determined words too, and by what.")
    flags.DEFINE_string("text", None, "Explain this text instead of writing any.")


def main() -> None:
    """Prints texts of the grammar, or explains one."""
    given = flags.FLAGS
    own = given.text is not None
    texts = [given.text] if own else documents(given.count, given.seed, given.split)
    for text in texts:
        print(text)
        if not (given.explain or own):
            continue
        words = text.split()
        for truth in explain(text):
            sources = ", ".join(f"{words[s]} ({s})" for s in truth.sources)
            held_out = ", held out" if truth.held_out else ""
            print(f"    {sources} -> {truth.word} ({truth.position})  [{truth.rule}{held_out}]")
        print()


if __name__ == "__main__":
    command.run(main, _define_flags)
