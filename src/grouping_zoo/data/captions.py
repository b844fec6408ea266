"""Captions to the nouns in them, and nouns to the prompts of the multi-label contrastive loss.

Sharma (2023), sections 4.1 (nouns by part-of-speech tags, prompts) and 5.6 to 5.7.1 (padding, phrases, frequency).
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from numpy.random import Generator

NounExtractor = Callable[[str], tuple[str, ...]]

PROMPT_TEMPLATES = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)

IRREGULAR_PLURALS = {
    "child": "children",
    "foot": "feet",
    "goose": "geese",
    "man": "men",
    "mouse": "mice",
    "ox": "oxen",
    "person": "people",
    "policeman": "policemen",
    "tooth": "teeth",
    "woman": "women",
}


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def _forms(word: str) -> set[str]:
    """Return a noun's singular and its possible plurals."""
    forms = {word, word + "s", IRREGULAR_PLURALS.get(word, word)}
    if word.endswith(("s", "x", "z", "ch", "sh", "o")):
        forms.add(word + "es")
    if word.endswith("y") and word[-2:-1] not in tuple("aeiou"):
        forms.add(word[:-1] + "ies")
    if word.endswith("f"):
        forms.add(word[:-1] + "ves")
    if word.endswith("fe"):
        forms.add(word[:-2] + "ves")
    return forms


class VocabularyNounExtractor:
    """Finds the entries of a given vocabulary in a caption, without any model or download.

    Entries may have several words; plural forms are found too, and the longest entry wins. An entry is given back as
    the vocabulary has it.

    Args:
        vocabulary: nouns or noun phrases in the singular.

    Raises:
        ValueError: if the vocabulary is empty, or an entry has no word in it.
    """

    def __init__(self, vocabulary: Iterable[str]) -> None:
        self.entries: dict[tuple[str, ...], str] = {}
        plurals: dict[tuple[str, ...], str] = {}
        for entry in vocabulary:
            *first, last = _words(entry) or [""]
            if not last:
                raise ValueError(f"vocabulary: expected nouns, got {entry!r}; remove it")
            self.entries[(*first, last)] = entry
            plurals |= {(*first, form): entry for form in _forms(last)}
        if not self.entries:
            raise ValueError("vocabulary: expected at least one noun, got none; name the nouns to look for")
        self.entries = plurals | self.entries  # an entry that looks like another one's plural stays itself
        self.longest = max(map(len, self.entries))

    def __call__(self, caption: str) -> tuple[str, ...]:
        """Return the entries in a caption, in its order, each once."""
        words = _words(caption)
        found: dict[str, None] = {}
        start = 0
        while start < len(words):
            for length in range(min(self.longest, len(words) - start), 0, -1):
                entry = self.entries.get(tuple(words[start : start + length]))
                if entry is not None:
                    found[entry] = None
                    start += length
                    break
            else:
                start += 1
        return tuple(found)


class NltkNounExtractor:
    """Finds nouns, or adjective + noun phrases, by NLTK's part-of-speech tags NN, NNS and NNP.

    Args:
        phrases: give "red wooden boat" instead of "boat".

    Raises:
        ModuleNotFoundError: if NLTK is not installed.
        ValueError: if the data of NLTK's tagger are not there.
    """

    def __init__(self, phrases: bool = False) -> None:
        self.phrases = phrases
        try:
            import nltk  # an optional dependency
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                "nouns of free captions need nltk, which is not installed: pip install 'grouping-zoo[nouns]'"
            ) from None
        self._tokenize = nltk.NLTKWordTokenizer().tokenize
        self._tag = nltk.pos_tag
        try:
            self._tag(["noun"])
        except LookupError:
            raise ValueError(
                "nouns: expected the data of NLTK's tagger, got none; "
                "run `python -m nltk.downloader averaged_perceptron_tagger_eng`, or give a vocabulary instead"
            ) from None

    def __call__(self, caption: str) -> tuple[str, ...]:
        """Return the lower-cased nouns or phrases of a caption, in its order, each once."""
        found: dict[str, None] = {}
        adjectives: list[str] = []
        nouns: list[str] = []
        for word, tag in [*self._tag(self._tokenize(caption)), ("", "END")]:
            is_noun = tag in ("NN", "NNS", "NNP") and any(map(str.isalnum, word))
            if self.phrases and nouns and not is_noun:
                found[" ".join(adjectives + nouns).lower()] = None
            if is_noun:
                nouns.append(word)
                if not self.phrases:
                    found[word.lower()] = None
            else:
                adjectives = [*adjectives, word] if tag == "JJ" and not nouns else [word] * (tag == "JJ")
                nouns = []
        return tuple(found)


def frequent_nouns(captions: Iterable[str], extractor: NounExtractor, minimum_count: int) -> tuple[str, ...]:
    """Return the nouns that occur in enough captions (section 5.7.1), the most frequent first.

    A `VocabularyNounExtractor` of the result restricts captions to them.

    Args:
        captions: the corpus.
        extractor: caption -> nouns.
        minimum_count: smallest number of captions with the noun.

    Raises:
        ValueError: if no noun is that frequent.
    """
    counts = Counter(noun for caption in captions for noun in extractor(caption))
    nouns = sorted((noun for noun, count in counts.items() if count >= minimum_count), key=lambda n: (-counts[n], n))
    if not nouns:
        raise ValueError(
            f"minimum_count: expected nouns that occur at least {minimum_count} times, got none among {len(counts)} "
            f"nouns, the most frequent {max(counts.values(), default=0)} times; lower minimum_count"
        )
    return tuple(nouns)


def sample_labels(
    nouns: Sequence[str], caption: str, count: int, fill: Literal["pad", "caption"], rng: Generator
) -> tuple[list[str], list[bool]]:
    """Choose a fixed number of labels for an image.

    Args:
        nouns: the caption's nouns, each once.
        caption: the caption.
        count: number of labels K; of more nouns a random choice is taken.
        fill: where there are too few nouns: "caption" repeats the caption (as published), "pad" leaves empty labels
            that count as absent (section 5.7).
        rng: random choice.

    Returns:
        K labels, and for each whether it is a label at all (``False`` for padding).

    Raises:
        ValueError: for an unknown `fill` or a negative count.
    """
    if fill not in ("pad", "caption"):
        raise ValueError(f"fill: expected 'pad' or 'caption', got {fill!r}; choose one of them")
    if count < 0:
        raise ValueError(f"count: expected 0 or more labels an image, got {count}; set 3, for example")
    labels = [nouns[i] for i in rng.permutation(len(nouns))[:count]]
    missing = count - len(labels)
    valid = [True] * len(labels) + [fill == "caption"] * missing
    return labels + [caption if fill == "caption" else ""] * missing, valid


def prompt(noun: str, rng: Generator, templates: Sequence[str] = PROMPT_TEMPLATES) -> str:
    """Put a noun into one of the templates, by default CLIP's seven."""
    return templates[int(rng.integers(len(templates)))].format(noun)
