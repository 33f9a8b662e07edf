"""Cached codes of whole clips, so that training a prior does not encode the same audio again and again.

    codes/HASH/codes.json      codec, hops, and how short clips were extended
    codes/HASH/low/ID.npy      int16 or int32 [samples / hop]
    codes/HASH/up/ID.npy

HASH is the beginning of the sha256 of the codec's weights, so each codec has its own folder.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from im2wav.data.manifest import Manifest, Pair
from im2wav.files import npy_bytes, state_sha256, write_atomic


@dataclass(frozen=True)
class CodesInfo:
    """The content of `codes.json`."""

    codec_sha256: str
    hops: dict[str, int]  # samples per code, by level
    codebook_size: int
    num_samples: int  # shorter clips were extended to this before they were encoded ...
    short: str  # ... in this way
    format: int = 1


class CodesFolder:
    """The cached codes of one codec.

    Args:
        root: the folder of the pairs.
        info: properties that the codes must have.
    """

    def __init__(self, root: Path, info: CodesInfo):
        self.root, self.info = root / "codes" / info.codec_sha256[:16], info

    @property
    def grid(self) -> int:
        """Windows start at multiples of this number of samples, which are code boundaries of all levels."""
        return max(self.info.hops.values())

    def path(self, pair: Pair, level: str) -> Path:
        """Path of the codes of a pair."""
        return self.root / level / Path(pair.clip).name

    def missing(self, pairs: Manifest) -> list[int]:
        """Rows whose codes are missing."""
        existing = {level: {p.name for p in (self.root / level).glob("*.npy")} for level in self.info.hops}
        names = (Path(clip).name for clip in pairs.strings("clip"))
        return [row for row, name in enumerate(names) if not all(name in files for files in existing.values())]

    def start(self) -> None:
        """Write codes.json, or check an existing one.

        Raises:
            ValueError: the folder was written with other settings.
        """
        path = self.root / "codes.json"
        if path.is_file():
            self._compare(path)
        else:
            write_atomic(path, (json.dumps(asdict(self.info), indent=2) + "\n").encode())

    def _compare(self, path: Path) -> None:
        there, wanted = json.loads(path.read_text(encoding="utf-8")), asdict(self.info)
        for name, value in wanted.items():
            if there.get(name) != value:
                raise ValueError(
                    f"{path} was written with {name}={there.get(name)}, now it is {value}: use data.{name}="
                    f"{there.get(name)}, or remove {path.parent} and run `python -m im2wav.tokenize` again"
                )

    def write(self, pair: Pair, codes: Mapping[str, Tensor]) -> None:
        """Write the codes [T] of a clip by level.

        Raises:
            ValueError: they cannot be written.
        """
        dtype = np.int16 if self.info.codebook_size <= 2**15 else np.int32
        for level, values in codes.items():
            write_atomic(self.path(pair, level), npy_bytes(values.cpu().numpy().astype(dtype)))

    def check(self, pairs: Manifest) -> None:
        """Check that the cache is complete and fits the codec and the options.

        Raises:
            ValueError: it is not, or does not.
        """
        path = self.root / "codes.json"
        command = f"python -m im2wav.tokenize data.root={self.root.parent.parent} codec=PATH"
        if not path.is_file():
            others = sorted(p.parent.name for p in self.root.parent.glob("*/codes.json"))
            raise ValueError(
                f"data.codes=cache, but {self.root.parent} has no codes of this codec "
                f"({self.info.codec_sha256[:16]}; it has {others or 'none'}): run `{command}`, "
                "or use data.codes=fresh"
            )
        self._compare(path)
        if missing := self.missing(pairs):
            raise ValueError(
                f"{self.root} lacks the codes of {len(missing)} of {len(pairs)} clips, the first is "
                f"{pairs[missing[0]].id!r}: run `{command}` again"
            )

    def read(self, pair: Pair, offset: int, length: int) -> dict[str, Tensor]:
        """Codes of `length` samples from `offset`, by level.

        Raises:
            ValueError: a file cannot be read or is too short.
        """
        found = {}
        for level, hop in self.info.hops.items():
            path = self.path(pair, level)
            try:
                stored = np.load(path, mmap_mode="r", allow_pickle=False)
                values = np.array(stored[offset // hop : (offset + length) // hop], dtype=np.int64)
            except (OSError, ValueError) as error:
                raise ValueError(f"{path} cannot be read: {error}; remove it and tokenize again") from error
            if len(values) != length // hop:
                raise ValueError(f"{path} has {len(stored)} codes, too few for {pair.samples} samples: remove it")
            found[level] = torch.from_numpy(values)
        return found


def codes_folder(root: Path, codec: Any, num_samples: int, short: str) -> CodesFolder:
    """The folder of the codes of the pairs in `root` by this codec."""
    sha256 = state_sha256(codec.state_dict())
    return CodesFolder(root, CodesInfo(sha256, dict(codec.hop_lengths), codec.codebook_size, num_samples, short))
