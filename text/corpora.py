"""Corpora: the token ids of a source's documents, split, memory-mapped and kept on disk.

A prepared source is one folder of the cache, named by a digest of everything that it depends
on: the documents of both splits, the tokenizer's settings and the format. It holds
``tokenizer.json``, the ids and document starts of each split, and ``manifest.json``, which is
written last and records the size and checksum of every other file. Files are replaced
atomically; a folder whose files do not agree with its manifest is built anew.
"""

import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Int64

from configs.errors import UserError
from configs.folders import folder, user_cache
from text import grammar, tokenizers
from text.sources import Splits, read_documents, read_splits
from text.tokenizers import Tokenizer

__all__ = ["Corpus", "Prepared", "prepare", "read_documents", "read_splits"]

# A change of what is stored, or of how text becomes ids, takes a new number.
_FORMAT = 1
_MANIFEST = "manifest.json"
_TOKENIZER = "tokenizer.json"
_BATCH = 1024


@dataclass(frozen=True, eq=False)
class Corpus:
    """The tokens of one split. Document d is ``tokens[starts[d]:starts[d + 1]]``."""

    tokens: Int[np.ndarray, "N"]
    """Token ids, read-only and memory-mapped: uint16 if the vocabulary fits, else uint32."""
    starts: Int64[np.ndarray, "documents+1"]
    """Where each document begins, and the end. A document's "<end>" belongs to it."""

    @property
    def num_documents(self) -> int:
        return len(self.starts) - 1

    def document(self, index: int) -> Int[np.ndarray, "T"]:
        """Returns the tokens of one document."""
        return self.tokens[self.starts[index] : self.starts[index + 1]]


class Prepared(NamedTuple):
    """A source made ready for training."""

    tokenizer: Tokenizer
    train: Corpus
    validation: Corpus
    digest: str
    """Of the tokens of both splits and the tokenizer, wherever the text came from."""


def prepare(data: Any, cache_dir: str | None = None) -> Prepared:
    """Returns the tokenizer and the two splits of a source, from the cache where it has them.

    The tokenizer is trained on the training split; for "char" on the whole corpus (a single text
    then has exactly its own characters), and the words of the grammar are its vocabulary.

    Args:
      data: ``config.data``: an object with the attributes ``source`` ("grammar", "files" or
        "kjv"), ``tokenizer`` (a kind, or the path of a tokenizer.json), ``tokenizer_vocab_size``
        (for "bpe"), ``cache_dir``; for the grammar ``documents``, ``validation_documents`` and
        ``grammar_seed``; for files ``path``; for files and kjv ``validation`` (a fraction) and
        ``held_out`` ("documents" or "tail").
      cache_dir: overrides ``data.cache_dir``. Where both are empty, the arrays are in
        ``$XDG_CACHE_HOME/manyheads``, or ``~/.cache/manyheads``.

    Raises:
      UserError: see ``read_splits`` and ``text.tokenizers``; a split without tokens, or a
        cache folder that cannot be written.
    """
    splits = read_splits(data)
    given = None if data.tokenizer in tokenizers.TRAINED else tokenizers.load(data.tokenizer)
    settings = [data.source, data.tokenizer if given is None else given.to_json()]
    if data.tokenizer == "bpe":
        settings.append(str(data.tokenizer_vocab_size))
    if data.tokenizer == "word" and data.source == "grammar":
        settings.extend(grammar.vocabulary())
    folder = _root(cache_dir or data.cache_dir) / _key(splits, settings)
    prepared = _open(folder)
    if prepared is None:
        tokenizer = given or _train(data, splits)
        _build(folder, tokenizer, splits)
        prepared = _open(folder)
    if prepared is None:
        raise UserError(
            f"data.cache_dir: what was written to {str(folder)!r} does not read back the same; "
            "check the disk or choose another folder."
        )
    return prepared


def _root(cache_dir: str) -> Path:
    if cache_dir:
        return folder(cache_dir, "data.cache_dir")
    return user_cache()


