"""Captions of the data set `objects`: nouns and their plurals, numbers, colors, and where things are to each other."""

from collections.abc import Sequence
from dataclasses import dataclass

from numpy.random import Generator

from grouping_zoo.data.sets.objects_pictures import Noun

SYNONYM = 0.3  # probability of another word for a noun that has some
COLOR_NAMED = 0.75  # probability that the color of painted objects is said
POSITION_NAMED = 0.6  # probability that it is said where things are

NUMBERS = ("no", "a", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

TEMPLATES = (
    "{objects}",
    "a photo of {objects}",
    "a picture of {objects}",
    "{objects} against {photo}",
    "there {is_} {objects}",
    "there {is_} {objects} in front of {photo}",
    "a picture showing {objects}",
    "we see {objects} against {photo}",
    "an image with {objects}",
    "{objects}, with {photo} in the background",
)

# Synonyms that captions do not use: nobody counts them, or the pictures show something else.
UNUSED_SYNONYMS = frozenset({"cherry", "earth", "glove", "sock", "tennis"})

# Singular and plural phrases of words that "a" or a number cannot precede. A color replaces {}.
PHRASES = {
    "bacon": ("portion of {}bacon", "portions of {}bacon"),
    "bow and arrow": ("{}bow and arrow", "{}bows and arrows"),
    "bowling": ("{}bowling ball", "{}bowling balls"),
    "bread": ("loaf of {}bread", "loaves of {}bread"),
    "broccoli": ("head of {}broccoli", "heads of {}broccoli"),
    "candy": ("piece of {}candy", "pieces of {}candy"),
    "cattle": ("head of {}cattle", "head of {}cattle"),
    "cheese": ("piece of {}cheese", "pieces of {}cheese"),
    "cherries": ("pair of {}cherries", "pairs of {}cherries"),
    "chips": ("portion of {}chips", "portions of {}chips"),
    "chocolate": ("bar of {}chocolate", "bars of {}chocolate"),
    "coffee": ("cup of {}coffee", "cups of {}coffee"),
    "corn": ("ear of {}corn", "ears of {}corn"),
    "cup of coffee": ("cup of {}coffee", "cups of {}coffee"),
    "drop of water": ("drop of {}water", "drops of {}water"),
    "flowers": ("bunch of {}flowers", "bunches of {}flowers"),
    "footprints": ("pair of {}footprints", "pairs of {}footprints"),
    "french fries": ("portion of {}french fries", "portions of {}french fries"),
    "fries": ("portion of {}fries", "portions of {}fries"),
    "garlic": ("bulb of {}garlic", "bulbs of {}garlic"),
    "glasses": ("pair of {}glasses", "pairs of {}glasses"),
    "gloves": ("pair of {}gloves", "pairs of {}gloves"),
    "golf": ("{}golf flag", "{}golf flags"),
    "grapes": ("bunch of {}grapes", "bunches of {}grapes"),
    "headphones": ("pair of {}headphones", "pairs of {}headphones"),
    "honey": ("pot of {}honey", "pots of {}honey"),
    "jeans": ("pair of {}jeans", "pairs of {}jeans"),
    "lightning": ("bolt of {}lightning", "bolts of {}lightning"),
    "luggage": ("piece of {}luggage", "pieces of {}luggage"),
    "maize": ("ear of {}maize", "ears of {}maize"),
    "meat": ("piece of {}meat", "pieces of {}meat"),
    "melon": ("slice of {}melon", "slices of {}melon"),
    "milk": ("cup of {}milk", "cups of {}milk"),
    "mug of beer": ("mug of {}beer", "mugs of {}beer"),
    "pancakes": ("stack of {}pancakes", "stacks of {}pancakes"),
    "peanuts": ("handful of {}peanuts", "handfuls of {}peanuts"),
    "pizza": ("slice of {}pizza", "slices of {}pizza"),
    "popcorn": ("box of {}popcorn", "boxes of {}popcorn"),
    "scissors": ("pair of {}scissors", "pairs of {}scissors"),
    "shaved ice": ("cup of {}shaved ice", "cups of {}shaved ice"),
    "shorts": ("pair of {}shorts", "pairs of {}shorts"),
    "soap": ("bar of {}soap", "bars of {}soap"),
    "socks": ("pair of {}socks", "pairs of {}socks"),
    "sunglasses": ("pair of {}sunglasses", "pairs of {}sunglasses"),
    "sushi": ("serving of {}sushi", "servings of {}sushi"),
    "tea": ("cup of {}tea", "cups of {}tea"),
    "trousers": ("pair of {}trousers", "pairs of {}trousers"),
    "watermelon": ("slice of {}watermelon", "slices of {}watermelon"),
    "wine": ("goblet of {}wine", "goblets of {}wine"),
}

# Last words of nouns whose plural follows no rule below.
IRREGULAR_PLURALS = {
    "cactus": "cacti",
    "chili": "chilies",
    "deer": "deer",
    "dice": "dice",
    "die": "dice",
    "fish": "fish",
    "knife": "knives",
    "leaf": "leaves",
    "loaf": "loaves",
    "mango": "mangoes",
    "mosquito": "mosquitoes",
    "mouse": "mice",
    "potato": "potatoes",
    "scarf": "scarves",
    "sheep": "sheep",
    "shrimp": "shrimp",
    "snowman": "snowmen",
    "squid": "squid",
    "tomato": "tomatoes",
    "tooth": "teeth",
    "volcano": "volcanoes",
    "wolf": "wolves",
}

# Words that sound otherwise than their first letter says.
VOWEL_SOUND, CONSONANT_SOUND = ("hourglass",), ("ufo",)

FAR = 0.18  # distance of centers, as a fraction of the image, from which on one is left or right, above or below
NEAR = 0.12  # gap between boxes, as a fraction of the image, up to which things are next to each other

BESIDE = ("next to", "beside", "near")
SIDES = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "front": ("in front of",),
    "behind": ("behind",),
}


