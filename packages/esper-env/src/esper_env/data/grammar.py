"""Sentences drawn from a small grammar: a text that needs no download."""

from __future__ import annotations

import numpy as np

from esper_env.data.text import TextData, split_text
from esper_env.seeding import derive_rng

SENTENCES = 4_000
SUBJECTS = ("the fox", "a child", "the old king", "my sister", "the moon")
VERBS = ("sees", "follows", "paints", "forgets", "carries")
OBJECTS = ("the river", "a red boat", "two apples", "the empty house", "a song")


def generate_text() -> TextData:
    """The text named "grammar", the same bytes in every process."""
    rng = derive_rng(0, "data/grammar")
    columns = [np.array(words)[rng.integers(0, len(words), SENTENCES)] for words in (SUBJECTS, VERBS, OBJECTS)]
    lines = "".join(f"{subject} {verb} {target}.\n" for subject, verb, target in zip(*columns, strict=True))
    return split_text("grammar", np.frombuffer(lines.encode(), dtype=np.uint8))
