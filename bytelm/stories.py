"""Induction: stories about people whose names are made of two random parts.

The parts of a name are drawn for each story, any first with any second, so only the story itself can tell which second
part follows the first: whoever has read the name once can go on with it. What is measured is the second part of every
mention after the first one.

Source: Gloeckle et al. 2024, arXiv 2404.19737, section 4.1. There stories are children's stories with their own names,
and only those of the test are random; here all are made by rules, small and from a seed.
"""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_CONSONANTS: Final = "bdfgklmnprstvz"
_VOWELS: Final = "aeiou"
_PARTS: Final = tuple("".join(letters) for letters in itertools.product(_CONSONANTS, _VOWELS, "lmnrst"))
"""420 syllables."""

_PLACES: Final = ("the garden", "the old mill", "the market", "a small boat", "the hill", "the kitchen", "the school")
_THINGS: Final = ("a red ball", "a wooden box", "an apple", "a letter", "a blue hat", "a lantern", "a kite", "a map")
_FEELINGS: Final = ("glad", "tired", "proud", "hungry", "curious", "afraid", "quiet")
_WEATHER: Final = ("It rained.", "The sun was out.", "The wind was cold.", "Night fell.", "It was a fine day.")
_SENTENCES: Final = (
    "{0} went to {place}.",
    "{0} found {thing} near {place}.",
    '"Look," said {0}, "here is {thing}!"',
    "{0} and {1} walked to {place} together.",
    "{0} gave {thing} to {1}.",
    "Then {0} was {feeling}.",
    "{1} asked {0} about {thing}.",
    '"I am {feeling}," said {0}.',
    "{0} waited for {1} at {place}.",
    "In the evening {0} told {1} about {place}.",
)


@dataclass(frozen=True, kw_only=True)
class Story:
    """A story, and where its names are mentioned again.

    Attributes:
        text: ASCII.
        seconds: For every mention after a person's first one: begin and end of the second part in the text.
    """

    text: str
    seconds: tuple[tuple[int, int], ...]


def story(draw: random.Random, sentences: int = 12) -> Story:
    """A story about two people.

    Args:
        draw: Decides everything.
        sentences: How many there are.
    """
    people = [(draw.choice(_PARTS).capitalize(), draw.choice(_PARTS)) for _ in range(2)]
    text, seconds, known = "", [], set()
    for _ in range(sentences):
        if draw.random() < 0.2:
            text += draw.choice(_WEATHER) + " "
        order = draw.sample(range(2), 2)
        filled = draw.choice(_SENTENCES).format(
            "{0}", "{1}", place=draw.choice(_PLACES), thing=draw.choice(_THINGS), feeling=draw.choice(_FEELINGS)
        )
        for piece in _pieces(filled):
            if isinstance(piece, str):
                text += piece
                continue
            person = order[piece]
            first, second = people[person]
            if person in known:
                seconds.append((len(text) + len(first), len(text) + len(first) + len(second)))
            known.add(person)
            text += first + second
        text += " "
    return Story(text=text.rstrip() + "\n", seconds=tuple(seconds))


def _pieces(sentence: str) -> Iterator[str | int]:
    """Text and numbers of people, in order."""
    for index, piece in enumerate(sentence.replace("{", "}").split("}")):
        yield int(piece) if index % 2 else piece
