"""`python -m im2wav.inspect data.root=...`: statistics of a data set, as tables and as a page with examples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omegaconf import DictConfig

from im2wav.cli import command, run

if TYPE_CHECKING:
    from im2wav.prepare.survey import Survey


def inspect(cfg: DictConfig) -> Survey:
    """Survey a data set, print the tables and write the page; see `run_survey`."""
    from im2wav.prepare.survey import run_survey

    return run_survey(cfg)


@command("inspect")
def main(cfg: DictConfig) -> None:
    """Run the command."""
    run(inspect, cfg)


if __name__ == "__main__":
    main()