@dataclass(frozen=True)
class Place:
    """One object's place in a scene.

    Attributes:
        number: its number in the order of painting.
        box: left, top, right, bottom as fractions of the image.
        hides: numbers of the earlier objects that it partly hides.
    """

    number: int
    box: tuple[float, float, float, float]
    hides: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Mention:
    """The objects of one kind, to be named together.

    Attributes:
        word: what they are called, in the singular.
        color: in which they are painted, if they are.
        places: of each object.
    """

    word: str
    color: str | None
    places: tuple[Place, ...]

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of all of them."""
        lefts, tops, rights, bottoms = zip(*(place.box for place in self.places), strict=True)
        return min(lefts), min(tops), max(rights), max(bottoms)

    @property
    def center(self) -> tuple[float, float]:
        """x and y of the middle of their box."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2

    def hides(self, other: "Mention") -> bool:
        """Tell whether one of these partly hides one of the others."""
        numbers = {place.number for place in other.places}
        return any(place.hides & numbers for place in self.places)


def choose_word(rng: Generator, noun: Noun) -> str:
    """Return a noun's name, or at times a synonym."""
    synonyms = [word for word in noun.synonyms if word not in UNUSED_SYNONYMS]
    named_otherwise, choice = rng.random(2).tolist()
    return synonyms[int(choice * len(synonyms))] if synonyms and named_otherwise < SYNONYM else noun.name


def plural(word: str) -> str:
    """Return the plural of an English noun that can be counted; of several words the last one has it."""
    *first, last = word.split(" ")
    if last in IRREGULAR_PLURALS:
        last = IRREGULAR_PLURALS[last]
    elif last.endswith(("s", "x", "z", "ch", "sh")):
        last += "es"
    elif last.endswith("y") and last[-2] not in "aeiou":
        last = last[:-1] + "ies"
    else:
        last += "s"
    return " ".join([*first, last])


def article(words: str) -> str:
    """Put "a" or "an" before words."""
    exception = words.startswith(VOWEL_SOUND + CONSONANT_SOUND)
    return f"an {words}" if (words[0] in "aeiou") != exception else f"a {words}"


def counted(word: str, count: int, color: str | None = None) -> str:
    """Return "a pony", "two slices of pizza", "a pair of red jeans"."""
    one, several = PHRASES.get(word, ("{}" + word, "{}" + plural(word)))
    filling = f"{color} " if color else ""
    if count == 1:
        return article(one.format(filling))
    return f"{NUMBERS[count]} {several.format(filling)}"


def definite(mention: Mention) -> str:
    """Return "the pony", "the slices of pizza"."""
    one, several = PHRASES.get(mention.word, ("{}" + mention.word, "{}" + plural(mention.word)))
    return "the " + (one if len(mention.places) == 1 else several).format("")


