"""Convert folders of official checkpoints; download the released checkpoints."""

import logging
from dataclasses import replace
from pathlib import Path

from im2wav.checkpoint import net_sha256, save
from im2wav.files import json_bytes, write_atomic
from im2wav.official.checkpoint_file import is_checkpoint
from im2wav.official.conversion import KINDS, OfficialCheckpoint, convert_checkpoint

log = logging.getLogger(__name__)

# Google Drive ids in the official README; the kind of each model is detected from its content
RELEASED = (
    "1lCrGsMXqmeKBk-3B3J2jzxNur9olWseb",
    "1v9dmCwrEwkwJhbe2YF3ScM2gjVplSLzt",
    "1UyNBjoxgqBYqA_aYhOu6BHYlkT4CD_M_",
)
SUFFIXES = {".bin", ".ckpt", ".pt", ".pth", ".tar"}  # files that are called like checkpoints must be some
UNFINISHED = {".part", ".crdownload", ".tmp"}  # downloads
DRIVE = "https://drive.google.com/uc?id={id}"


def find_official(folder: Path) -> dict[str, OfficialCheckpoint]:
    """Find the official checkpoints in a folder, by kind; file names do not matter.

    Raises:
        ValueError: the folder does not exist or has no checkpoints, two of the same kind, or an unreadable one.
    """
    if not folder.is_dir():
        raise ValueError(f"official={folder} is not a folder: expected one with the official vqvae, low and up files")
    found: dict[str, OfficialCheckpoint] = {}
    paths: dict[str, Path] = {}
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        if path.suffix in UNFINISHED:
            log.warning("%s: an unfinished download, skipped", path.name)
            continue
        if not is_checkpoint(path):
            if path.suffix.lower() in SUFFIXES:
                what = "is not a checkpoint" if path.stat().st_size else "is empty"
                raise ValueError(f"{path} {what}: download it again, or remove it")
            log.info("%s: not a checkpoint, skipped", path.name)
            continue
        loaded = convert_checkpoint(path)
        if loaded.kind in found:
            raise ValueError(f"{path} and {paths[loaded.kind]} are both a {loaded.kind}: keep one of them")
        found[loaded.kind], paths[loaded.kind] = loaded, path
        log.info("%s: %s, step %d", path.name, loaded.kind, loaded.step)
    if not found:
        raise ValueError(f"official={folder} contains no official Im2Wav checkpoint")
    return found


def convert_folder(folder: Path, out: Path) -> dict[str, Path]:
    """Convert the checkpoints of a folder; returns the files written, by kind.

    Raises:
        ValueError: see `find_official`, or `out` cannot be written.
    """
    found = find_official(folder)
    codec_sha256 = net_sha256(found["vqvae"].net) if "vqvae" in found else None
    written = {}
    for kind, official in found.items():
        loaded = replace(official, training={"base": "official"})
        if kind != "vqvae":
            loaded = replace(loaded, codec_sha256=codec_sha256)
        written[kind] = save(loaded, out / f"{kind}.safetensors")
        log.info("wrote %s", written[kind])
    about = {kind: {"config": one.config, "step": one.step} for kind, one in found.items()}
    write_atomic(out / "config.json", json_bytes(about))  # for information only
    for kind in KINDS.keys() - found.keys():
        log.warning("%s contains no %s: sampling needs all three models", folder, kind)
    return written


def fetch(cache: Path, url: str = DRIVE) -> Path:
    """Return the folder of the converted released weights; downloads and converts them once.

    Args:
        cache: folder of downloads (official/) and converted weights (official-converted/).
        url: URL of a file with the placeholder {id}.

    Raises:
        ValueError: gdown is not installed, the download failed, or a file is not an official checkpoint.
    """
    files, out = cache / "official", cache / "official-converted"
    wanted = [out / f"{kind}.safetensors" for kind in KINDS]
    if all(path.is_file() for path in wanted):
        return out
    files.mkdir(parents=True, exist_ok=True)
    present = [p for p in files.iterdir() if p.is_file() and p.suffix not in UNFINISHED and is_checkpoint(p)]
    if len(present) < len(RELEASED):  # skip the download if the user put three files there
        for name in RELEASED:
            _download(url.format(id=name), files / f"{name}.pth.tar", files)
    convert_folder(files, out)
    missing = [path.name for path in wanted if not path.is_file()]
    if missing:
        raise ValueError(f"{files} lacks {missing}: remove the folder to download the files again")
    return out


def _download(url: str, target: Path, files: Path) -> None:
    if target.is_file():
        return
    try:
        import gdown
    except ImportError as error:
        raise ValueError("pretrained=official downloads with gdown: pip install 'im2wav[official]'") from error
    reason = ""
    try:
        gdown.download(url, str(target), resume=True)
    except Exception as error:  # gdown raises many types of errors
        reason = f" ({type(error).__name__})"
    if reason or not target.is_file():
        raise ValueError(
            f"{url} could not be downloaded{reason}: download the three official checkpoints manually (ids: "
            f"{', '.join(RELEASED)}) and put them in {files} under any names"
        )
    if not is_checkpoint(target):
        target.unlink()
        raise ValueError(
            f"the download from {url} is not a checkpoint (possibly a quota message): try again later, or put "
            f"the three official files in {files} manually"
        )
