"""Tokenizers: text to token ids and back, on the Hugging Face ``tokenizers`` library.

Five kinds, each of which is saved and loaded as one ``tokenizer.json``:

- ``word``: words parted by white space; decoding joins them by single spaces;
- ``char``: every Unicode character of the corpus, in sorted order;
- ``byte``: the 256 byte values of UTF-8, id = byte; lossless for any text;
- ``bpe``: byte-level byte-pair encoding (Sennrich et al. 2016, on bytes as in GPT-2), trained
  on the corpus; lossless for any text;
- ``other``: any tokenizer.json made elsewhere.

"<end>" ends a document. Its id comes after all others. Word, byte and BPE tokenizers always have
it; a char tokenizer has it when it is trained on more than one text, so that a single text's
vocabulary is exactly its characters. In a tokenizer made elsewhere, "<|endoftext|>", "</s>" or
"<end>" is taken for it.
"""

import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers
from jaxtyping import Int, Int32
from tokenizers import decoders, models, pre_tokenizers, trainers

from configs.errors import UserError, nearest

END = "<end>"
Kind = Literal["word", "char", "byte", "bpe", "other"]
TRAINED = ("word", "char", "byte", "bpe")

_END_TOKENS = (END, "<|endoftext|>", "</s>")
_BYTES = 256
_MOST = 1 << 24  # the library makes room for all tokens before it counts pairs
_PIECE = 1 << 20  # of a long text: the library's encodings take about 100 bytes a token


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokenizer and what the project needs to know of it. Made by ``train`` or ``load``."""

    kind: Kind
    _inner: tokenizers.Tokenizer = field(repr=False)

    @property
    def vocab_size(self) -> int:
        """Number of ids, "<end>" included: one more than the largest id."""
        return max(self._ids.values()) + 1

    @cached_property
    def end_id(self) -> int | None:
        """The id that ends a document, or None."""
        return next((self._ids[token] for token in _END_TOKENS if token in self._ids), None)

    def encode(self, text: str, special: bool = False) -> Int32[np.ndarray, "T"]:
        """Returns the ids of a text, without "<end>" and any other addition.

        Args:
          text: the text.
          special: read special tokens that are spelled out in the text ("<end>") as such. By
            default they are ordinary text, so that no document can end another.

        Raises:
          UserError: the text has a character or word that the vocabulary has not.
        """
        if self.kind in ("char", "byte") and len(text) > _PIECE and not special:
            pieces = [text[i : i + _PIECE] for i in range(0, len(text), _PIECE)]
            return np.concatenate([self.encode(piece) for piece in pieces])
        return self.encode_batch([text], special)[0]

    def encode_batch(
        self, texts: Sequence[str], special: bool = False
    ) -> list[Int32[np.ndarray, "T"]]:
        """Returns the ids of each text, as ``encode``, on all cores.

        Raises:
          UserError: as ``encode``.
        """
        inner = self._reading_special if special else self._inner
        for text in texts:
            self._refuse_unknown(text, special)
        try:
            encodings = inner.encode_batch(list(texts), add_special_tokens=False)
        except Exception as error:  # the library raises plain Exception
            raise UserError(
                f"data.tokenizer: tokens outside the vocabulary ({error}); use 'byte' or 'bpe', "
                "which encode any text."
            ) from error
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def decode(self, ids: Iterable[int] | Int[np.ndarray, "T"]) -> str:
        """Returns the text of some ids; special tokens are spelled out ("<end>").

        Raises:
          UserError: an id is outside the vocabulary.
        """
        numbers = [int(number) for number in ids]
        for number in numbers:
            self._check_id(number)
        text: str = self._inner.decode(numbers, skip_special_tokens=False)
        return text

    def token_text(self, id: int) -> str:
        """Returns the text of one token as a reader should see it.

        A token that is part of a character only is shown as escaped bytes ("\\\\xc3").

        Raises:
          UserError: the id is outside the vocabulary.
        """
        self._check_id(int(id))
        token = self._inner.id_to_token(int(id))
        if token is None:
            return ""
        raw = self._raw(token)
        return token if raw is None else raw.decode("utf-8", "backslashreplace")

    def token_bytes(self) -> Int[np.ndarray, "V"]:
        """Returns how many UTF-8 bytes of the source text each token stands for.

        Exact for char, byte and bpe, and for any byte-level tokenizer.json that adds no
        space of its own: the sum over a text's ids is the text's length in bytes. A word counts
        itself and the separator after it, so a text of single-spaced words counts one byte too
        many. For SentencePiece- and WordPiece-like files it is the piece's own text: exact up
        to what their normalizers change. Special tokens and unused ids stand for 0 bytes.
        """
        counts = np.zeros(self.vocab_size, np.int64)
        for token, number in self._ids.items():
            if token not in self._special_tokens:
                raw = self._raw(token)
                counts[number] = len(token.encode() if raw is None else raw)
                counts[number] += self.kind == "word"
        return counts

    def sources(self) -> dict[int, str | bytes]:
        """Returns the source text of each token by its id, in UTF-8; a special token's own name."""
        named = {number: token for token, number in self._ids.items()}
        return {
            number: token
            if token in self._special_tokens
            else token.encode()
            if (raw := self._raw(token)) is None
            else raw
            for number, token in sorted(named.items())
        }

    def to_json(self) -> str:
        """Returns the content of the tokenizer's ``tokenizer.json``."""
        text: str = self._inner.to_str()
        return text

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes ``tokenizer.json`` at ``path``, whole or not at all."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(self.to_json())
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise

    @cached_property
    def _ids(self) -> dict[str, int]:
        ids: dict[str, int] = self._inner.get_vocab(with_added_tokens=True)
        return ids

    @cached_property
    def _special_tokens(self) -> frozenset[str]:
        added = self._inner.get_added_tokens_decoder().values()
        return frozenset(token.content for token in added if token.special)

    @cached_property
    def _added_tokens(self) -> frozenset[str]:
        return frozenset(token.content for token in self._inner.get_added_tokens_decoder().values())

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self._ids.keys() - self._special_tokens)

    @cached_property
    def _reading_special(self) -> tokenizers.Tokenizer:
        return tokenizers.Tokenizer.from_str(self.to_json())

    @cached_property
    def _description(self) -> dict[str, Any]:
        description: dict[str, Any] = json.loads(self.to_json())
        return description

    def _raw(self, token: str) -> bytes | None:
        """The bytes of a token of the model, or None where it is spelled as it reads."""
        if token in self._added_tokens or self.kind in ("word", "char"):
            return None
        if _is_byte_level(self._description):
            return bytes(_byte_of_letter()[letter] for letter in token)
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes([int(token[3:5], 16)])
        return token.removeprefix("##").replace("\u2581", " ").encode()

    def _check_id(self, number: int) -> None:
        if not 0 <= number < self.vocab_size:
            raise UserError(
                f"data.tokenizer: id {number} is outside the vocabulary of {self.vocab_size} "
                "tokens; decode ids that this tokenizer has encoded."
            )

    def _refuse_unknown(self, text: str, special: bool) -> None:
        if self.kind not in ("word", "char"):
            return
        if special:
            for token in self._special_tokens:
                # Keeps the positions of everything else.
                text = text.replace(token, " " * len(token) if self.kind == "word" else "")
        known = self._known
        parts: Iterable[str] = text.split() if self.kind == "word" else text
        unknown = set(parts) - known
        if unknown:
            parts = list(parts)
            position, part = next((i, part) for i, part in enumerate(parts) if part in unknown)
            name = "word" if self.kind == "word" else "character"
            raise UserError(
                f"data.tokenizer: tokens outside the vocabulary: {name} {part!r} at position "
                f"{position} is not one of the tokenizer's {len(known)} {name}s"
                f"{nearest(part, known) if self.kind == 'word' else ''}; change the text or use "
                "'byte' or 'bpe', which encode any text."
            )


