"""A procedural text: lines that a small grammar makes, with something to learn at every range.

What tells the next byte:

=============  ==============================================================  ==============  ==================
line           example                                                         range in bytes  asks for
=============  ==============================================================  ==============  ==================
spelling       any word                                                        1 to 6          a little of all
facts          ``kusapo lives in tirene.`` (always: forty of them)             10 to 20        memory, so width
refrains       ``xqed xqed xqed xqed xqed``                                    5               attention, twice
agreement      ``the old dogs near the mill sleep.``                           10 to 30        attention
recall         ``mira has a red box and tom a tin drum. the box is red.``      20 to 45        attention, twice
sums           ``7+5=12.``                                                     2 to 4          a table
=============  ==============================================================  ==============  ==================

A refrain is of letters drawn anew, owners and things are drawn independently: no kind of line is a hint for another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from esper_env.data.text import Text, TextData
from esper_env.seeding import derive_rng

NAME = "grammar"
TRAIN_BYTES, HELD_OUT_BYTES = 1_000_000, 16_448

_NOUNS = ("dog", "cat", "bird", "boat", "lamp", "tree", "king", "ship")
_PLACES = ("mill", "lake", "hill", "road")
_ADJECTIVES = ("old", "wet", "shy", "big")
_VERBS = ("sleep", "sing", "turn", "wait")
_OWNERS = ("mira", "tom", "ada", "olaf")
_THINGS = ("box", "drum", "coat", "key")
_COLOURS = ("red", "tin", "blue", "worn")
_ONSETS, _VOWELS = "bdfgklmnprstvz", "aeiou"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
FACTS, SYLLABLES = 40, 3
REFRAIN_LETTERS, REFRAINS = 4, 5


def generate_text(seed: int = 0) -> TextData:
    """The text of a seed: a million bytes to train on, 16 KB each for validation and test, drawn independently.

    Of some kinds there are few different lines (facts, sums, agreement), and those that are held out are in the
    training part too: what is held out measures how well the language is known, not lines that were never seen.
    """
    sizes = {"train": TRAIN_BYTES, "val": HELD_OUT_BYTES, "test": HELD_OUT_BYTES}
    facts = _facts(derive_rng(seed, "data/grammar/facts"))
    return TextData(
        NAME,
        **{split: _lines(derive_rng(seed, f"data/grammar/{split}"), size, facts) for split, size in sizes.items()},
    )


def _facts(rng: np.random.Generator) -> tuple[str, ...]:
    """The facts of a text: made-up names, none of them twice."""
    names: list[str] = []
    while len(names) < 2 * FACTS:
        name = "".join(_pick(rng, _ONSETS) + _pick(rng, _VOWELS) for _ in range(SYLLABLES))
        if name not in names:
            names.append(name)
    return tuple(f"{who} lives in {where}.\n" for who, where in zip(names[:FACTS], names[FACTS:], strict=True))


def _lines(rng: np.random.Generator, size: int, facts: tuple[str, ...]) -> Text:
    """Lines of all kinds, cut at ``size`` bytes."""
    kinds, shares = [lambda rng: _pick(rng, facts), *_KINDS], np.array([FACT_SHARE, *_KINDS.values()])
    made: list[str] = []
    length = 0
    while length < size:
        for index in rng.choice(len(kinds), size=256, p=shares / shares.sum()):
            made.append(kinds[index](rng))
            length += len(made[-1])
    return np.frombuffer("".join(made).encode("ascii"), dtype=np.uint8)[:size].copy()


def _pick(rng: np.random.Generator, words: Sequence[str]) -> str:
    return words[int(rng.integers(len(words)))]


def _two(rng: np.random.Generator, words: Sequence[str]) -> tuple[str, str]:
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


def _refrain(rng: np.random.Generator) -> str:
    """A word of letters drawn anew, again and again."""
    word = "".join(_pick(rng, _LETTERS) for _ in range(REFRAIN_LETTERS))
    return " ".join([word] * REFRAINS) + "\n"


def _sum(rng: np.random.Generator) -> str:
    a, b = (int(number) for number in rng.integers(0, 10, size=2))
    return f"{a}+{b}={a + b}.\n"


#: Shares of the lines: of facts, and of the other kinds.
FACT_SHARE = 0.3
_KINDS: dict[Callable[[np.random.Generator], str], float] = {
    _refrain: 0.3,
    _agreement: 0.2,
    _recall: 0.1,
    _sum: 0.1,
}
