"""VGGSound: 199,467 ten-second clips of 309 classes, by its official csv.

Chen et al., 2020, arXiv 2004.14368. The csv has no header: YouTube id, start in seconds, label, `train` or `test`.
"""

import csv
from collections.abc import Iterator
from os import scandir
from pathlib import Path

from im2wav.data.media import VIDEO_SUFFIXES
from im2wav.data.sources import Source, Sources
from im2wav.hashing import file_sha256

SECONDS = 10  # of a clip


def clip_names(youtube: str, start: int) -> tuple[str, ...]:
    """What a clip's file is called, without suffix: as in most copies; as SpecVQGAN and Im2Wav have it; bare."""
    return (f"{youtube}_{start:06d}", f"{youtube}_{start * 1000}_{(start + SECONDS) * 1000}", f"{youtube}_{start}")


def vggsound_sources(videos: str, table: str) -> Sources:
    """The clips of the csv. One that is not in the folder keeps its place, and is listed as missing.

    Args:
        videos: the folder with the clips, in subfolders or not, named in one of the ways of `clip_names`.
        table: vggsound.csv.

    Raises:
        ValueError: the folder or the csv does not exist, the csv is another table, or the folder holds none of them.
    """
    folder, path = Path(videos), Path(table)
    if not folder.is_dir():
        raise ValueError(f"input={videos} does not exist: expected the folder with VGGSound's clips")
    if not path.is_file():
        raise ValueError(f"source.table={table} does not exist: expected VGGSound's official csv, vggsound.csv")
    files = dict(_videos(folder))
    sources = [_source(path, number, row, files, folder) for number, row in _rows(path)]
    if not any(names & files.keys() for names in (set(clip_names(*_key(source.id))) for source in sources)):
        example = clip_names(*_key(sources[0].id))[0] if sources else "ID_000030"
        raise ValueError(f"input={videos} holds none of the {len(sources)} clips of {table}, such as {example}.mp4")
    return Sources("vggsound", sources, file_sha256(path))


def _videos(folder: Path) -> Iterator[tuple[str, str]]:
    """(name without suffix, path) of each video; one pass over the folders, not one look for each clip."""
    for entry in scandir(folder):
        if entry.is_dir():
            yield from _videos(Path(entry.path))
        elif Path(entry.name).suffix.lower() in VIDEO_SUFFIXES:
            yield Path(entry.name).stem, entry.path


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        yield from ((number, row) for number, row in enumerate(csv.reader(file), 1) if row)


def _key(name: str) -> tuple[str, int]:
    youtube, _, start = name.rpartition("_")
    return youtube, int(start)


def _source(path: Path, number: int, row: list[str], files: dict[str, str], folder: Path) -> Source:
    if len(row) != 4 or not row[1].isdecimal() or row[3] not in ("train", "test"):
        raise ValueError(
            f"{path}, line {number}: expected YouTube id, start in seconds, label, train or test, got {row}"
        )
    youtube, start, label, split = row
    names = clip_names(youtube, int(start))
    video = next((files[name] for name in names if name in files), str(folder / f"{names[0]}.mp4"))
    return Source(names[0], video=video, label=label, split=split, group=youtube)