def train(kind: str, texts: Iterable[str], vocab_size: int | None = None) -> Tokenizer:
    """Returns a tokenizer of a kind for some texts, one text a document.

    Args:
      kind: "word", "char", "byte" or "bpe".
      texts: the documents to take the vocabulary from. Words and characters get their ids in
        sorted order.
      vocab_size: number of ids of a "bpe" tokenizer, "<end>" included: at least 257. Texts with
        few distinct pairs may give fewer. Ignored for the other kinds.

    Raises:
      UserError: an unknown kind, no text at all, or a "bpe" vocabulary below 257 or too large.
    """
    if kind == "byte":
        return _finish("byte", _byte_tokenizer(), True)
    if kind == "bpe":
        if vocab_size is None or vocab_size <= _BYTES:
            raise UserError(
                f"data.tokenizer_vocab_size: {vocab_size} is too few for byte-level BPE; give "
                f"at least {_BYTES + 1}, the bytes and {END!r}."
            )
        if vocab_size > _MOST:
            raise UserError(
                f"data.tokenizer_vocab_size: {vocab_size} is too many for byte-level BPE; give at "
                f"most {_MOST:,}."
            )
        return _finish("bpe", _bpe_tokenizer(texts, vocab_size - 1), True)
    if kind == "word":
        words: set[str] = set()
        for text in texts:
            words.update(text.split())
        return word_tokenizer(sorted(words))
    if kind == "char":
        characters: set[str] = set()
        count = 0
        for text in texts:
            characters.update(text)
            count += 1
        if not characters:
            raise UserError("data.path: the corpus is empty; give texts to tokenize.")
        ids = {character: i for i, character in enumerate(sorted(characters))}
        inner = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=[]))
        inner.decoder = decoders.Fuse()
        return _finish("char", inner, count > 1)
    raise UserError(
        f"data.tokenizer: there is no tokenizer kind {kind!r}; use one of "
        f"{', '.join(TRAINED)}, or the path of a tokenizer.json{nearest(kind, TRAINED)}."
    )


