"""`python -m im2wav.convert official=DIR|run=DIR out=DIR`: convert models to folders of safetensors files.

`python -m im2wav.convert pickles=PATH wavs=DIR out=DIR` converts official CLIP pickles to a pairs folder.
"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from im2wav.cli import command, run


def convert(cfg: DictConfig) -> Any:
    """Convert models, embeddings, or both; returns the paths of the written files."""
    if not cfg.official and not cfg.run and not cfg.pickles:
        raise ValueError(
            "set official=DIR (a folder of official checkpoints), run=DIR (a folder of runs) or pickles=PATH (official "
            "CLIP pickles)"
        )
    if cfg.official and cfg.run:
        raise ValueError("official and run both write models to out: set one of the two")
    written: dict[str, Any] = {}
    if cfg.official:
        from im2wav.official import convert_folder

        written |= convert_folder(Path(cfg.official), Path(cfg.out))
    if cfg.run:
        from im2wav.cards import read_card, write_card
        from im2wav.hub import load_folder, save_folder

        folder, out = Path(cfg.run), Path(cfg.out)
        loaded, _ = load_folder(folder)
        options = {"license": cfg.license, "figures": cfg.figures, "datasets": list(cfg.datasets)}
        write_card(out, loaded, out.resolve().name, read_card(folder), **options)
        written["model"] = save_folder(loaded, out, cfg.dtype)
    if cfg.pickles:
        from im2wav.official.pickles import convert_pickles

        wavs = Path(cfg.wavs) if cfg.wavs else None
        written["pairs"] = convert_pickles(Path(cfg.pickles), wavs, Path(cfg.out), cfg.fps)
    return written


@command("convert")
def main(cfg: DictConfig) -> None:
    """Run the command."""
    run(convert, cfg)


if __name__ == "__main__":
    main()