def relations(one: Mention, other: Mention) -> list[str]:
    """Return which of `SIDES`, from the other's point of view, one thing is on; "beside" where they are near."""
    found = []
    if one.hides(other) != other.hides(one):
        found.append("front" if one.hides(other) else "behind")
    x, y = (mine - yours for mine, yours in zip(one.center, other.center, strict=True))
    (left, top, right, bottom), (left_, top_, right_, bottom_) = one.box, other.box
    gap_x, gap_y = max(left, left_) - min(right, right_), max(top, top_) - min(bottom, bottom_)
    # Beside each other means more to one side than up or down, and boxes that overlap by less than half.
    if abs(x) > max(FAR, 1.3 * abs(y)) and gap_x > -min(right - left, right_ - left_) / 2:
        found.append("left" if x < 0 else "right")
    if abs(y) > max(FAR, 1.3 * abs(x)) and gap_y > -min(bottom - top, bottom_ - top_) / 2:
        found.append("above" if y < 0 else "below")
    if not found and -0.05 < max(gap_x, gap_y) < NEAR:
        found.append("beside")
    return found


def _pick(rng: Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.random() * len(choices))]


def _listed(phrases: Sequence[str]) -> str:
    return " and ".join([", ".join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else phrases)


def _side_of_image(mention: Mention) -> str | None:
    """Return where in the image something is, if it is clearly on one side or in the middle."""
    x, y = mention.center
    across = "left" if x < 0.36 else "right" if x > 0.64 else ""
    down = "upper" if y < 0.34 else "lower" if y > 0.66 else ""
    if across and down:
        return f"in the {down} {across} corner" if max(abs(x - 0.5), abs(y - 0.5)) > 0.2 else None
    if across:
        return f"on the {across}"
    if down:
        return "at the top" if down == "upper" else "at the bottom"
    return "in the middle" if abs(x - 0.5) < 0.1 and abs(y - 0.5) < 0.1 else None


def _with_relation(rng: Generator, said: list[str], mentions: list[Mention]) -> str | None:
    """Say where the last of several things is: to all others, or to one of them."""
    *others, last = mentions
    shared = set.intersection(*(set(relations(last, other)) for other in others))
    if shared:
        side = _pick(rng, sorted(shared))
        relation = _pick(rng, SIDES.get(side, BESIDE))
        if len(others) == 1 and len(others[0].places) == 1:
            first = [f"{said[1]} {relation} {said[0]}", f"{said[0]} with {said[1]} {relation} it"]
            return _pick(rng, first)
        ending = f", {said[-1]} {relation} them" if rng.random() < 0.5 else f" with {said[-1]} {relation} them"
        return _listed(said[:-1]) + ending
    for number in rng.permutation(len(others)).tolist():
        found = relations(last, others[number])
        if found:
            relation = _pick(rng, SIDES.get(_pick(rng, found), BESIDE))
            return f"{_listed(said[:-1])}, and {said[-1]} {relation} {definite(others[number])}"
    return None


def _with_sides(said: list[str], mentions: list[Mention]) -> str | None:
    """Say on which side of the image each thing is, where that is clear and tells them apart."""
    sides = [_side_of_image(mention) if len(mention.places) == 1 else None for mention in mentions]
    if None in sides or len(set(sides)) < len(sides):
        return None
    return _listed([f"{words} {side}" for words, side in zip(said, sides, strict=True)])


def caption_of(rng: Generator, mentions: Sequence[Mention], photo: str) -> str:
    """Return a caption that names each kind of object once, in random order.

    Args:
        rng: draws the words.
        mentions: the kinds of objects.
        photo: what the background is called.
    """
    mentions = [mentions[number] for number in rng.permutation(len(mentions)).tolist()]
    said = [
        counted(mention.word, len(mention.places), mention.color if rng.random() < COLOR_NAMED else None)
        for mention in mentions
    ]
    objects = None
    if rng.random() < POSITION_NAMED:
        if len(mentions) <= 3 and rng.random() < (1 if len(mentions) == 1 else 0.35):
            objects = _with_sides(said, mentions)
        if objects is None and len(mentions) > 1:
            objects = _with_relation(rng, said, mentions)
    if objects is None:
        objects = _listed(said)
    is_ = "is" if objects.startswith(("a ", "an ")) else "are"
    return _pick(rng, TEMPLATES).format(objects=objects, photo=photo, is_=is_)
