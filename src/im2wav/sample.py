"""`python -m im2wav.sample input=photo.jpg|clip.mp4|FOLDER`: photos and videos -> generated audio."""

from typing import Any

from omegaconf import DictConfig

from im2wav.cli import command, instantiate, run


def sample(cfg: DictConfig) -> list[dict[str, Any]]:
    """Generate audio for all inputs; see `im2wav.inference.command.run_sample`."""
    from im2wav.inference.command import run_sample

    return run_sample(cfg, instantiate)


@command("sample")
def main(cfg: DictConfig) -> None:
    """Run the command."""
    run(sample, cfg)


if __name__ == "__main__":
    main()
