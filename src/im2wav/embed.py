"""`python -m im2wav.embed input=FOLDER out=data/pairs`: convert videos, or images and audio, to a pairs folder."""

from omegaconf import DictConfig

from im2wav.cli import command, instantiate, run


def embed(cfg: DictConfig) -> float:
    """Embed all inputs; see `im2wav.prepare.embedding.embed_pairs`."""
    from im2wav.prepare.embedding import embed_pairs

    return embed_pairs(cfg, instantiate)


@command("embed")
def main(cfg: DictConfig) -> None:
    """Run the command; exit code 1 if more than the fraction `max_failed` of the inputs was skipped."""
    if run(embed, cfg) > cfg.max_failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
