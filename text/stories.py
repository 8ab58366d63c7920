"""The stories of the lecture grammar. Each is a function of a pen (``text.pens``).

Five kinds, after the examples of a lecture on attention:

- ``sense_story``: a cue, later an ambiguous word, later what follows from its sense;
- ``landmark_story``: a monument or a model of it ("eiffel" leads to paris, "miniature" to a
  shelf);
- ``creature_story``: adjectives stacked on nouns, and echoed when the noun comes back;
- ``agreement_story``: pronouns and verbs that agree with an early noun, past other nouns;
- ``mystery_story``: a clue among innocent doings, and the last word that it decides.
"""

from collections.abc import Callable

from text import lexicon as lex
from text.pens import END, Pen, Word

Story = Callable[[Pen], None]


def sense_story(pen: Pen) -> None:
    """The zoologist saw the mole . it digs tunnels . but the doctor saw the mole . ..."""
    kind = pen.branch(("the",), ("near",), lex.NAMES)
    if kind == 2:
        pen.choose(lex.NAMES)
        _observe(pen)
        if pen.branch(lex.NEUTRAL, lex.ATTRIBUTES, odds=(1, 2)) == 0:
            pen.choose(lex.NEUTRAL)
        cue = pen.choose(lex.ATTRIBUTES)
        words = tuple(lex.DOMAINS[lex.DOMAIN_OF_CUE[cue.text]].words)
    else:
        cue = _cue_before_observing(pen, kind, lex.PEOPLE, lex.PLACES)
        words = tuple(lex.DOMAINS[lex.DOMAIN_OF_CUE[cue.text]].words)
        if pen.branch(lex.NEUTRAL, words, odds=(1, 2)) == 0:
            pen.choose(lex.NEUTRAL)
    # "mole" is the word that probes and figures look at: it comes twice as often.
    word = pen.choose(words + ("mole",) * ("mole" in words))
    _consequence(pen, cue, word)

    if pen.branch((END,), ("but",), odds=(3, 1)) == 1:
        pen.say("but")
        first = lex.DOMAIN_OF_CUE[cue.text]
        others = [d for n, d in lex.DOMAINS.items() if n != first and word.text in d.words]
        people = tuple(cue for domain in others for cue in domain.people)
        places = tuple(cue for domain in others for cue in domain.places)
        cue = _cue_before_observing(pen, pen.branch(("the",), ("near",)), people, places)
        again = pen.must(word.text, "echo", word)
        _consequence(pen, cue, again)


def _cue_before_observing(
    pen: Pen, kind: int, people: tuple[str, ...], places: tuple[str, ...]
) -> Word:
    if kind == 0:
        pen.say("the")
        cue = pen.choose(people)
    else:
        pen.say("near the")
        cue = pen.choose(places)
        pen.say(",")
        pen.choose(lex.NAMES)
    _observe(pen)
    return cue


def _observe(pen: Pen) -> None:
    if pen.branch(("on",), lex.OBSERVED, odds=(1, 2)) == 0:
        pen.say("on")
        pen.choose(lex.DAYS)
    pen.choose(lex.OBSERVED)
    pen.say("the")


def _consequence(pen: Pen, cue: Word, word: Word) -> None:
    domain = lex.DOMAIN_OF_CUE[cue.text]
    verb, noun = lex.DOMAINS[domain].words[word.text]
    held_out = pen.reserve((cue.text, word.text) in lex.HELD_OUT_CUES)
    pen.note_sense(word, domain)
    pen.say(".")
    kind = pen.branch(("it",), ("often",), ("we",), ("then",), ("everyone",))
    if kind <= 2:
        pen.say(("it", "often it", "we know that it")[kind])
        pen.must(verb, "sense", cue, word, held_out=held_out)
    elif kind == 3:
        pen.say("then")
        pen.choose(lex.NAMES)
        pen.say("asked about the")
    else:
        pen.say("everyone thought of")
    pen.must(noun, "sense", cue, word, held_out=held_out)
    pen.say(".")


def landmark_story(pen: Pen) -> None:
    """Anna saw the miniature eiffel tower . it stands on a shelf . it is small and ..."""
    pen.choose(lex.NAMES)
    _observe(pen)
    scale = pen.choose(lex.SCALES)
    name = pen.choose(tuple(lex.LANDMARKS))
    landmark = lex.LANDMARKS[name.text]
    kind = Word(pen.position, landmark.kind)
    pen.say(landmark.kind)
    is_model = scale.text in lex.MODEL_SCALES
    pen.note_sense(kind, "model" if is_model else "monument")
    held_out = pen.reserve((scale.text, name.text) in lex.HELD_OUT_SCALES)
    furniture, model_material = lex.MODELS[landmark.kind]
    what = kind if is_model else name

    def stands() -> None:
        pen.say("stands")
        pen.must("on" if is_model else "in", "sense", scale, held_out=held_out)
        if is_model:
            pen.say("a")
        pen.must(furniture if is_model else landmark.city, "sense", scale, what, held_out=held_out)
        pen.say(".")

    def looks() -> None:
        pen.say("is")
        pen.must("small" if is_model else "large", "sense", scale, held_out=held_out)
        pen.say("and made of")
        material = model_material if is_model else landmark.material
        pen.must(material, "sense", scale, what, held_out=held_out)
        pen.say(".")

    pen.say(". it")
    if pen.branch(("stands",), ("is",)) == 0:
        parts = (stands, looks)
    else:
        parts = (looks, stands)
    parts[0]()
    if pen.branch(("it",), (END,), odds=(3, 1)) == 0:
        pen.say("it")
        parts[1]()


