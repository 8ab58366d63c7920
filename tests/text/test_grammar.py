"""The lecture grammar: its truths against brute force over many texts, and its splits."""

import re
import subprocess
import sys
from collections import Counter, defaultdict
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import UserError
from text import grammar, lexicon
from text.pens import Dice, Writer

TRAIN = grammar.documents(4000, 0, "train")
VALIDATION = grammar.documents(1000, 0, "validation")
RULES = {"sense", "echo", "agreement", "clue"}
seeds = st.integers(0, 2**40)
splits = st.sampled_from(["train", "validation"])


# --- writing ---------------------------------------------------------------------------------
def test_texts_do_not_change() -> None:
    """Texts are data: a change of their words or order must be meant."""
    assert grammar.documents(3, 0, "train") == EXPECTED


@given(seeds, splits, st.integers(0, 6), st.integers(0, 6))
def test_longer_lists_begin_with_shorter_ones(seed, split, short, long) -> None:
    short, long = sorted((short, long))
    assert grammar.documents(long, seed, split)[:short] == grammar.documents(short, seed, split)


def test_no_text_is_in_both_splits() -> None:
    other = set(grammar.documents(2000, 1, "train")) | set(TRAIN)
    assert not other & set(VALIDATION)
    assert not other & set(grammar.documents(500, 1, "validation"))


def test_texts_have_the_promised_form() -> None:
    words = set(grammar.vocabulary())
    for text in TRAIN + VALIDATION:
        assert text == " ".join(text.split())
        assert text == text.lower()
        assert text.endswith(" .")
        assert 10 <= len(text.split()) <= 50
    assert {word for text in TRAIN for word in text.split()} == words


def test_vocabulary_holds_each_word_once() -> None:
    words = grammar.vocabulary()
    assert len(words) == len(set(words))
    assert words[:2] == [".", ","]
    assert words[2:] == sorted(words[2:])
    assert grammar.END not in words


# --- truth -----------------------------------------------------------------------------------
@settings(max_examples=200)
@given(seeds, splits)
def test_parsing_finds_what_the_writer_noted(seed, split) -> None:
    writer = grammar._write(seed, split, 0)
    text = " ".join(writer.words)
    assert grammar.explain(text) == writer.determined
    assert grammar.senses(text) == writer.senses


@settings(max_examples=50)
@given(seeds, splits, st.data())
def test_one_word_is_allowed_exactly_where_words_are_determined(seed, split, data) -> None:
    text = grammar.documents(1, seed, split)[0]
    words = text.split()
    determined = {truth.position for truth in grammar.explain(text, phrases=True)}
    for position, word in enumerate(words):
        allowed = grammar.continuations(" ".join(words[:position]))
        assert word in allowed
        assert (len(allowed) == 1) == (position in determined)
    assert grammar.END in grammar.continuations(text)

    # Whatever is allowed can be read, and nothing else can.
    position = data.draw(st.integers(0, len(words) - 1))
    before = words[:position]
    allowed = set(grammar.continuations(" ".join(before)))
    if grammar.END in allowed:  # then another document may begin
        allowed.update(grammar.continuations(""))
    for word in data.draw(st.lists(st.sampled_from(grammar.vocabulary()), max_size=5)):
        if word in allowed:
            grammar.explain(" ".join([*before, word]))
        else:
            with pytest.raises(UserError, match=re.escape(f"word {position}, '{word}', does")):
                grammar.explain(" ".join([*before, word]))


def test_sources_leave_one_word() -> None:
    """Brute force: texts that agree in the sources of a truth agree in its word.

    The same sources decide different words at different places ("it" asks for a verb, "thought
    of" for a noun), so truths are grouped by the word before them too.
    """
    found = defaultdict(set)
    for text in TRAIN + VALIDATION:
        words = text.split()
        for truth in grammar.explain(text):
            assert truth.rule in RULES
            assert truth.sources == tuple(sorted(set(truth.sources)))
            assert all(0 <= source < truth.position for source in truth.sources)
            assert words[truth.position] == truth.word
            sources = tuple(words[source] for source in truth.sources)
            found[(truth.rule, sources, words[truth.position - 1])].add(truth.word)
    assert len(found) > 500
    assert all(len(words) == 1 for words in found.values())


VERBS = {verb for domain in lexicon.DOMAINS.values() for verb, _ in domain.words.values()}
NOUNS = {noun for domain in lexicon.DOMAINS.values() for _, noun in domain.words.values()}


