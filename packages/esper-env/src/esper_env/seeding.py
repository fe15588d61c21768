"""Seeds of independent generators, derived from (run seed, purpose, index) only."""

from __future__ import annotations

import zlib

import numpy as np

__all__ = ["derive_rng", "derive_seed"]


def derive_seed(seed: int, purpose: str, index: int = 0) -> int:
    """Return a 63-bit seed for one purpose; equal arguments give equal seeds on every machine.

    Args:
        seed: seed of the run.
        purpose: the use of the generator.
        index: of the network or run.
    """
    sequence = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), index])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def derive_rng(seed: int, purpose: str, index: int = 0) -> np.random.Generator:
    """Return a NumPy generator with the seed of :func:`derive_seed`."""
    return np.random.default_rng(derive_seed(seed, purpose, index))
