"""The files of the networks that the field's published figures were made with. They are put in place by hand."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from im2wav.files import file_sha256


@dataclass(frozen=True)
class WeightsFile:
    """A file that a network is loaded from.

    Attributes:
        name: of the file.
        source: where it is published.
        sha256: of its bytes, or the beginning of it; None where nobody published one.
    """

    name: str
    source: str
    sha256: str | None


FILES = {
    "passt": WeightsFile(
        "passt-s-f128-p16-s10-ap.476-swa.pt",
        "https://github.com/kkoutini/PaSST/releases/tag/v0.0.1-audioset",
        "302903fa8c4aee817b11dc982da0b29aaf8d11a3e722420476d0a12c9db70c2c",
    ),
    "vggish": WeightsFile(  # the beginning of its hash is in its name, as torch.hub has it
        "vggish-10086976.pth", "https://github.com/harritaylor/torchvggish/releases/tag/v0.1", "10086976"
    ),
    "wav2clip": WeightsFile(
        "Wav2CLIP.pt", "https://github.com/descriptinc/lyrebird-wav2clip/releases/tag/v0.1.0-alpha", None
    ),
    "clip": WeightsFile(  # its hash is part of the address that OpenAI's code names
        "ViT-B-32.pt",
        "https://github.com/openai/CLIP (clip/clip.py names its address)",
        "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    ),
}


def check_folder(folder: Path | None) -> Path:
    """The folder of the files, all of them there.

    Raises:
        ValueError: it is not given, or files are missing; each is named with its source.
    """
    if folder is None:
        raise ValueError("suite=paper needs weights_dir=DIR; docs/evaluation.md says which files it holds")
    missing = [file for file in FILES.values() if not (folder / file.name).is_file()]
    if missing:
        said = "; ".join(f"{file.name} from {file.source}" for file in missing)
        raise ValueError(f"weights_dir={folder} lacks {len(missing)} of {len(FILES)} files: {said}")
    return folder


def checked_file(folder: Path, network: str, check: bool) -> tuple[Path, str]:
    """Path and sha256 of a network's file.

    Raises:
        ValueError: it is missing, or `check` and it is not the published one.
    """
    file = FILES[network]
    path = folder / file.name
    if not path.is_file():
        raise ValueError(f"weights_dir={folder} lacks {file.name}; get it from {file.source}")
    found = file_sha256(path)
    if check and file.sha256 is not None and not found.startswith(file.sha256):
        raise ValueError(
            f"{path} has sha256 {found[:12]}…, expected {file.sha256[:12]}…: it is damaged or another network; get it "
            f"from {file.source}, or use it as it is by check_weights=false"
        )
    return path, found


def read_state(path: Path) -> dict[str, Any]:
    """A state dict, read without running code that a file may hold.

    Raises:
        ValueError: the file is no state dict.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        first = (str(error).splitlines() or [""])[0][:120]
        raise ValueError(f"{path} cannot be read as weights: {first}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, expected a state dict")
    for key in ("model", "state_dict"):
        if isinstance(state.get(key), dict):
            state = state[key]
    return state


def load_into(net: torch.nn.Module, state: dict[str, Any], path: Path) -> None:
    """Load a state dict, all of it, and freeze the net in eval mode.

    Raises:
        ValueError: names or shapes differ.
    """
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:300]
        raise ValueError(f"{path} does not fit the network: {first}") from error
    net.eval().requires_grad_(False)