def word_tokenizer(words: Sequence[str]) -> Tokenizer:
    """Returns the word tokenizer of a vocabulary: word i has id i, "<end>" comes last.

    Raises:
      UserError: no words.
    """
    ordinary = [word for word in words if word != END]
    if not ordinary:
        raise UserError("data.path: the corpus is empty; give texts to tokenize.")
    ids = {word: i for i, word in enumerate(ordinary)}
    inner = tokenizers.Tokenizer(models.WordLevel(ids))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _finish("word", inner, True)


def load(path: str | os.PathLike[str]) -> Tokenizer:
    """Returns the tokenizer of a ``tokenizer.json``, made here or elsewhere.

    Raises:
      UserError: the file is missing or is no tokenizer.json.
    """
    try:
        text = Path(os.path.expanduser(path)).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        name = os.fspath(path)
        raise UserError(
            f"data.tokenizer: {name!r} cannot be read ({reason}); give the path of a "
            f"tokenizer.json, or 'word', 'char', 'byte' or 'bpe'{nearest(name, TRAINED)}."
        ) from error
    return from_json(text, os.fspath(path))


def from_json(text: str, name: str = "the given text") -> Tokenizer:
    """Returns the tokenizer of a tokenizer.json's content; ``name`` is used in errors.

    Raises:
      UserError: the text is no tokenizer.json.
    """
    try:
        inner = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises plain Exception
        raise UserError(
            f"data.tokenizer: {name!r} is no valid tokenizer.json ({error}); save one with the "
            "tokenizers library."
        ) from error
    if not inner.get_vocab_size():
        raise UserError(f"data.tokenizer: {name!r} has an empty vocabulary; give another file.")
    inner.encode_special_tokens = True
    inner.no_padding()
    inner.no_truncation()
    # As the library writes it: a file may leave optional keys out.
    return Tokenizer(_kind_of(json.loads(inner.to_str())), inner)


def _finish(kind: Kind, inner: tokenizers.Tokenizer, has_end: bool) -> Tokenizer:
    if has_end:
        inner.add_special_tokens([END])
    inner.encode_special_tokens = True
    return Tokenizer(kind, inner)


def _byte_tokenizer() -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(models.BPE(vocab=_byte_of_letter(), merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return inner


def _bpe_tokenizer(texts: Iterable[str], size: int) -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return inner


def _byte_of_letter() -> dict[str, int]:
    """The letters that byte-level tokenizers write for bytes (the table of GPT-2).

    Printable Latin-1 characters stand for themselves, the other bytes for the letters from
    U+0100 on, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(_BYTES) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    letters.update({chr(0x100 + i): byte for i, byte in enumerate(others)})
    return letters


def _parts(section: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A pre-tokenizer's or decoder's parts: itself, or the members of a sequence."""
    if section is None:
        return []
    members = section.get("pretokenizers") or section.get("decoders") or [section]
    return list(members)


def _is_byte_level(description: dict[str, Any]) -> bool:
    return any(part["type"] == "ByteLevel" for part in _parts(description["decoder"]))


def _kind_of(description: dict[str, Any]) -> Kind:
    """Which of our kinds a tokenizer.json describes."""
    model = description["model"]
    splits = [part["type"] for part in _parts(description["pre_tokenizer"])]
    if description["normalizer"] is not None or description["post_processor"] is not None:
        return "bpe" if model["type"] == "BPE" and _is_byte_level(description) else "other"
    if model["type"] == "WordLevel" and splits == ["WhitespaceSplit"] and _never_unknown(model):
        return "word"
    if model["type"] == "BPE" and _is_byte_level(description):
        return "bpe" if model["merges"] else "byte"
    decoder = description["decoder"] or {}
    if model["type"] == "BPE" and not splits and not model["merges"] and _never_unknown(model):
        return "char" if decoder.get("type") == "Fuse" else "other"
    return "other"


def _never_unknown(model: dict[str, Any]) -> bool:
    """Whether the model has no token for what it does not know."""
    return model["unk_token"] not in model["vocab"]
