"""`python -m im2wav.convert official=DIR out=DIR`: official Im2Wav checkpoints -> safetensors that im2wav uses.

`python -m im2wav.convert pickles=PATH wavs=DIR out=DIR` turns official CLIP pickles into a pairs folder.
"""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from im2wav.cli import CONF, register_resolvers, run

if TYPE_CHECKING:
    from im2wav.official import Official

log = logging.getLogger(__name__)
register_resolvers()


def looks_like_a_checkpoint(path: Path) -> bool:
    """Whether a file is a zip archive or a pickle, as torch writes them."""
    with path.open("rb") as file:
        return zipfile.is_zipfile(path) or file.read(1) == b"\x80"


def find_official(folder: Path) -> dict[str, tuple[Path, Official]]:
    """The official checkpoints in a folder by kind; their names do not matter.

    Raises:
        ValueError: the folder does not exist or holds none, two of one kind, or one that cannot be read.
    """
    from im2wav.official import convert

    if not folder.is_dir():
        raise ValueError(
            f"official={folder} is no folder; expected one that holds the official vqvae, low and up files"
        )
    found: dict[str, tuple[Path, Official]] = {}
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        if not looks_like_a_checkpoint(path):
            log.info("%s: no checkpoint, left alone", path.name)
            continue
        official = convert(path)
        if official.kind in found:
            raise ValueError(
                f"{path} and {found[official.kind][0]} both hold a {official.kind}: leave one in the folder"
            )
        found[official.kind] = (path, official)
        log.info("%s: %s, step %d", path.name, official.kind, official.step)
    if not found:
        raise ValueError(f"official={folder} holds no official Im2Wav checkpoint")
    return found


def convert_models(folder: Path, out: Path) -> dict[str, Path]:
    """Convert the checkpoints of a folder; returns the files written, by kind.

    Raises:
        ValueError: see `find_official`, or `out` cannot be written.
    """
    from im2wav.checkpoint import Loaded, net_sha256, save

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
    for kind in ("vqvae", "low_prior", "up_prior"):
        if kind not in found:
            log.warning("%s holds no %s: sampling needs all three", folder, kind)
    return written


def convert(cfg: DictConfig) -> Any:
    """Convert models, embeddings, or both; returns what was written."""
    if not cfg.official and not cfg.pickles:
        raise ValueError(
            "give official=DIR (a folder with official checkpoints) or pickles=PATH (official CLIP pickles)"
        )
    written: dict[str, Any] = {}
    if cfg.official:
        written |= convert_models(Path(cfg.official), Path(cfg.out))
    if cfg.pickles:
        from im2wav.data.pickles import convert_pickles

        written["pairs"] = convert_pickles(
            Path(cfg.pickles), Path(cfg.wavs) if cfg.wavs else None, Path(cfg.out), cfg.fps
        )
        log.info("wrote %s", written["pairs"])
    return written


@hydra.main(version_base="1.3", config_path=CONF, config_name="convert")
def main(cfg: DictConfig) -> None:
    """Entry."""
    run(convert, cfg)


if __name__ == "__main__":
    main()
