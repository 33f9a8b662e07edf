"""A folder of official checkpoints -> a folder of safetensors; and where the authors' own files come from."""

import json
import logging
import zipfile
from pathlib import Path

from im2wav.checkpoint import Loaded, net_sha256, save
from im2wav.files import write_atomic
from im2wav.official.conversion import KINDS, OfficialCheckpoint, convert_checkpoint

log = logging.getLogger(__name__)

# Google Drive ids in the official README; which one holds which model is found from their contents
RELEASED = (
    "1lCrGsMXqmeKBk-3B3J2jzxNur9olWseb",
    "1v9dmCwrEwkwJhbe2YF3ScM2gjVplSLzt",
    "1UyNBjoxgqBYqA_aYhOu6BHYlkT4CD_M_",
)
DRIVE = "https://drive.google.com/uc?id={id}"


def is_checkpoint(path: Path) -> bool:
    """Whether a file is a zip archive or a pickle, as torch writes them."""
    with path.open("rb") as file:
        return zipfile.is_zipfile(path) or file.read(1) == b"\x80"


def find_official(folder: Path) -> dict[str, tuple[Path, OfficialCheckpoint]]:
    """The official checkpoints in a folder by kind; their names do not matter.

    Raises:
        ValueError: the folder does not exist or holds none, two of one kind, or one that cannot be read.
    """
    if not folder.is_dir():
        raise ValueError(
            f"official={folder} is no folder; expected one that holds the official vqvae, low and up files"
        )
    found: dict[str, tuple[Path, OfficialCheckpoint]] = {}
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        if not is_checkpoint(path):
            log.info("%s: no checkpoint, left alone", path.name)
            continue
        official = convert_checkpoint(path)
        if official.kind in found:
            raise ValueError(
                f"{path} and {found[official.kind][0]} both hold a {official.kind}: leave one in the folder"
            )
        found[official.kind] = (path, official)
        log.info("%s: %s, step %d", path.name, official.kind, official.step)
    if not found:
        raise ValueError(f"official={folder} holds no official Im2Wav checkpoint")
    return found


def convert_folder(folder: Path, out: Path) -> dict[str, Path]:
    """Convert the checkpoints of a folder; returns the files written, by kind.

    Raises:
        ValueError: see `find_official`, or `out` cannot be written.
    """
    found = find_official(folder)
    codec = found.get("vqvae")
    sha256 = net_sha256(codec[1].net) if codec else None
    written = {}
    for kind, (_, official) in found.items():
        # the official clips all last 10 s; at which rate and with which CLIP its users embedded is theirs to know
        data = {
            "encoder": "clip_vit_b32",
            "dim": 512,
            "weights_sha256": None,
            "fps": 30.0,
            "sample_rate": official.hps["sr"],
            "seconds": 10.0,
        }
        own = {"bandwidth": official.bandwidth} if kind == "vqvae" else {"codec_sha256": sha256}
        loaded = Loaded(official.net, kind, official.config, data, **own)
        written[kind] = save(loaded, out / f"{kind}.safetensors")
        log.info("wrote %s", written[kind])
    about = {kind: {"config": official.config, "step": official.step} for kind, (_, official) in found.items()}
    write_atomic(out / "config.json", (json.dumps(about, indent=2) + "\n").encode())  # to read; the files need it not
    for kind in ("vqvae", "low_prior", "up_prior"):
        if kind not in found:
            log.warning("%s holds no %s: sampling needs all three", folder, kind)
    return written


def fetch(cache: Path, url: str = DRIVE) -> Path:
    """The folder of the authors' released weights, converted; downloaded and converted once.

    Args:
        cache: where downloads (official/) and converted weights (official-converted/) are kept.
        url: where a file is, with {id} in it.

    Raises:
        ValueError: gdown is not installed, there is no network, or what came is no official checkpoint.
    """
    files, out = cache / "official", cache / "official-converted"
    wanted = [out / f"{kind}.safetensors" for kind in KINDS]
    if all(path.is_file() for path in wanted):
        return out
    files.mkdir(parents=True, exist_ok=True)
    present = [p for p in files.iterdir() if p.is_file() and is_checkpoint(p)]
    if len(present) < len(RELEASED):  # fewer than three: fetch; three put there by hand will do under any names
        for name in RELEASED:
            _download(url.format(id=name), files / f"{name}.pth.tar", files)
    convert_folder(files, out)
    missing = [path.name for path in wanted if not path.is_file()]
    if missing:
        raise ValueError(f"{files} does not give {missing}: remove it to fetch the files again")
    return out


def _download(url: str, target: Path, files: Path) -> None:
    if target.is_file():
        return
    try:
        import gdown
    except ImportError as error:
        raise ValueError("pretrained=official downloads with gdown: pip install 'im2wav[official]'") from error
    try:
        done = gdown.download(url, str(target), resume=True)
    except Exception as error:  # whatever the network layer raises
        done, reason = None, f" ({type(error).__name__})"
    else:
        reason = ""
    if done is None or not target.is_file():
        raise ValueError(
            f"{url} could not be fetched{reason}: fetch the three official checkpoints by hand (the ids are "
            f"{', '.join(RELEASED)}) and put them, under any names, into {files}"
        )
    if not is_checkpoint(target):
        target.unlink()
        raise ValueError(
            f"what came from {url} is no checkpoint (a page about a quota?): try again later, or put "
            f"the three official files into {files} by hand"
        )
