"""Rows of a corpus: whole documents apart, streams, epochs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import UserError
from text.corpora import Corpus
from text.rows import CorpusRows

END = 9999


def corpus(sizes):
    """Returns documents of distinct tokens, so that each is known again; each ends with END."""
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    tokens = np.arange(starts[-1], dtype=np.uint16)
    tokens[starts[1:] - 1] = END
    return Corpus(tokens, starts)


def packed(sizes, length, seed=0):
    return CorpusRows(corpus(sizes), "packed", length, seed, END)


def stream(tokens, length, seed=0):
    return CorpusRows(corpus([tokens]), "stream", length, seed, None)


documents = st.lists(st.integers(1, 25), min_size=1, max_size=30)


@given(documents, st.integers(1, 12))
@settings(max_examples=200, deadline=None)
def test_packing_predicts_every_token_once_from_its_own_document(sizes, length):
    source = packed(sizes, length)
    rows = source.evaluation(np.arange(source.evaluation_rows))
    whole = corpus(sizes)
    # In the corpus' order every token is a label once, documents' first words and ends too.
    np.testing.assert_array_equal(rows.labels[rows.counted], whole.tokens)
    document_of = np.repeat(np.arange(len(sizes)), sizes)
    place = 0
    for r in range(len(rows.labels)):
        seen: dict[int, list[int]] = {}
        for t in np.flatnonzero(rows.counted[r]):
            document = document_of[place]
            is_first = place == whole.starts[document]
            expected = END if is_first else whole.tokens[place - 1]
            assert rows.tokens[r, t] == expected
            seen.setdefault(int(rows.segments[r, t]), []).append(int(rows.positions[r, t]))
            if is_first:
                assert rows.positions[r, t] == 0
            place += 1
        # Positions of a document count from 0 in its row.
        assert all(positions == list(range(len(positions))) for positions in seen.values())


@given(documents, st.integers(1, 12))
@settings(max_examples=200, deadline=None)
def test_packing_keeps_documents_whole_and_apart(sizes, length):
    source = packed(sizes, length)
    rows = source.evaluation(np.arange(source.evaluation_rows))
    row_of, segment_of = {}, {}
    for r in range(len(rows.labels)):
        for t in np.flatnonzero(rows.counted[r]):
            key = len(row_of)
            row_of[key], segment_of[key] = r, int(rows.segments[r, t])
    starts = np.concatenate([[0], np.cumsum(sizes)])
    for first, size in zip(starts, sizes, strict=False):
        places = range(first, first + size)
        in_rows = {row_of[p] for p in places}
        if size <= length:
            assert len(in_rows) == 1
        for r in in_rows:
            own = {segment_of[p] for p in places if row_of[p] == r}
            others = {segment_of[p] for p in row_of if row_of[p] == r and p not in places}
            assert len(own) == 1
            assert not own & others
    assert (rows.segments[~rows.counted] == -1).all()
    assert (rows.tokens[~rows.counted] == 0).all()


def test_a_document_that_fits_a_row_is_never_cut():
    source = packed([5, 4, 8, 3, 3, 2, 1, 8], 8)
    found = [(int(a), int(b)) for a, b in source.ranges]
    # 5 | 4 | 8 | 3 + 3 + 2 | 1 | 8: 5 and 4 are too long together.
    assert found == [(0, 5), (5, 9), (9, 17), (17, 25), (25, 26), (26, 34)]


def test_a_document_that_is_longer_than_a_row_is_cut_at_the_length():
    source = packed([3, 20, 2], 8)
    found = [(int(a), int(b)) for a, b in source.ranges]
    assert found[:3] == [(0, 3), (3, 11), (11, 19)]
    assert found[-1][1] == 25


def test_a_packed_row_by_hand():
    rows = packed([3, 2], 7).evaluation(np.arange(1))
    np.testing.assert_array_equal(rows.tokens, [[END, 0, 1, END, 3, 0, 0]])
    np.testing.assert_array_equal(rows.labels, [[0, 1, END, 3, END, 0, 0]])
    np.testing.assert_array_equal(rows.counted, [[1, 1, 1, 1, 1, 0, 0]])
    np.testing.assert_array_equal(rows.positions, [[0, 1, 2, 0, 1, 0, 0]])
    np.testing.assert_array_equal(rows.segments, [[0, 0, 0, 1, 1, -1, -1]])


def test_a_stream_row_by_hand():
    rows = stream(10, 4).evaluation(np.arange(3))
    np.testing.assert_array_equal(rows.tokens, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 0, 0, 0]])
    np.testing.assert_array_equal(rows.labels, [[1, 2, 3, 4], [5, 6, 7, 8], [END, 0, 0, 0]])
    assert rows.counted.sum() == 9


@given(st.integers(3, 60), st.integers(1, 9))
@settings(max_examples=100, deadline=None)
def test_evaluation_of_a_stream_predicts_every_token_but_the_first_once(tokens, length):
    if tokens < 2 * length:
        return
    source = stream(tokens, length)
    rows = source.evaluation(np.arange(source.evaluation_rows))
    np.testing.assert_array_equal(rows.labels[rows.counted], source.corpus.tokens[1:])
    np.testing.assert_array_equal(rows.tokens[rows.counted], source.corpus.tokens[:-1])
    # Rows past the last are padding, so that the last batch may be ragged.
    assert not source.evaluation(np.array([source.evaluation_rows + 3])).counted.any()


def test_packed_rows_past_the_last_are_padding():
    source = packed([3, 4], 5)
    assert not source.evaluation(np.array([source.evaluation_rows])).counted.any()


@given(documents, st.integers(4, 12), st.integers(0, 5))
@settings(max_examples=15, deadline=None)
def test_an_epoch_of_packed_rows_takes_each_once(sizes, length, seed):
    source = packed(sizes, length, seed)
    for epoch in range(2):
        numbers = epoch * source.per_epoch + np.arange(source.per_epoch)
        found = sorted(source._range(int(n)) for n in numbers)
        assert found == sorted((int(a), int(b)) for a, b in source.ranges)


def test_an_epoch_of_a_stream_never_takes_a_token_twice():
    source = stream(1000, 16)
    starts = []
    for epoch in range(4):
        rows = source.training(epoch * source.per_epoch + np.arange(source.per_epoch))
        labels = rows.labels[rows.counted]
        assert len(set(labels.tolist())) == len(labels) == source.per_epoch * 16
        starts.append(rows.tokens.min())
    assert len(set(starts)) > 1  # each epoch cuts at other places


@pytest.mark.parametrize("source", [packed([6] * 40, 8), stream(400, 8)], ids=["packed", "stream"])
def test_epochs_and_seeds_have_orders_of_their_own(source):
    def order(of, epoch):
        return of.training(epoch * of.per_epoch + np.arange(of.per_epoch)).labels.tobytes()

    other = CorpusRows(source.corpus, source.kind, 8, 1, END)
    assert len({order(source, 0), order(source, 1), order(source, 2), order(other, 0)}) == 4
    assert order(source, 1) == order(CorpusRows(source.corpus, source.kind, 8, 0, END), 1)


@pytest.mark.parametrize("source", [packed([6] * 40, 8), stream(400, 8)], ids=["packed", "stream"])
def test_a_row_depends_on_its_number_alone(source):
    numbers = np.array([0, 7, 123, 10**6])
    together = source.training(numbers)
    for i, number in enumerate(numbers):
        alone = source.training(np.array([number]))
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[i])
        np.testing.assert_array_equal(alone.labels[0], together.labels[i])


def test_training_labels_of_a_stream_are_the_next_tokens():
    rows = stream(400, 8).training(np.arange(60))
    np.testing.assert_array_equal(rows.labels[:, :-1], rows.tokens[:, 1:])
    assert rows.counted.all()


def test_rows_that_cannot_be_made_are_refused():
    text = corpus([5, 5])
    with pytest.raises(UserError, match="data.rows = 'pack'.*did you mean 'packed'"):
        CorpusRows(text, "pack", 4, 0, END)
    with pytest.raises(UserError, match="data.rows = 'packed' needs a tokenizer with an end token"):
        CorpusRows(text, "packed", 4, 0, None)
    with pytest.raises(UserError, match="gives 1 tokens .* at least 2"):
        CorpusRows(corpus([1]), "stream", 4, 0, END)


def test_a_text_shorter_than_a_row_is_one_row():
    rows = CorpusRows(corpus([5, 5]), "stream", 40, 0, END)
    made = rows.training(np.arange(3))
    text = rows.corpus.tokens
    for tokens, labels, counted in zip(made.tokens, made.labels, made.counted, strict=True):
        np.testing.assert_array_equal(tokens[counted], text[:-1])
        np.testing.assert_array_equal(labels[counted], text[1:])