def test_each_source_of_a_sense_matters() -> None:
    """For each ambiguous word another cue changes both words that follow, and conversely."""
    seen = defaultdict(set)
    for name, domain in lexicon.DOMAINS.items():
        for word, (verb, noun) in domain.words.items():
            seen[word].add((name, verb, noun))
    for word, senses in seen.items():
        verbs, nouns = {s[1] for s in senses}, {s[2] for s in senses}
        assert len(verbs) == len(nouns) == len(senses), word
    assert sum(len(senses) > 1 for senses in seen.values()) == len(seen)
    assert len(NOUNS) == sum(len(domain.words) for domain in lexicon.DOMAINS.values())


def test_free_words_vary() -> None:
    """What is not determined has at least two continuations among the texts themselves."""
    continuations = defaultdict(set)
    prefixes = Counter()
    for text in grammar.documents(30000, 5, "train"):
        words = text.split()
        for position in range(1, 6):
            prefix = tuple(words[:position])
            continuations[prefix].add(words[position])
            prefixes[prefix] += 1
    checked = 0
    for prefix, count in prefixes.items():
        allowed = grammar.continuations(" ".join(prefix)) if count >= 60 else []
        assert continuations[prefix] <= set(allowed) or count < 60
        if len(allowed) > 1:
            checked += 1
            assert len(continuations[prefix]) > 1, prefix
    assert checked > 20


def test_nearby_words_do_not_give_the_answer_away() -> None:
    """The best guess from the two words before is mostly wrong: attention has to reach back."""
    counts = defaultdict(Counter)
    for text in TRAIN:
        words = text.split()
        for truth in grammar.explain(text):
            counts[truth.rule, tuple(words[truth.position - 2 : truth.position])][truth.word] += 1
    for rule, most in dict(sense=0.4, echo=0.3, clue=0.3, agreement=0.75).items():
        tables = [table for (name, _), table in counts.items() if name == rule]
        best = sum(max(table.values()) for table in tables)
        assert best / sum(sum(table.values()) for table in tables) < most, rule


def test_known_texts() -> None:
    """Truths worked out by hand."""
    text = "the zoologist saw the old mole . it digs tunnels . but the doctor saw the mole . it"
    assert [tuple(vars(truth).values()) for truth in grammar.explain(text)] == [
        (8, "digs", (1, 5), "sense", False),
        (9, "tunnels", (1, 5), "sense", False),
        (16, "mole", (5,), "echo", False),
    ]
    assert grammar.continuations(text) == ["marks"]
    assert [(s.position, s.word, s.sense) for s in grammar.senses(text + " marks skin .")] == [
        (5, "mole", "animal"),
        (16, "mole", "medicine"),
    ]
    text = "anna saw the american mole . it digs"
    assert [truth.held_out for truth in grammar.explain(text)] == [True]
    text = "a fluffy blue creature roamed the verdant forest . the creature was fluffy and blue"
    assert [(t.word, t.sources) for t in grammar.explain(text)] == [
        ("fluffy", (1, 3, 10)),
        ("blue", (2, 3, 10)),
    ]
    text = "the king near the queens lost his crown . soon he was happy . then ben thanked"
    assert grammar.continuations(text) == ["him"]
    assert {t.sources for t in grammar.explain(text)} == {(1,)}
    text = (
        "at midnight the count died . there was ink on the letter . there was flour on the knife . "
        "the poet slept in the hall . the cook sang in the attic . therefore the murderer was the"
    )
    assert grammar.continuations(text) == ["cook"]
    (truth,) = grammar.explain(text + " cook .")
    assert (truth.sources, truth.rule, truth.held_out) == ((15, 18), "clue", True)
    text = "emma saw the miniature eiffel tower . it stands on a shelf . it is"
    assert grammar.continuations(text) == ["small"]
    text = "emma saw the great eiffel tower . it stands"
    assert grammar.continuations(text) == ["in"]
    assert grammar.continuations(text + " in") == ["paris"]


# --- held-out combinations -------------------------------------------------------------------
def test_training_never_shows_a_held_out_combination() -> None:
    assert not any(truth.held_out for text in TRAIN for truth in grammar.explain(text))
    flags = [[t.held_out for t in grammar.explain(text)] for text in VALIDATION]
    share = sum(any(flag) for flag in flags) / len(flags)
    assert 0.3 < share < 0.8


