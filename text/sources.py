"""Where documents come from, and which of them are held out for validation."""

import glob
import hashlib
import os
from pathlib import Path
from typing import Any, NamedTuple

from configs.errors import UserError, nearest
from text import grammar
from text.books import king_james_chapters

SOURCES = ("grammar", "files", "kjv")
HELD_OUT = ("documents", "tail")


class Splits(NamedTuple):
    """The documents of each split, in order.

    ``cut`` says that a tail was cut off inside a document: the last training document then
    goes on in the first validation document and does not end.
    """

    train: list[str]
    validation: list[str]
    cut: bool = False


def read_documents(data: Any) -> list[str]:
    """Returns all documents of a source, before anything is held out.

    The grammar's training documents come before its validation documents. Files come in the
    order in which ``data.path`` names them, those of a glob sorted by name.

    Args:
      data: ``config.data``; see ``text.corpora.prepare``.

    Raises:
      UserError: an unknown source, or files that are missing, empty or not UTF-8.
    """
    if data.source == "grammar":
        splits = _grammar_splits(data)
        return splits.train + splits.validation
    if data.source == "kjv":
        return king_james_chapters()
    if data.source == "files":
        return [_read_file(path) for path in _paths(data.path)]
    raise UserError(
        f"data.source: there is no source {data.source!r} of texts; use one of "
        f"{', '.join(SOURCES)} or repeats{nearest(str(data.source), (*SOURCES, 'repeats'))}."
    )


def read_splits(data: Any) -> Splits:
    """Returns the training and the validation documents of a source.

    The grammar knows its own splits. Other sources hold out a fraction ``data.validation``:

    - ``data.held_out="documents"``: whole documents whose digest, read as a number in [0, 1), is
      below the fraction. A document's split depends neither on the other documents nor on
      their order, except that each split gets at least one.
    - ``data.held_out="tail"``: the characters of the concatenated text from
      ``int((1 - fraction) * length)`` on.

    Raises:
      UserError: as ``read_documents``; a fraction outside (0, 1), an unknown ``held_out``, or
        a split without documents.
    """
    if data.source == "grammar":
        return _grammar_splits(data)
    documents = read_documents(data)
    fraction = data.validation
    if not 0 < fraction < 1:
        raise UserError(
            f"data.validation: the fraction {fraction} leaves nothing to train on or to validate "
            "with; use one between 0 and 1, such as 0.1."
        )
    if data.held_out == "documents":
        return _hold_out_documents(documents, fraction)
    if data.held_out == "tail":
        return _hold_out_tail(documents, fraction)
    raise UserError(
        f"data.held_out: {data.held_out!r} is unknown; use 'documents' or 'tail'"
        f"{nearest(str(data.held_out), HELD_OUT)}."
    )


def _grammar_splits(data: Any) -> Splits:
    for name in ("documents", "validation_documents"):
        if getattr(data, name) < 1:
            raise UserError(
                f"data.{name}: {getattr(data, name)} documents make no split; use 1 or more."
            )
    if data.grammar_seed < 0:
        raise UserError(f"data.grammar_seed: {data.grammar_seed} is no seed; use 0 or more.")
    return Splits(
        grammar.documents(data.documents, data.grammar_seed, "train"),
        grammar.documents(data.validation_documents, data.grammar_seed, "validation"),
    )


def _hold_out_documents(documents: list[str], fraction: float) -> Splits:
    numbers = [_number(document) for document in documents]
    lowest, highest = min(numbers), max(numbers)
    if lowest == highest:
        raise UserError(
            "data.held_out: 'documents' leaves nothing to train on, because all documents are one "
            "and the same; use data.held_out='tail' or give more files."
        )
    held_out = [number != highest and (number == lowest or number < fraction) for number in numbers]
    return Splits(
        [text for text, out in zip(documents, held_out, strict=True) if not out],
        [text for text, out in zip(documents, held_out, strict=True) if out],
    )


def _number(document: str) -> float:
    """A document's digest as a number in [0, 1)."""
    digest = hashlib.blake2b(document.encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)


def _hold_out_tail(documents: list[str], fraction: float) -> Splits:
    length = sum(map(len, documents))
    place = int((1 - fraction) * length)
    if place == 0 or place == length:
        raise UserError(
            f"data.validation: a text of {length} characters cannot be split at the fraction "
            f"{fraction}; give more text or another fraction."
        )
    train: list[str] = []
    for index, document in enumerate(documents):
        if place < len(document):
            if place:
                train.append(document[:place])
            return Splits(train, [document[place:], *documents[index + 1 :]], cut=place > 0)
        train.append(document)
        place -= len(document)
    raise AssertionError("unreachable: the place is before the end of the text")


def _paths(path: str) -> list[Path]:
    """The files that a path, a glob, or a comma-separated list of them names."""
    # os.path asks for names too long for a file without raising; a list may well be one.
    whole = os.path.isfile(os.path.expanduser(path))
    parts = [path] if whole else [part.strip() for part in path.split(",") if part.strip()]
    if not parts:
        raise UserError("data.path: it is empty; give a text file, a glob or a list of them.")
    found: list[Path] = []
    for part in parts:
        name = os.path.expanduser(part)
        if os.path.isdir(name):
            raise UserError(
                f"data.path: {part!r} is a folder; name its files, as in "
                f"{os.path.join(part, '*.txt')!r}."
            )
        if os.path.isfile(name):
            found.append(Path(name))
            continue
        if not glob.has_magic(name):
            raise UserError(f"data.path: there is no file {part!r}; give the path of a text file.")
        matches = sorted(filter(os.path.isfile, glob.glob(name, recursive=True)))
        if not matches:
            raise UserError(f"data.path: no file matches {part!r}; check the folder and pattern.")
        found.extend(map(Path, matches))
    return list(dict.fromkeys(found))


def _read_file(path: Path) -> str:
    try:
        # Bytes, so that line ends stay as they are; a byte-order mark is none of the text.
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(
            f"data.path: {str(path)!r} cannot be read ({error.strerror}); check its permissions."
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"data.path: {str(path)!r} is not UTF-8 (byte {error.start}); convert it, as with "
            "'iconv -t utf-8'."
        ) from error
    if not text.strip():
        raise UserError(f"data.path: {str(path)!r} is empty; take it out or give another file.")
    return text
