"""`python -m im2wav.inspect data.root=...`: print statistics of a pairs folder, and write a page with examples."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from im2wav.cli import command, run

if TYPE_CHECKING:
    from im2wav.prepare.survey import Survey

log = logging.getLogger(__name__)


def inspect(cfg: DictConfig) -> Survey:
    """Compute the statistics of a pairs folder, print them and write the page.

    Raises:
        ValueError: there are no pairs, a split is invalid, or the page cannot be written.
    """
    import numpy as np

    from im2wav.data.manifest import split_rows
    from im2wav.data.pairs import open_folder
    from im2wav.files import write_atomic
    from im2wav.prepare.survey import draw_rows, survey, survey_page, survey_text

    folder = open_folder(cfg.data.root, cfg.data.chunks)
    with_audio = np.flatnonzero(folder.pairs.column("samples") > 0)
    measured = with_audio if cfg.full else draw_rows(with_audio, cfg.num_measured, cfg.seed)
    splits = split_rows(folder.pairs, cfg.data.split, cfg.data.split_fractions)
    found = survey(folder, splits, cfg.data.num_samples, measured)
    log.info("%s", survey_text(found))
    if cfg.out:
        examples = draw_rows(np.arange(len(folder.pairs)), cfg.cards, cfg.seed)
        write_atomic(Path(cfg.out), survey_page(folder, found, examples))
        log.info("\npage: %s", Path(cfg.out).resolve())
    return found


@command("inspect")
def main(cfg: DictConfig) -> None:
    """Run the command."""
    run(inspect, cfg)


if __name__ == "__main__":
    main()