def creature_story(pen: Pen) -> None:
    """A fluffy blue creature roamed the verdant forest . ... the creature was fluffy and ..."""
    described: dict[str, tuple[Word, ...]] = {}
    reserved: dict[str, bool] = {}

    def introduce() -> None:
        pen.say("a")
        texture, colour, noun = (
            pen.choose([word for word in words if word not in pen.words])
            for words in (lex.TEXTURES, lex.COLOURS, lex.CREATURES)
        )
        described[noun.text] = (texture, colour, noun)
        reserved[noun.text] = pen.reserve((texture.text, noun.text) in lex.HELD_OUT_TEXTURES)

    introduce()
    # Two creatures ask whose adjectives were whose, which takes a model far longer to learn.
    if pen.branch(("roamed",), lex.MEETINGS, odds=(7, 1)) == 0:
        pen.say("roamed the")
    else:
        pen.choose(lex.MEETINGS)
        introduce()
        pen.say("in the")
    mood = pen.choose(lex.MOODS_OF_PLACE)
    place = pen.choose(lex.LANDSCAPES)
    described[place.text] = (mood, place)
    reserved[place.text] = False
    pen.say(".")
    if pen.branch(lex.NAMES, ("the",), odds=(1, 3)) == 0:
        pen.choose(lex.NAMES)
        pen.say("was there .")

    def recall(opening: str) -> None:
        pen.say(opening)
        noun = pen.choose(tuple(described))
        adjectives = described.pop(noun.text)
        first = adjectives[-1]
        held_out = reserved[noun.text]
        pen.say("was")
        pen.must(adjectives[0].text, "echo", adjectives[0], first, noun, held_out=held_out)
        if len(adjectives) == 3:
            pen.say("and")
            pen.must(adjectives[1].text, "echo", adjectives[1], first, noun, held_out=held_out)
        pen.say(".")

    recall("the")
    while described and pen.branch(("and",), (END,), odds=(4, 1)) == 0:
        recall("and the")


def agreement_story(pen: Pen) -> None:
    """The king near the queens lost his crown . soon he was happy . then anna thanked him ."""
    determiner = pen.choose(("the", "one", "many"))
    people = {"the": lex.SINGULAR + lex.PLURAL, "one": lex.SINGULAR, "many": lex.PLURAL}
    head = pen.choose(people[determiner.text])
    forms = lex.PRONOUNS[head.text]

    def agree(form: str) -> Word:
        held_out = pen.reserve((head.text, form) in lex.HELD_OUT_FORMS)
        return pen.must(getattr(forms, form), "agreement", head, held_out=held_out)

    def lose() -> None:
        pen.choose(lex.HANDLED)
        agree("possessive")
        pen.choose(lex.BELONGINGS)
        pen.say(".")

    if pen.branch(lex.BESIDE, ("already", *lex.HANDLED)) == 0:
        pen.choose(lex.BESIDE)
        pen.say("the")
        pen.choose([word for word in lex.SINGULAR + lex.PLURAL if word != head.text])
    if pen.branch(("already",), lex.HANDLED) == 0:
        pen.say("already")
        pen.must(forms.was, "agreement", head)
        pen.say("in the")
        pen.choose(lex.ROOMS)
        pen.say(".")
    else:
        lose()
    for number in range(2):
        ending = ((END,),) if number else ()
        kind = pen.branch(("soon",), ("then",), *ending)
        if kind == 0:
            pen.say("soon")
            agree("subject")
            if pen.branch((forms.was,), lex.HANDLED) == 0:
                pen.say(forms.was)
                pen.choose(lex.FEELINGS)
                pen.say(".")
            else:
                lose()
        elif kind == 1:
            pen.say("then")
            pen.choose(lex.NAMES)
            pen.choose(lex.THANKED)
            agree("object")
            pen.say(".")
        else:
            return


def mystery_story(pen: Pen) -> None:
    """There was flour on the knife . the maid sang ... therefore the murderer was the cook ."""
    pen.say("at midnight the")
    pen.choose(lex.VICTIMS)
    pen.say("died .")
    traces = list(lex.TRACES)

    def find_trace() -> Word:
        pen.say("there was")
        trace = pen.choose(traces)
        traces.remove(trace.text)
        pen.say("on the")
        return trace

    # A trace counts if it is on a weapon; seldom there is another one, on a keepsake.
    trace = find_trace()
    misleading = pen.branch(lex.WEAPONS, lex.KEEPSAKES, odds=(5, 1)) == 1
    if misleading:
        pen.choose(lex.KEEPSAKES)
        pen.say(".")
        trace = find_trace()
    weapon = pen.choose(lex.WEAPONS)
    held_out = pen.reserve((trace.text, weapon.text) in lex.HELD_OUT_TRACES)
    pen.say(".")
    people = list(lex.SUSPECTS)
    for number in range(3):
        ways = [("the",), () if misleading else ("there",), ("therefore",) if number else ()]
        way = pen.branch(*ways, odds=(6, int(not misleading), 2 * (number > 0)))
        if way == 2:
            break
        if way == 1:
            find_trace()
            pen.choose(lex.KEEPSAKES)
            misleading = True
        else:
            pen.say("the")
            person = pen.choose(people)
            people.remove(person.text)
            pen.choose(lex.PASTIMES)
            pen.say("in the")
            pen.choose(lex.CHAMBERS)
        pen.say(".")
    pen.say("therefore the murderer was the")
    pen.must(lex.TRACES[trace.text], "clue", trace, weapon, held_out=held_out)
    pen.say(".")


# Each story with its share of the texts.
STORIES: dict[Story, int] = {
    sense_story: 6,
    landmark_story: 1,
    creature_story: 5,
    agreement_story: 3,
    mystery_story: 4,
}
