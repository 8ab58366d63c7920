"""The words of the lecture grammar, and the combinations that training never shows.

Everything here is plain data. ``text.stories`` says how the words are put together.
"""

from typing import NamedTuple

# --- neutral words: they decide nothing ------------------------------------------------------
NAMES = ("anna", "ben", "clara", "david", "emma", "felix")
DAYS = ("monday", "tuesday", "friday", "sunday")
NEUTRAL = ("old", "first", "second", "other", "strange")
OBSERVED = ("saw", "described", "remembered", "studied", "mentioned", "sketched")


# --- words with several senses ---------------------------------------------------------------
class Domain(NamedTuple):
    """A field of life: the cues that announce it and what its words lead to.

    ``words`` gives, for each ambiguous word that has a sense in this domain, the verb and the
    noun that follow from that sense.
    """

    people: tuple[str, ...]
    places: tuple[str, ...]
    attributes: tuple[str, ...]
    words: dict[str, tuple[str, str]]

    @property
    def cues(self) -> tuple[str, ...]:
        return self.attributes + self.people + self.places


DOMAINS: dict[str, Domain] = {
    "animal": Domain(
        ("zoologist", "ranger", "hunter"),
        ("zoo", "meadow"),
        ("american", "hungry"),
        {
            "mole": ("digs", "tunnels"),
            "bat": ("hunts", "moths"),
            "crane": ("hunts", "frogs"),
            "seal": ("hunts", "fish"),
        },
    ),
    "chemistry": Domain(
        ("chemist", "alchemist", "technician"),
        ("laboratory", "flask"),
        ("carbon", "ionic"),
        {"base": ("meets", "acids"), "mole": ("weighs", "grams"), "bond": ("joins", "atoms")},
    ),
    "medicine": Domain(
        ("doctor", "nurse", "surgeon"),
        ("hospital", "clinic"),
        ("swollen", "healthy"),
        {
            "organ": ("needs", "blood"),
            "vessel": ("carries", "oxygen"),
            "mole": ("marks", "skin"),
            "mouth": ("shows", "teeth"),
        },
    ),
    "game": Domain(
        ("umpire", "coach", "referee"),
        ("stadium", "ballpark"),
        ("winning", "official"),
        {
            "bat": ("hits", "balls"),
            "base": ("brings", "runs"),
            "pitch": ("needs", "grass"),
            "deck": ("holds", "cards"),
        },
    ),
    "harbour": Domain(
        ("captain", "sailor", "pilot"),
        ("harbour", "lighthouse"),
        ("floating", "naval"),
        {
            "crane": ("lifts", "crates"),
            "vessel": ("brings", "cargo"),
            "deck": ("keeps", "barrels"),
        },
    ),
    "trade": Domain(
        ("banker", "merchant", "lawyer"),
        ("market", "vault"),
        ("financial", "commercial"),
        {
            "seal": ("needs", "wax"),
            "bond": ("brings", "interest"),
            "bank": ("keeps", "money"),
            "note": ("shows", "prices"),
            "branch": ("needs", "clerks"),
        },
    ),
    "music": Domain(
        ("singer", "pianist", "composer"),
        ("opera", "concert"),
        ("musical", "solemn"),
        {
            "organ": ("joins", "pipes"),
            "note": ("brings", "melodies"),
            "pitch": ("carries", "harmony"),
        },
    ),
    "river": Domain(
        ("angler", "ferryman", "miller"),
        ("waterfall", "valley"),
        ("muddy", "flooded"),
        {
            "bank": ("holds", "reeds"),
            "mouth": ("meets", "waves"),
            "branch": ("carries", "rafts"),
        },
    ),
}
DOMAIN_OF_CUE = {cue: name for name, domain in DOMAINS.items() for cue in domain.cues}
PEOPLE = tuple(cue for domain in DOMAINS.values() for cue in domain.people)
PLACES = tuple(cue for domain in DOMAINS.values() for cue in domain.places)
ATTRIBUTES = tuple(cue for domain in DOMAINS.values() for cue in domain.attributes)

# The n-th word of a domain never meets the n-th cue in training. Each cue so reserved is seen
# with every other word of its domain, and each word with six other cues of the domain.
HELD_OUT_CUES = frozenset(
    (cue, word)
    for domain in DOMAINS.values()
    for cue, word in zip(domain.cues, domain.words, strict=False)
)


# --- landmarks and their models --------------------------------------------------------------
class Landmark(NamedTuple):
    """A building: its kind, where the original stands and what it is made of."""

    kind: str
    city: str
    material: str


