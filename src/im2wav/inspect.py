"""`python -m im2wav.inspect data.root=...`: what is in a data set, as tables and as a page to look at and hear."""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from im2wav.cli import CONF, one_line, register_resolvers, run

if TYPE_CHECKING:
    import numpy as np

    from im2wav.data.manifest import Pair
    from im2wav.data.pairs import PairsFolder
    from im2wav.data.survey import Survey, Table

log = logging.getLogger(__name__)
register_resolvers()

ROWS = 15  # of a long table that the terminal shows


def as_text(heading: str, table: Table) -> str:
    """A table for the terminal."""
    cells = [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in row] for row in table[: ROWS + 1]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
    more = [f"... and {len(table) - 1 - ROWS} more"] if len(table) > ROWS + 1 else []
    return "\n".join(["", heading, *("  " + line for line in lines if line), *more])


def skipped(root: Path) -> Table:
    """Why inputs could not be used when the pairs were made, from skipped.csv."""
    from im2wav.data.media import read_table

    path = root / "skipped.csv"
    reasons = Counter(row["reason"] for row in read_table(path, {"reason"})) if path.is_file() else Counter()
    return [("reason", "inputs"), *reasons.most_common()] if reasons else [("reason", "inputs"), ("nothing skipped", 0)]


def chosen(rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Some of the rows, in their order; all where there are no more."""
    import numpy as np

    if len(rows) <= count:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, count, replace=False))


def picture(pair: Pair, folder: Path) -> Path | None:
    """The picture of a pair, or the middle frame of its video, as a file in `folder`; None where it is not there."""
    from PIL import Image

    from im2wav.data.media import IMAGE_SUFFIXES, MediaError, read_frames, read_image

    source = Path(pair.source)
    try:
        if not source.is_file():
            return None
        if source.suffix.lower() in IMAGE_SUFFIXES:
            image = read_image(source)
        else:
            frames = [frame for chunk in read_frames(source, 1.0, 8) for frame in chunk]
            image = Image.fromarray(frames[len(frames) // 2])
    except (MediaError, IndexError):
        return None
    image.thumbnail((480, 480))
    path = folder / f"{len(list(folder.iterdir()))}.jpg"
    image.save(path, quality=85)
    return path


def cards(folder: PairsFolder, rows: Sequence[int], where: Path) -> list[Any]:
    """Cards of some pairs: picture, sound, and what the manifest says."""
    from im2wav.evaluation.page import Card

    shown = []
    for row in rows:
        pair = folder.pairs[int(row)]
        sounds = {}
        length = f"{pair.frames} frames" if folder.info.fps else "photo"
        note = [pair.label or "no label", pair.split, length]
        if pair.samples:
            try:
                sounds = {"sound": folder.read_wav(pair, 0, min(pair.samples, 10 * folder.info.sample_rate))}
                note.append(f"{pair.samples / folder.info.sample_rate:.2f} s")
            except ValueError as error:
                note.append(str(error))
        image = picture(pair, where)
        note += [pair.note] * bool(pair.note) + ["its picture is not here any more"] * (image is None)
        shown.append(Card(pair.id, image, sounds, "; ".join(note)))
    return shown


def histograms(found: Survey) -> str:
    """The measured values as histograms, a data URI."""
    from matplotlib.figure import Figure

    from im2wav.evaluation.page import svg

    values = {name: numbers for name, numbers in found.values.items() if len(numbers)}
    counts = [row[1] for row in found.tables["Labels"][1:]]
    figure = Figure(figsize=(4.0 * (len(values) + 1), 2.8), layout="constrained")
    axes = figure.subplots(1, len(values) + 1, squeeze=False)[0]
    for axis, (name, numbers) in zip(axes, values.items(), strict=False):
        axis.hist(numbers, bins=40)
        axis.set(xlabel=name, ylabel="clips")
    axes[-1].bar(range(len(counts)), counts, width=1.0)
    axes[-1].set(xlabel="labels, most frequent first", ylabel="clips")
    return svg(figure)


def write(cfg: DictConfig, folder: PairsFolder, found: Survey) -> Path:
    """The page."""
    import numpy as np

    from im2wav.evaluation.page import Section, plot, table, write_html
    from im2wav.evaluation.page import cards as as_cards

    rows = chosen(np.arange(len(folder.pairs)), cfg.cards, cfg.seed)
    findings: Table = [("what looks wrong",), *((text,) for text in found.findings or ["nothing"])]
    tables = {name: rows[:101] for name, rows in found.tables.items()}
    with tempfile.TemporaryDirectory() as where:
        text = f"{len(rows)} of {len(folder.pairs)} pairs, drawn at random; sounds are cut after 10 s."
        section = Section("Some of them", text, cards(folder, rows.tolist(), Path(where)))
        parts = [
            table("What is there", tables.pop("What is there")),
            table("Findings", findings),
            as_cards(section, folder.info.sample_rate),
            plot("Distributions", "", histograms(found)),
            *(table(name, content) for name, content in tables.items()),
        ]
        out = Path(cfg.out)
        write_html(out, f"The pairs in {cfg.data.root}", "", parts)
    return out


def inspect(cfg: DictConfig) -> Survey:
    """Survey a data set, print the tables and write the page.

    Raises:
        ValueError: no pairs, a split that makes no sense, or a page that cannot be written.
    """
    import numpy as np
    from tqdm.auto import tqdm

    from im2wav.data.shards import open_folder
    from im2wav.data.splits import split_rows
    from im2wav.data.survey import survey

    folder = open_folder(cfg.data.root, cfg.data.chunks)
    if not len(folder.pairs):
        raise ValueError(f"{folder.root / 'manifest.csv'} has no rows: nothing to look at")
    splits = split_rows(folder.pairs, cfg.data.split, cfg.data.shares)
    sounding = np.flatnonzero(folder.pairs.column("samples") > 0)
    rows = sounding if cfg.full else chosen(sounding, cfg.listen_to, cfg.seed)
    found = survey(folder, splits, cfg.data.num_samples, rows, lambda r: tqdm(r, desc="listen", disable=None))
    found.tables["Skipped when the pairs were made"] = skipped(folder.root)
    for heading, content in found.tables.items():
        log.info("%s", as_text(heading, content))
    log.info("\nFindings\n%s", "\n".join(f"  - {text}" for text in found.findings or ["nothing looks wrong"]))
    if cfg.out:
        log.info("\npage: %s", write(cfg, folder, found).resolve())
    return found


@one_line
@hydra.main(version_base="1.3", config_path=CONF, config_name="inspect")
def main(cfg: DictConfig) -> None:
    """Entry."""
    run(inspect, cfg)


if __name__ == "__main__":
    main()
