"""The captions' grammar: the same tables write a caption and read it back."""

import random
import re
from typing import Any

Garment = tuple[Any, ...]  # label, brightness or None, shape or None
Scene = tuple[Any, ...]  # a Garment or None on the left, and on the right

NOUNS = [  # of each class, one and many
    [("t-shirt", "t-shirts"), ("tee", "tees")],
    [("pair of trousers", "pairs of trousers"), ("pair of pants", "pairs of pants")],
    [("pullover", "pullovers"), ("sweater", "sweaters")],
    [("dress", "dresses"), ("gown", "gowns")],
    [("coat", "coats"), ("overcoat", "overcoats")],
    [("sandal", "sandals")],
    [("shirt", "shirts"), ("blouse", "blouses")],
    [("sneaker", "sneakers"), ("trainer", "trainers")],
    [("bag", "bags"), ("handbag", "handbags")],
    [("ankle boot", "ankle boots"), ("boot", "boots")],
]
# The words for the low, the middle and the high third or so: the middle has none.
BRIGHTNESS = [("dark", "dim"), (), ("light", "bright", "pale")]
UPRIGHT = [("narrow", "slim"), (), ("wide", "broad")]
LYING = [("tall", "high"), (), ("flat", "low")]  # shoes and bags: width over height
LYING_CLASSES = {5, 7, 8, 9}

LEFT, RIGHT, BOTH, SWAPPED = ("a", ""), ("", "a"), ("a", "b"), ("b", "a")
TEMPLATES = {  # what may stand left and right, if the caption is true
    "{a}": [LEFT, RIGHT],
    "{a} on the left": [LEFT],
    "{a} on the right": [RIGHT],
    "{a} left of {b}": [BOTH],
    "{a} to the left of {b}": [BOTH],
    "{a} right of {b}": [SWAPPED],
    "{a} to the right of {b}": [SWAPPED],
    "{a} and {b}": [BOTH, SWAPPED],
    "{a} beside {b}": [BOTH, SWAPPED],
    "two {a}": [("a", "a")],
}


def describe(scene: Scene, rng: random.Random) -> str:
    """Return one of the true captions of a scene, drawn with rng.

    The class is always said, an attribute that has a word often, but not always; "two"
    shares what both garments have. Raises ValueError for a scene without garments.
    """
    if scene == (None, None):
        raise ValueError("there is nothing to describe")
    template, layout = rng.choice(_fitting(scene))
    if layout == ("a", "a"):
        return template.format(a=_phrase(_shared(*scene), rng, many=True))
    places = zip(layout, scene, strict=True)
    said = {name: _phrase(garment, rng) for name, garment in places if name}
    return template.format(**said)


def _fitting(scene: Scene) -> list[tuple[str, tuple[str, str]]]:
    """The templates, each with the layout in which it is true of the scene."""
    alike = None not in scene and scene[0][0] == scene[1][0]
    return [
        (template, layout)
        for template, layouts in TEMPLATES.items()
        for layout in layouts
        if [bool(name) for name in layout] == [g is not None for g in scene]
        and (alike or layout != ("a", "a"))
    ]


def _shared(first: Garment, second: Garment) -> Garment:
    label, *looks = first
    both = zip(looks, second[1:], strict=True)
    return label, *(one if one == other else None for one, other in both)


def _phrase(garment: Garment, rng: random.Random, many: bool = False) -> str:
    label, *looks = garment
    words = []
    for look, table, rate in zip(looks, tables(label), (0.7, 0.5), strict=True):
        if look is not None and table[look] and rng.random() < rate:
            words.append(rng.choice(table[look]))
    words.append(rng.choice(NOUNS[label])[many])
    phrase = " ".join(words)
    return phrase if many else with_article(phrase)


def with_article(phrase: str) -> str:
    """Return a phrase with its article: "a bag", "an ankle boot"."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def tables(label: int) -> tuple[list, list]:
    """Return the words for a class's brightness and shape, low to high."""
    return BRIGHTNESS, LYING if label in LYING_CLASSES else UPRIGHT


def meaning(caption: str) -> list[Scene]:
    """Return the scenes of which a caption is true; None for what it leaves open.

    Raises ValueError for a caption that the grammar does not make, naming its forms, or
    one with two words for the brightness or the shape of one garment.
    """
    text = " ".join(split(caption))
    scenes = []
    for template, layouts in TEMPLATES.items():
        pattern = template.replace("{a}", "(?P<a>.+)").replace("{b}", "(?P<b>.+)")
        if found := re.fullmatch(pattern, text):
            many = template.startswith("two")
            read = {k: _garment(v, many) for k, v in found.groupdict().items()}
            if None not in read.values():
                scenes += [tuple(read.get(name) for name in lay) for lay in layouts]
    if not scenes:
        raise ValueError(f"cannot read {caption!r}: the forms are {list(TEMPLATES)}")
    return scenes


def split(caption: str) -> list[str]:
    """Return a caption's words in small letters, without commas and full stops."""
    return re.sub(r"[,.!]", " ", caption.lower()).split()


def _garment(phrase: str, many: bool) -> Garment | None:
    phrase = re.sub("^(a|an) ", "", phrase)
    for label, nouns in enumerate(NOUNS):
        for noun in nouns:
            if phrase == noun[many] or phrase.endswith(f" {noun[many]}"):
                looks = _looks(label, phrase.removesuffix(noun[many]).split())
                if looks is not None:
                    return label, *looks
    return None


def _looks(label: int, words: list[str]) -> list[int | None] | None:
    """What adjectives say of brightness and shape, or None if one is no adjective."""
    known = [{w: i for i, ws in enumerate(t) for w in ws} for t in tables(label)]
    if not all(any(word in table for table in known) for word in words):
        return None
    said = [[word for word in words if word in table] for table in known]
    for twice in said:
        if len(twice) > 1:
            raise ValueError(f"{' and '.join(twice)} of one garment: say one of them")
    return [t[s[0]] if s else None for t, s in zip(known, said, strict=True)]


def fits(scene: Scene, seen: list[list[int]], nothing: int) -> bool:
    """Return whether a scene of `meaning` agrees with what was seen, (2, 3) integers.

    seen: label, brightness and shape on the left and on the right; the label `nothing`
    marks an empty place.
    """
    for said, (label, *looks) in zip(scene, seen, strict=True):
        if said is None or said[0] != label:
            if said is not None or label != nothing:
                return False
        elif any(
            s is not None and s != look for s, look in zip(said[1:], looks, strict=True)
        ):
            return False
    return True


def words() -> list[str]:
    """Return every word that a caption can have, in order of the alphabet."""
    phrases = [form for nouns in NOUNS for noun in nouns for form in noun]
    phrases += [w for t in (BRIGHTNESS, UPRIGHT, LYING) for known in t for w in known]
    phrases += [
        template.replace("{a}", "").replace("{b}", "") for template in TEMPLATES
    ]
    return sorted({word for phrase in [*phrases, "a an"] for word in phrase.split()})
