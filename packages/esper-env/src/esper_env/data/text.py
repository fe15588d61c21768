"""A text as bytes, with its three splits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from esper_env.data.images import SPLITS, check_array, digest, read_only

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
            remedy = "np.frombuffer(text.encode(), dtype=np.uint8)"
            check_array(f"{self.name}, {split} split: the text is", text, np.uint8, remedy)
            if text.ndim != 1 or len(text) < MIN_SPLIT_BYTES:
                raise ValueError(
                    f"{self.name}, {split} split: the text has shape {text.shape}; expected one dimension of at least "
                    f"{MIN_SPLIT_BYTES} bytes"
                )
            object.__setattr__(self, split, read_only(text))

    def __reduce__(self) -> tuple[type, tuple[str, Text, Text, Text]]:
        return type(self), (self.name, self.train, self.val, self.test)  # so that copies are read-only too

    @property
    def classes(self) -> int:
        """Number of tokens to predict."""
        return VOCABULARY

    @cached_property
    def digest(self) -> str:
        """Digest of the splits, independent of the name."""
        return digest(self.train, self.val, self.test)


def find_invalid_byte(content: bytes) -> str:
    """Describe the first NUL byte, else the first byte that is not UTF-8; return "" for a text."""
    if (offset := content.find(0)) >= 0:
        return f"a NUL byte at offset {offset}"
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return f"the byte at offset {error.start} is not UTF-8 ({error.reason})"
    return ""