def _key(splits: Splits, settings: list[str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([_FORMAT, splits.cut, settings]).encode())
    for documents in (splits.train, splits.validation):
        digest.update(f"{len(documents)} documents".encode())
        for document in documents:
            content = document.encode()
            digest.update(f"{len(content)} bytes".encode())
            digest.update(content)
    return digest.hexdigest()


def _train(data: Any, splits: Splits) -> Tokenizer:
    if data.tokenizer == "word" and data.source == "grammar":
        return tokenizers.word_tokenizer(grammar.vocabulary())
    texts = splits.train
    if data.tokenizer == "char":
        texts = splits.train + splits.validation
        if splits.cut:
            # The two sides of the cut are one document.
            place = len(splits.train)
            texts[place - 1 : place + 1] = [texts[place - 1] + texts[place]]
    return tokenizers.train(data.tokenizer, texts, data.tokenizer_vocab_size)


def _build(folder: Path, tokenizer: Tokenizer, splits: Splits) -> None:
    dtype = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"
    sizes: dict[str, list[int]] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sizes[_TOKENIZER] = _write(folder / _TOKENIZER, iter([tokenizer.to_json().encode()]))
        for name, documents in (("train", splits.train), ("validation", splits.validation)):
            starts = [0]
            open_end = splits.cut and name == "train"
            arrays = _encode(tokenizer, documents, open_end, starts)
            sizes[f"{name}.tokens"] = _write(
                folder / f"{name}.tokens", (array.astype(dtype).tobytes() for array in arrays)
            )
            if starts[-1] == 0:
                raise UserError(
                    f"data.tokenizer: the {name} split has no tokens; give more text or another "
                    "tokenizer."
                )
            sizes[f"{name}.starts"] = _write(
                folder / f"{name}.starts", iter([np.array(starts, "<i8").tobytes()])
            )
        manifest = json.dumps({"format": _FORMAT, "dtype": dtype, "files": sizes}, indent=1)
        _write(folder / _MANIFEST, iter([manifest.encode()]))
    except OSError as error:
        raise UserError(
            f"data.cache_dir: {str(folder)!r} cannot be written ({error.strerror}); choose a "
            "folder that can."
        ) from error


def _encode(
    tokenizer: Tokenizer, documents: list[str], open_end: bool, starts: list[int]
) -> Iterator[Int[np.ndarray, "N"]]:
    """Yields the documents' ids and appends their ends to ``starts``."""
    end = [] if tokenizer.end_id is None else [tokenizer.end_id]
    for first in range(0, len(documents), _BATCH):
        batch = documents[first : first + _BATCH]
        # Long texts go one by one: ``encode`` takes them in pieces.
        long = sum(map(len, batch)) > 1 << 24
        encoded = map(tokenizer.encode, batch) if long else iter(tokenizer.encode_batch(batch))
        for index, ids in enumerate(encoded, first):
            if end and not (open_end and index == len(documents) - 1):
                ids = np.concatenate([ids, np.array(end, ids.dtype)])
            starts.append(starts[-1] + len(ids))
            yield ids


def _write(path: Path, parts: Iterator[bytes]) -> list[int]:
    """Writes a file whole or not at all; returns its size in bytes and its CRC-32."""
    size = checksum = 0
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            for part in parts:
                file.write(part)
                size += len(part)
                checksum = zlib.crc32(part, checksum)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return [size, checksum]


def _open(folder: Path) -> Prepared | None:
    """Returns what a cache folder holds, or None where it is not whole and sound."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
        if manifest["format"] != _FORMAT:
            return None
        for name, (size, checksum) in manifest["files"].items():
            if (folder / name).stat().st_size != size or _checksum(folder / name) != checksum:
                return None
        splits = []
        for name in ("train", "validation"):
            tokens = np.memmap(folder / f"{name}.tokens", manifest["dtype"], mode="r")
            starts = np.fromfile(folder / f"{name}.starts", "<i8")
            starts.flags.writeable = False
            splits.append(Corpus(tokens, starts))
        tokenizer = tokenizers.from_json((folder / _TOKENIZER).read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError):
        return None
    sums = json.dumps(manifest["files"], sort_keys=True).encode()
    digest = hashlib.blake2b(sums, digest_size=8).hexdigest()
    return Prepared(tokenizer, splits[0], splits[1], digest)


def _checksum(path: Path) -> int:
    checksum = 0
    with open(path, "rb") as file:
        while part := file.read(1 << 22):
            checksum = zlib.crc32(part, checksum)
    return checksum