LANDMARKS = {
    "eiffel": Landmark("tower", "paris", "iron"),
    "leaning": Landmark("tower", "pisa", "marble"),
    "rialto": Landmark("bridge", "venice", "stone"),
    "brooklyn": Landmark("bridge", "manhattan", "steel"),
    "windsor": Landmark("castle", "england", "brick"),
    "bran": Landmark("castle", "transylvania", "timber"),
}
# A model of a landmark stands on this piece of furniture and is made of this.
MODELS = {"tower": ("shelf", "tin"), "bridge": ("table", "paper"), "castle": ("carpet", "wood")}
MONUMENT_SCALES = ("famous", "great", "ancient", "original")
MODEL_SCALES = ("miniature", "toy", "tiny", "little")
SCALES = MONUMENT_SCALES + MODEL_SCALES
HELD_OUT_SCALES = frozenset(
    {
        ("miniature", "eiffel"),
        ("famous", "leaning"),
        ("toy", "rialto"),
        ("great", "brooklyn"),
        ("tiny", "windsor"),
        ("ancient", "bran"),
    }
)

# --- creatures and their adjectives ----------------------------------------------------------
CREATURES = ("creature", "dragon", "owl", "fox", "unicorn", "tortoise")
TEXTURES = ("fluffy", "scaly", "spotted", "striped", "feathered", "shaggy")
COLOURS = ("blue", "red", "green", "golden", "white", "black")
LANDSCAPES = ("forest", "desert", "garden", "island", "canyon")
MOODS_OF_PLACE = ("verdant", "misty", "frozen", "silent", "sunny")
MEETINGS = ("met", "followed", "greeted")
# Every other texture is reserved for one creature.
HELD_OUT_TEXTURES = frozenset(
    (TEXTURES[i], CREATURES[(i + 3) % len(CREATURES)]) for i in range(0, len(TEXTURES), 2)
)


# --- people and their pronouns ---------------------------------------------------------------
class Pronouns(NamedTuple):
    """The forms that agree with a noun, and the number of the verb."""

    subject: str
    object: str
    possessive: str
    was: str


HE = Pronouns("he", "him", "his", "was")
SHE = Pronouns("she", "her", "her", "was")
THEY = Pronouns("they", "them", "their", "were")
# masculine, feminine, and their plurals
PAIRS = (
    ("king", "queen", "kings", "queens"),
    ("prince", "princess", "princes", "princesses"),
    ("actor", "actress", "actors", "actresses"),
    ("man", "woman", "men", "women"),
    ("boy", "girl", "boys", "girls"),
    ("brother", "sister", "brothers", "sisters"),
    ("uncle", "aunt", "uncles", "aunts"),
    ("duke", "duchess", "dukes", "duchesses"),
)
SINGULAR = tuple(word for pair in PAIRS for word in pair[:2])
PLURAL = tuple(word for pair in PAIRS for word in pair[2:])
PRONOUNS = {
    word: forms for pair in PAIRS for word, forms in zip(pair, (HE, SHE, THEY, THEY), strict=True)
}
BELONGINGS = ("crown", "ring", "horse", "necklace", "coat", "clock")
HANDLED = ("lost", "found", "painted", "sold")
FEELINGS = ("happy", "proud", "tired", "calm")
ROOMS = ("palace", "theatre", "museum", "station")
THANKED = ("thanked", "praised", "invited")
BESIDE = ("near", "behind", "without")
# Each of these nouns never meets this form of its pronoun in training.
HELD_OUT_FORMS = frozenset(
    {
        ("queen", "subject"),
        ("princes", "possessive"),
        ("actor", "object"),
        ("woman", "possessive"),
        ("boys", "subject"),
        ("sister", "object"),
        ("uncle", "subject"),
        ("dukes", "object"),
    }
)

# --- mysteries -------------------------------------------------------------------------------
# What somebody's hands leave behind.
TRACES = {
    "flour": "cook",
    "soil": "gardener",
    "ink": "poet",
    "varnish": "painter",
    "soap": "maid",
    "straw": "groom",
}
SUSPECTS = tuple(TRACES.values())
VICTIMS = ("count", "baron", "judge", "professor")
WEAPONS = ("knife", "dagger", "rope", "pistol", "hammer")
KEEPSAKES = ("teapot", "book", "violin", "letter", "lamp")
PASTIMES = ("slept", "sang", "read", "danced")
CHAMBERS = ("hall", "kitchen", "library", "attic")
HELD_OUT_TRACES = frozenset((trace, WEAPONS[i % len(WEAPONS)]) for i, trace in enumerate(TRACES))

# --- the remaining words: those that the stories write out -----------------------------------
PUNCTUATION = (".", ",")
# fmt: off
FUNCTION_WORDS = (
    "a", "about", "already", "and", "asked", "at", "but", "died", "everyone", "in", "is",
    "it", "know", "large", "made", "many", "midnight", "murderer", "of", "often", "on", "one",
    "roamed", "small", "soon", "stands", "that", "the", "then", "there", "therefore", "thought",
    "was", "we", "were",
)
# fmt: on
