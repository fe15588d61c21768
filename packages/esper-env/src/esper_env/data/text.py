"""A text as bytes, with its three splits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from esper_env.data.images import SPLITS, Construction, construction, describe_type, digest, is_plain, read_only

Text = NDArray[np.uint8]

#: Number of tokens: a token is a byte.
VOCABULARY = 256
#: Minimum bytes of a split.
MIN_SPLIT_BYTES = 16


@dataclass(frozen=True, eq=False)
class TextData:
    """Three splits of a text as UTF-8 bytes, in read-only arrays.

    A network sees windows of bytes and predicts each next byte. The validation text is the same for every environment;
    the test split is for reports only.

    Args:
        name: Name to record in infos, checkpoints and reports, such as "tinystories".
        train: Training text, (N,), ``uint8``.
        val: Validation text, (N_val,), ``uint8``.
        test: Test text, (N_test,), ``uint8``.

    Raises:
        TypeError: for a wrong dtype or name.
        ValueError: for a wrong shape or a split of fewer than 16 bytes.
    """

    name: str
    train: Text
    val: Text
    test: Text

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise TypeError(f"the dataset's name is {self.name!r}; expected a non-empty string")
        for split in SPLITS:
            text = getattr(self, split)
            if not is_plain(text, np.uint8):
                raise TypeError(
                    f"{self.name}, {split} split: the text is {describe_type(text)}; expected a NumPy array of uint8 "
                    "(np.frombuffer(text.encode(), dtype=np.uint8))"
                )
            if text.ndim != 1 or len(text) < MIN_SPLIT_BYTES:
                raise ValueError(
                    f"{self.name}, {split} split: the text has shape {text.shape}; expected one dimension of at least "
                    f"{MIN_SPLIT_BYTES} bytes"
                )
            object.__setattr__(self, split, read_only(text))

    def __reduce__(self) -> Construction:
        return construction(self)

    @property
    def classes(self) -> int:
        """Number of tokens to predict."""
        return VOCABULARY

    @cached_property
    def digest(self) -> str:
        """Digest of the splits, independent of the name."""
        return digest(self.train, self.val, self.test)
