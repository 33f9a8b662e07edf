"""Which pairs are for training, validation and test, and which part of them a scaling study takes."""

import hashlib
from collections.abc import Mapping

import numpy as np

from im2wav.data.manifest import SPLITS, Manifest

WAYS = ("column", "group")
SHARES = {"train": 0.9, "valid": 0.05, "test": 0.05}


def lot(text: str, purpose: str) -> float:
    """A number in [0, 1) that a text draws, always the same one; another for each purpose."""
    digest = hashlib.blake2b(f"{purpose}\n{text}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def groups(pairs: Manifest) -> list[str]:
    """What must not be torn apart, by row: the manifest's group; else the hash of the sound, so that a sound that comes
    twice stays in one split; else the pair itself.
    """
    columns = zip(pairs.strings("group"), pairs.strings("sound"), pairs.strings("id"), strict=True)
    return [group or sound or name for group, sound, name in columns]


def split_rows(pairs: Manifest, by: str = "column", shares: Mapping[str, float] | None = None) -> dict[str, np.ndarray]:
    """Rows of each split.

    Args:
        pairs: the manifest.
        by: `column`, as the manifest says; or `group`, where a hash of each group decides. The order of the rows never
            does, and a split stays what it is when rows are added.
        shares: of the groups that go to train, valid and test, with `group`.

    Raises:
        ValueError: no such way, shares that do not add up to 1, or a split in the manifest that is none.
    """
    if by not in WAYS:
        raise ValueError(f"data.split={by!r}: expected one of {WAYS}")
    if by == "column":
        try:
            found = np.fromiter(map(SPLITS.index, pairs.strings("split")), np.int8, len(pairs))
        except ValueError:
            strange = next(split for split in pairs.strings("split") if split not in SPLITS)
            raise ValueError(f"the manifest has rows with split={strange!r}: expected one of {SPLITS}") from None
        return {split: np.flatnonzero(found == i) for i, split in enumerate(SPLITS)}
    shares = dict(SHARES if shares is None else shares)
    if set(shares) != set(SPLITS) or min(shares.values()) < 0 or abs(sum(shares.values()) - 1) > 1e-6:
        raise ValueError(f"data.shares={shares}: expected shares of {SPLITS} that add up to 1")
    borders = np.cumsum([shares[split] for split in SPLITS])
    lots = np.array([lot(group, "split") for group in groups(pairs)])
    number = np.minimum(np.searchsorted(borders, lots, side="right"), len(SPLITS) - 1)
    return {split: np.flatnonzero(number == i) for i, split in enumerate(SPLITS)}


def fraction_of(pairs: Manifest, rows: np.ndarray, fraction: float) -> np.ndarray:
    """About that share of the rows; a smaller share is always a part of a larger one.

    Raises:
        ValueError: not a share above 0 and up to 1.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"data.train_fraction={fraction}: expected a share above 0 and up to 1")
    if fraction == 1:
        return rows
    chosen = [lot(name, "fraction") < fraction for name in pairs.take(rows).strings("id")]
    return rows[np.array(chosen, dtype=bool)]