def test_held_out_combinations_by_the_bare_words() -> None:
    """Independent of the parser: the two words of a combination in one training sentence."""
    adjacent = lexicon.HELD_OUT_SCALES
    for text in TRAIN:
        words = text.split()
        pairs = set(pairwise(words))
        assert not pairs & adjacent
        assert not set(zip(words, words[2:], strict=False)) & lexicon.HELD_OUT_TEXTURES
        assert not set(zip(words, words[3:], strict=False)) & lexicon.HELD_OUT_TRACES
        for sentence in text.split(" . "):
            parts = set(sentence.split())
            assert not any(cue in parts and word in parts for cue, word in lexicon.HELD_OUT_CUES)
        forms = {w for w, form in lexicon.HELD_OUT_FORMS if form == "subject" and w == words[1]}
        assert not (forms and "soon" in words)


def test_both_halves_of_a_held_out_combination_are_trained() -> None:
    partners = defaultdict(set)
    for text in TRAIN:
        words = text.split()
        for truth in grammar.explain(text):
            if truth.rule == "sense":
                cue, word = (words[source] for source in (*truth.sources, *truth.sources)[:2])
                partners[cue].add(word)
                partners[word, lexicon.DOMAIN_OF_CUE.get(cue)].add(cue)
    for cue, word in lexicon.HELD_OUT_CUES:
        domain = lexicon.DOMAIN_OF_CUE[cue]
        assert partners[cue] <= set(lexicon.DOMAINS[domain].words) - {word}
        assert len(partners[cue]) >= 2
        assert len(partners[word, domain]) >= 5


# --- reading ---------------------------------------------------------------------------------
@given(seeds, st.booleans())
def test_several_documents_at_once(seed, ends) -> None:
    texts = grammar.documents(4, seed, "train")
    joined = f" {grammar.END} ".join(texts) if ends else " ".join(texts)
    expected = [(t.word, t.rule) for text in texts for t in grammar.explain(text)]
    assert [(t.word, t.rule) for t in grammar.explain(joined)] == expected
    words = joined.split()
    assert all(words[truth.position] == truth.word for truth in grammar.explain(joined))
    assert all(words[sense.position] == sense.word for sense in grammar.senses(joined))


@given(seeds, splits, st.integers(0, 40))
def test_prompts_may_stop_anywhere(seed, split, length) -> None:
    text = grammar.documents(1, seed, split)[0]
    prompt = " ".join(text.split()[:length])
    expected = [truth for truth in grammar.explain(text) if truth.position < length]
    assert grammar.explain(prompt) == expected


def test_mistakes_are_told_in_one_sentence() -> None:
    for call, message in [
        (lambda: grammar.explain("the cat"), "word 1, 'cat', does not fit.* after 'the'"),
        (lambda: grammar.explain("the zoologst"), "word 1, .*did you mean 'zoologist'"),
        (lambda: grammar.explain("The king"), "word 0, 'The', does not fit"),
        (lambda: grammar.senses("the king lost her"), "word 3, 'her', .* 'his'"),
        (lambda: grammar.continuations("the king lost his crown . moo"), "word 6, 'moo'"),
        (lambda: grammar.documents(1, 0, "test"), "no split 'test'"),
        (lambda: grammar.documents(-1, 0, "train"), "-1 texts"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert str(caught.value).endswith(".")


def test_dice_are_fair_and_known() -> None:
    dice = Dice("fair")
    counts = Counter(dice.draw(6) for _ in range(6000))
    assert set(counts) == set(range(6))
    assert all(850 < count < 1150 for count in counts.values())
    assert [Dice("known").draw(1000) for _ in range(2)] == [KNOWN] * 2
    assert Writer(dice).words == []


def test_command_prints_texts_and_their_truth() -> None:
    run = [sys.executable, "-m", "text.grammar", "--count=2", "--seed=0", "--explain"]
    output = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    assert [line for line in output.splitlines() if line.endswith(" .")] == EXPECTED[:2]
    assert "->" in output
    failed = subprocess.run([*run, "--split=test"], capture_output=True, text=True)
    assert failed.returncode == 2
    assert "Traceback" not in failed.stderr


KNOWN = 375
EXPECTED = [
    ("the alchemist on sunday remembered the mole . then david asked about the grams ."),
    (
        "the composer sketched the pitch . then david asked about the harmony . but the "
        "referee sketched the pitch . often it needs grass ."
    ),
    "many women lost their clock . soon they sold their necklace .",
]
