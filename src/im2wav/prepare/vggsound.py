"""VGGSound: 199,467 ten-second clips of 309 classes, by its official csv.

Chen et al., 2020, arXiv 2004.14368. The csv has no header: YouTube id, start in seconds, label, `train` or `test`.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

from im2wav.files import VIDEO_SUFFIXES, file_sha256, list_files
from im2wav.prepare.sources import Source, Sources

CLIP_SECONDS = 10


def clip_names(youtube: str, start: int) -> tuple[str, ...]:
    """File names of a clip without suffix: as in most copies, as in SpecVQGAN and Im2Wav, and with bare seconds."""
    return (f"{youtube}_{start:06d}", f"{youtube}_{start * 1000}_{(start + CLIP_SECONDS) * 1000}", f"{youtube}_{start}")


def vggsound_sources(videos: str, table: str) -> Sources:
    """The clips of the csv. Those that are not in the folder are included, so that they are listed as missing.

    Args:
        videos: the folder of the clips, in subfolders or not, with one of the names of `clip_names`.
        table: vggsound.csv.

    Raises:
        ValueError: the folder or the csv does not exist, the csv is another table, or the folder has none of its clips.
    """
    folder, path = Path(videos), Path(table)
    if not folder.is_dir():
        raise ValueError(f"input={videos} does not exist: expected the folder of VGGSound's clips")
    if not path.is_file():
        raise ValueError(f"source.table={table} does not exist: expected VGGSound's official csv, vggsound.csv")
    files = {path.stem: str(path) for path in list_files(folder, VIDEO_SUFFIXES, follow_links=True)}
    sources = [_source(path, number, row, files, folder) for number, row in _rows(path)]
    if not any(names & files.keys() for names in (set(clip_names(*_key(source.id))) for source in sources)):
        example = clip_names(*_key(sources[0].id))[0] if sources else "ID_000030"
        raise ValueError(f"input={videos} contains none of the {len(sources)} clips of {table}, such as {example}.mp4")
    return Sources("vggsound", sources, file_sha256(path))


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
