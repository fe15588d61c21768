"""A text as bytes: what every loader of text returns and every environment shares."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from esper_env.data.images import SPLITS, Rebuilt, digest, is_plain, kind_of, read_only, rebuilt

Text = NDArray[np.uint8]

#: A token is a byte.
VOCABULARY = 256
#: Fewest bytes of a split: below, no sensible context has a window.
LEAST_BYTES = 16


@dataclass(frozen=True, eq=False)
class TextData:
    """Three splits of a text, as UTF-8 bytes. All arrays are read-only.

    A network sees windows of bytes and predicts each next byte. Validation text is carved out of the training text and
    is the same for every environment; the test split is for reports only.

    Raises ``TypeError`` for a wrong dtype and ``ValueError`` for wrong shapes and splits of fewer than 16 bytes.
    """

    name: str  # recorded in infos, checkpoints and reports: "tinystories", "grammar"
    train: Text  # (N,)
    val: Text  # (N_val,)
    test: Text  # (N_test,)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise TypeError(f"the data set's name is {self.name!r}; expected a text that is not empty")
        for split in SPLITS:
            text = getattr(self, split)
            if not is_plain(text, np.uint8):
                raise TypeError(
                    f"{self.name}, {split} split: the text is {kind_of(text)}; expected a NumPy array of uint8 "
                    "(np.frombuffer(text.encode(), dtype=np.uint8))"
                )
            if text.ndim != 1 or len(text) < LEAST_BYTES:
                raise ValueError(
                    f"{self.name}, {split} split: the text has shape {text.shape}; expected one dimension of at least "
                    f"{LEAST_BYTES} bytes"
                )
            object.__setattr__(self, split, read_only(text))

    def __reduce__(self) -> Rebuilt:
        return rebuilt(self)

    @property
    def classes(self) -> int:
        """Tokens that can come next."""
        return VOCABULARY

    @cached_property
    def digest(self) -> str:
        """Equal for equal texts, whatever their name."""
        return digest(self.train, self.val, self.test)
