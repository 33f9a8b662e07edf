"""Splits into training, validation and test, and the fraction of the training pairs for a scaling study."""

import hashlib
from collections.abc import Mapping

import numpy as np

from im2wav.data.manifest import SPLITS, Manifest

WAYS = ("column", "group")
SHARES = {"train": 0.9, "valid": 0.05, "test": 0.05}


def hash_fraction(text: str, purpose: str) -> float:
    """A deterministic pseudo-random number in [0, 1) from a text; different for each purpose."""
    digest = hashlib.blake2b(f"{purpose}\n{text}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def groups(pairs: Manifest) -> list[str]:
    """Group of each row, whose pairs stay in one split: the manifest's group; else the hash of the audio, so that
    duplicates stay together; else the id.
    """
    columns = zip(pairs.strings("group"), pairs.strings("sound"), pairs.strings("id"), strict=True)
    return [group or sound or name for group, sound, name in columns]


def split_rows(pairs: Manifest, by: str = "column", shares: Mapping[str, float] | None = None) -> dict[str, np.ndarray]:
    """Rows of each split.

    Args:
        pairs: the manifest.
        by: `column`, from the manifest; or `group`, by a hash of each group, so that a split does not change with the
            order of the rows or when rows are added.
        shares: fractions of the groups for train, valid and test, with `group`.

    Raises:
        ValueError: unknown `by`, fractions that do not add up to 1, or an unknown split in the manifest.
    """
    if by not in WAYS:
        raise ValueError(f"data.split={by!r}: expected one of {WAYS}")
    if by == "column":
        try:
            found = np.fromiter(map(SPLITS.index, pairs.strings("split")), np.int8, len(pairs))
        except ValueError:
            unknown = next(split for split in pairs.strings("split") if split not in SPLITS)
            raise ValueError(f"the manifest has rows with split={unknown!r}: expected one of {SPLITS}") from None
        return {split: np.flatnonzero(found == i) for i, split in enumerate(SPLITS)}
    shares = dict(SHARES if shares is None else shares)
    if set(shares) != set(SPLITS) or min(shares.values()) < 0 or abs(sum(shares.values()) - 1) > 1e-6:
        raise ValueError(f"data.shares={shares}: expected fractions of {SPLITS} that add up to 1")
    borders = np.cumsum([shares[split] for split in SPLITS])
    positions = np.array([hash_fraction(group, "split") for group in groups(pairs)])
    number = np.minimum(np.searchsorted(borders, positions, side="right"), len(SPLITS) - 1)
    return {split: np.flatnonzero(number == i) for i, split in enumerate(SPLITS)}


def fraction_of(pairs: Manifest, rows: np.ndarray, fraction: float) -> np.ndarray:
    """Select about a fraction of the rows; a smaller fraction is a subset of a larger one.

    Raises:
        ValueError: the fraction is not > 0 and <= 1.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"data.train_fraction={fraction}: must be above 0 and at most 1")
    if fraction == 1:
        return rows
    chosen = [hash_fraction(name, "fraction") < fraction for name in pairs.take(rows).strings("id")]
    return rows[np.array(chosen, dtype=bool)]
