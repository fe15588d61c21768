"""A procedural text: lines that a small grammar makes, with something to learn at every range.

What tells the next byte:

=============  ==============================================================  =====================
line           example                                                         range in bytes
=============  ==============================================================  =====================
spelling       any word                                                        1 to 6
agreement      ``the old dogs near the mill sleep.``                           10 to 30
recall         ``mira has a red box and tom a tin drum. the box is red.``      20 to 45
copying        ``velano met druki; druki likes velano.``                       8 to 30
brackets       ``([a{b}]<c>)``                                                 1 to 20
sums           ``7+5=12.``                                                     2 to 4
=============  ==============================================================  =====================

Words of one range carry no hint of another: names are made up of syllables anew in each line, owners and things are
drawn independently. So each range has to be learned by itself, and copying and recall need attention.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from esper_env.data.text import Text, TextData
from esper_env.seeding import derive_rng

NAME = "grammar"
TRAIN_BYTES, HELD_OUT_BYTES = 1_000_000, 16_448

_NOUNS = ("dog", "cat", "bird", "boat", "lamp", "tree", "fox", "king")
_PLACES = ("mill", "lake", "hill", "road", "barn", "port")
_ADJECTIVES = ("old", "wet", "shy", "big", "odd", "calm")
_VERBS = ("sleep", "sing", "turn", "shine", "fall", "wait")
_OWNERS = ("mira", "tom", "ada", "olaf", "june", "ned")
_THINGS = ("box", "drum", "coat", "key", "bowl", "kite")
_COLOURS = ("red", "tin", "blue", "worn", "gold", "pale")
_MEETINGS = ("met", "saw", "called", "found")
_FEELINGS = ("likes", "fears", "helps", "knows")
_ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z")
_VOWELS = ("a", "e", "i", "o", "u")
_BRACKETS = ("()", "[]", "{}", "<>")


def generate_text(seed: int = 0) -> TextData:
    """The text of a seed: a million bytes to train on, 16 KB each for validation and test, each of its own lines."""
    sizes = {"train": TRAIN_BYTES, "val": HELD_OUT_BYTES, "test": HELD_OUT_BYTES}
    return TextData(
        NAME, **{split: _lines(derive_rng(seed, f"data/grammar/{split}"), size) for split, size in sizes.items()}
    )


def _lines(rng: np.random.Generator, size: int) -> Text:
    """Lines of all kinds, cut at ``size`` bytes."""
    kinds = list(_KINDS)
    shares = np.array([_KINDS[kind] for kind in kinds], dtype=float)
    made: list[str] = []
    length = 0
    while length < size:
        for index in rng.choice(len(kinds), size=256, p=shares / shares.sum()):
            made.append(kinds[index](rng))
            length += len(made[-1])
    return np.frombuffer("".join(made).encode("ascii"), dtype=np.uint8)[:size].copy()


def _pick(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[int(rng.integers(len(words)))]


def _two(rng: np.random.Generator, words: tuple[str, ...]) -> tuple[str, str]:
    first, second = rng.choice(len(words), size=2, replace=False)
    return words[first], words[second]


def _agreement(rng: np.random.Generator) -> str:
    """The verb agrees with the first noun, whatever the second one is."""
    many, distractor = rng.random(2) < 0.5
    noun = _pick(rng, _NOUNS) + "s" * bool(many)
    place = _pick(rng, _PLACES) + "s" * bool(distractor)
    verb = _pick(rng, _VERBS) + "s" * (not many)
    return f"the {_pick(rng, _ADJECTIVES)} {noun} near the {place} {verb}.\n"


def _recall(rng: np.random.Generator) -> str:
    """What one of two things is like was said before."""
    owners, things, colours = (_two(rng, words) for words in (_OWNERS, _THINGS, _COLOURS))
    asked = int(rng.integers(2))
    told = " and ".join(
        f"{owner} has a {colour} {thing}" for owner, colour, thing in zip(owners, colours, things, strict=True)
    )
    return f"{told}. the {things[asked]} is {colours[asked]}.\n"


def _name(rng: np.random.Generator) -> str:
    return "".join(_pick(rng, _ONSETS) + _pick(rng, _VOWELS) for _ in range(int(rng.integers(2, 4))))


def _copying(rng: np.random.Generator) -> str:
    """Two made-up names come a second time, in either order."""
    first, second = _name(rng), _name(rng)
    again = (first, second) if rng.random() < 0.5 else (second, first)
    return f"{first} {_pick(rng, _MEETINGS)} {second}; {again[0]} {_pick(rng, _FEELINGS)} {again[1]}.\n"


def _brackets(rng: np.random.Generator) -> str:
    """Four kinds of brackets, closed in the order that their opening demands."""
    written, open_ones = "", ""
    for _ in range(int(rng.integers(4, 9))):
        if open_ones and (len(open_ones) == 4 or rng.random() < 0.4):
            written, open_ones = written + open_ones[-1], open_ones[:-1]
        else:
            pair = _pick(rng, _BRACKETS)
            written, open_ones = written + pair[0], open_ones + pair[1]
    return f"{written}{open_ones[::-1]}\n"


def _sum(rng: np.random.Generator) -> str:
    a, b = (int(number) for number in rng.integers(0, 10, size=2))
    return f"{a}+{b}={a + b}.\n"


#: Kind of line -> its share of the lines.
_KINDS: dict[Callable[[np.random.Generator], str], float] = {
    _agreement: 0.25,
    _recall: 0.25,
    _copying: 0.25,
    _brackets: 0.15,
    _sum: 0.1,
}
