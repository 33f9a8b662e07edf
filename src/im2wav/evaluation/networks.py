"""The interface of the networks that judge audio, their outputs, and their weights files, which the user downloads."""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from im2wav.files import file_sha256, load_failure

NOTHING = torch.zeros(0)


@dataclass(frozen=True)
class NetworkOutputs:
    """Outputs of a network for S audio files. D dimension of the embedding, C classes (0 without classes)."""

    rows: Tensor  # [M, D], one embedding for each file or for each frame
    counts: Tensor  # [S], rows of each file
    logits: Tensor  # [S, C]
    scores: Tensor  # [S, C], class probabilities

    @classmethod
    def of_file(cls, rows: Tensor, logits: Tensor = NOTHING, scores: Tensor = NOTHING) -> "NetworkOutputs":
        """Outputs for one file: rows [M, D], logits and scores [C]."""
        return cls(rows, torch.tensor([len(rows)]), logits[None], scores[None])

    @classmethod
    def concat(cls, parts: Sequence["NetworkOutputs"]) -> "NetworkOutputs":
        """Concatenate the outputs of several sets."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    @property
    def owner(self) -> Tensor:
        """File index of each row, [M]."""
        return torch.arange(len(self.counts)).repeat_interleave(self.counts)

    def take(self, numbers: Tensor) -> "NetworkOutputs":
        """Outputs of the files with these indices, in ascending order."""
        rows = self.rows[torch.isin(self.owner, numbers)]
        return NetworkOutputs(rows, self.counts[numbers], self.logits[numbers], self.scores[numbers])


class Network:
    """A network that judges audio; `labels` are the names of its classes, if any.

    `uses` selects its metrics: `distance` between sets, `classes`, `image`: cosine similarity with image embeddings.
    """

    name: str
    uses: frozenset[str]
    sha256: str
    sample_rate: int  # Hz
    dim: int
    labels: tuple[str, ...] = ()

    def analyse(self, wav: Tensor) -> NetworkOutputs:
        """Analyse wav [N] at the sample rate of the network."""
        raise NotImplementedError


class WeightsFile(NamedTuple):
    """A weights file of a network: its name, where to download it, and the hash of its content or its beginning."""

    name: str
    source: str
    sha256: str | None  # None if none was published


FILES = {
    "passt": WeightsFile(
        "passt-s-f128-p16-s10-ap.476-swa.pt",
        "https://github.com/kkoutini/PaSST/releases/tag/v0.0.1-audioset",
        "302903fa8c4aee817b11dc982da0b29aaf8d11a3e722420476d0a12c9db70c2c",
    ),
    "vggish": WeightsFile(  # torch.hub convention: the file name contains the beginning of the hash
        "vggish-10086976.pth", "https://github.com/harritaylor/torchvggish/releases/tag/v0.1", "10086976"
    ),
    "wav2clip": WeightsFile(
        "Wav2CLIP.pt", "https://github.com/descriptinc/lyrebird-wav2clip/releases/tag/v0.1.0-alpha", None
    ),
    "clip": WeightsFile(  # the URL in OpenAI's code contains the hash
        "ViT-B-32.pt",
        "https://github.com/openai/CLIP (the URL is in clip/clip.py)",
        "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    ),
}


def check_folder(folder: Path) -> None:
    """Check that the folder contains all files.

    Raises:
        ValueError: files are missing; the message lists them with their source.
    """
    missing = [file for file in FILES.values() if not (folder / file.name).is_file()]
    if missing:
        listing = "; ".join(f"{file.name} from {file.source}" for file in missing)
        raise ValueError(f"weights_dir={folder} lacks {len(missing)} of {len(FILES)} files: {listing}")


def checked_file(folder: Path, network: str, check: bool) -> tuple[Path, str]:
    """Path and sha256 of a network's file.

    Raises:
        ValueError: it is missing, or `check` is set and its hash differs.
    """
    file = FILES[network]
    path = folder / file.name
    if not path.is_file():
        raise ValueError(f"weights_dir={folder} lacks {file.name}; download it from {file.source}")
    found = file_sha256(path)
    if check and file.sha256 is not None and not found.startswith(file.sha256):
        raise ValueError(
            f"{path} has sha256 {found[:12]}…, expected {file.sha256[:12]}…: damaged file or another network; "
            f"download it from {file.source}, or set check_weights=false"
        )
    return path, found


def read_state(path: Path) -> dict[str, Any]:
    """Read a state dict with `weights_only=True`.

    Raises:
        ValueError: the file is not a state dict.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a state dict: {load_failure(error)}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} contains a {type(state).__name__}, expected a state dict")
    for key in ("model", "state_dict"):
        if isinstance(state.get(key), dict):
            state = state[key]
    return state


def load_into(net: torch.nn.Module, state: dict[str, Any], path: Path) -> None:
    """Load a complete state dict and freeze the network in eval mode.

    Raises:
        ValueError: names or shapes differ.
    """
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:300]
        raise ValueError(f"{path} does not match the network: {first}") from error
    net.eval().requires_grad_(False)
