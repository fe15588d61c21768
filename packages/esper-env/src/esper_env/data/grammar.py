"""A synthetic text: lines of a small grammar, with dependencies of every range.

Dependencies that predict the next byte:

=============  ==============================================================  ==============  ==================
line           example                                                         range in bytes  needs
=============  ==============================================================  ==============  ==================
spelling       any word                                                        1 to 6          a little of all
facts          ``kusapo lives in tirene.`` (one of forty)                       10 to 20        memory, so width
refrains       ``xqed xqed xqed xqed xqed``                                    5               attention, twice
agreement      ``the old dogs near the mill sleep.``                           10 to 30        attention
recall         ``mira has a red box and tom a tin drum. the box is red.``      20 to 45        attention, twice
sums           ``7+5=12.``                                                     2 to 4          a table
=============  ==============================================================  ==============  ==================

The letters of each refrain, owners and things are drawn independently, so no line predicts another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from esper_env.data.text import Text, TextData
from esper_env.seeding import derive_rng

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
    """Generate the text of a seed: a million bytes for training, 16 KB each for validation and test.

    The splits are drawn independently. Facts, sums and agreement have few different lines, so held-out lines also occur
    in the training part: they measure how well a network knows the language, not how it generalizes.
    """
    sizes = {"train": TRAIN_BYTES, "val": HELD_OUT_BYTES, "test": HELD_OUT_BYTES}
    facts = _facts(derive_rng(seed, "data/grammar/facts"))
    return TextData(
        "grammar",
        **{split: _lines(derive_rng(seed, f"data/grammar/{split}"), size, facts) for split, size in sizes.items()},
    )


def _facts(rng: np.random.Generator) -> tuple[str, ...]:
    """Draw the facts of a text, from names that are all different."""
    names: list[str] = []
    while len(names) < 2 * FACTS:
        name = "".join(_pick(rng, _ONSETS) + _pick(rng, _VOWELS) for _ in range(SYLLABLES))
        if name not in names:
            names.append(name)
    return tuple(f"{who} lives in {where}.\n" for who, where in zip(names[:FACTS], names[FACTS:], strict=True))


def _lines(rng: np.random.Generator, size: int, facts: tuple[str, ...]) -> Text:
    """Draw lines of all kinds, cut at ``size`` bytes."""
    kinds, shares = [lambda rng: _pick(rng, facts), *_KINDS], np.array([FACT_SHARE, *_KINDS.values()])
    lines: list[str] = []
    length = 0
    while length < size:
        for index in rng.choice(len(kinds), size=256, p=shares / shares.sum()):
            lines.append(kinds[index](rng))
            length += len(lines[-1])
    return np.frombuffer("".join(lines).encode("ascii"), dtype=np.uint8)[:size].copy()


def _pick(rng: np.random.Generator, words: Sequence[str]) -> str:
    return words[int(rng.integers(len(words)))]


def _two(rng: np.random.Generator, words: Sequence[str]) -> tuple[str, str]:
    first, second = rng.choice(len(words), size=2, replace=False)
    return words[first], words[second]


def _agreement(rng: np.random.Generator) -> str:
    """Draw a line whose verb agrees with its first noun, not with its second."""
    many, distractor = rng.random(2) < 0.5
    noun = _pick(rng, _NOUNS) + "s" * bool(many)
    place = _pick(rng, _PLACES) + "s" * bool(distractor)
    verb = _pick(rng, _VERBS) + "s" * (not many)
    return f"the {_pick(rng, _ADJECTIVES)} {noun} near the {place} {verb}.\n"


def _recall(rng: np.random.Generator) -> str:
    """Draw a line that repeats the colour of one of two things."""
    owners, things, colours = (_two(rng, words) for words in (_OWNERS, _THINGS, _COLOURS))
    asked = int(rng.integers(2))
    introduction = " and ".join(
        f"{owner} has a {colour} {thing}" for owner, colour, thing in zip(owners, colours, things, strict=True)
    )
    return f"{introduction}. the {things[asked]} is {colours[asked]}.\n"


def _refrain(rng: np.random.Generator) -> str:
    """Draw a random word and repeat it."""
    word = "".join(_pick(rng, _LETTERS) for _ in range(REFRAIN_LETTERS))
    return " ".join([word] * REFRAINS) + "\n"


def _sum(rng: np.random.Generator) -> str:
    a, b = (int(number) for number in rng.integers(0, 10, size=2))
    return f"{a}+{b}={a + b}.\n"


#: Shares of facts and of the other kinds among the lines.
FACT_SHARE = 0.3
_KINDS: dict[Callable[[np.random.Generator], str], float] = {
    _refrain: 0.3,
    _agreement: 0.2,
    _recall: 0.1,
    _sum: 0.1,
}
