"""Seeds of independent generators, derived from (run seed, purpose, index) and from nothing else."""

from __future__ import annotations

import zlib

import numpy as np


def derive_seed(seed: int, purpose: str, index: int = 0) -> int:
    """A 63-bit seed for one purpose: equal arguments give equal seeds on every machine and in every process.

    Raises ``ValueError`` for a negative seed or index.
    """
    if seed < 0 or index < 0:
        raise ValueError(f"seed is {seed} and index {index}; both must be 0 or greater")
    sequence = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), index])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def derive_rng(seed: int, purpose: str, index: int = 0) -> np.random.Generator:
    """A NumPy generator on :func:`derive_seed`."""
    return np.random.default_rng(derive_seed(seed, purpose, index))
