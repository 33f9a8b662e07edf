"""Finding the sources to embed: videos, images with audio files, images alone; published data sets by their lists."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from im2wav.data.imagehear_list import imagehear
from im2wav.data.manifest import SPLITS
from im2wav.files import (
    LONGEST_NAME,
    VIDEO_SUFFIXES,
    file_sha256,
    find_path,
    item_names,
    list_files,
    path_inside,
)
from im2wav.media.reading import MediaFolder
from im2wav.tables import read_records, read_rows

CLIP_SECONDS = 10  # of VGGSound


@dataclass(frozen=True)
class Source:
    """Source files of a pair: an image or a video, and optionally an audio file; or an audio file alone, with a label.

    Paths are strings to save memory.
    """

    id: str
    image: str = ""
    video: str = ""
    audio: str = ""  # beside an image, or instead of a video's own track
    label: str = ""
    split: str = "train"
    group: str = ""
    stamp: str = ""  # of the files when they were found; see `read_stamp`

    @property
    def path(self) -> str:
        """The image or the video, or the audio file that is alone."""
        return self.video or self.image or self.audio

    @property
    def is_audio(self) -> bool:
        """Whether it is an audio file alone."""
        return not (self.video or self.image)

    def read_stamp(self, by_hash: bool = False) -> str:
        """Sizes and modification times of the files (or, by_hash, hashes); empty if one is missing."""
        stamps = []
        for path in filter(None, (self.video or self.image, self.audio)):
            try:
                status = os.stat(path)
                last = file_sha256(Path(path))[:16] if by_hash else str(status.st_mtime_ns)
            except OSError:
                return ""
            stamps.append(f"{status.st_size}-{last}")
        return " ".join(stamps)


class Sources(list[Source]):
    """The sources of a data set, sorted by id.

    Args:
        name: of the data set.
        sources: in any order.
        list_sha256: hash of the published list that defines it.
        ignored: lines that tell which files of the folder are no sources.

    Raises:
        ValueError: two have the same id, or an id cannot be a file name.
    """

    def __init__(
        self, name: str, sources: Iterable[Source], list_sha256: str | None = None, ignored: Sequence[str] = ()
    ):
        super().__init__(sorted(sources, key=lambda source: source.id))
        self.name, self.list_sha256, self.ignored = name, list_sha256, tuple(ignored)
        double = [name for name, n in Counter(source.id for source in self).items() if n > 1]
        if double:
            raise ValueError(f"several sources have the id {double[0]!r} ({len(double)} such ids); rename them")
        for source in self:
            path_inside("wav", source.id, f"{source.path}: id")


def find_sources(given: str | Path, name: str = "pairs", audio_alone: object = None) -> Sources:
    """Sources of a folder or a manifest.

    In a folder without a manifest.csv, each video and each image is a source; an audio file of the same name belongs
    to it, and its subfolder is its label.

    Args:
        given: the folder or the manifest.
        name: of the data set.
        audio_alone: if true, or any text, audio files without an image or video are sources too.

    Raises:
        ValueError: the folder does not exist or has nothing to embed, or two sources have the same id.
    """
    given = Path(given)
    manifest = given / "manifest.csv" if given.is_dir() else given
    ignored: list[str] = []
    if manifest.suffix == ".csv" and manifest.is_file():
        sources = list(_manifest_sources(manifest, bool(audio_alone)))
    elif given.is_dir():
        sources, ignored = _folder_sources(given, bool(audio_alone))
    else:
        raise ValueError(f"input={given} does not exist: expected a folder or a manifest.csv")
    if not sources:
        also = "".join(f"; {line}" for line in ignored)
        raise ValueError(f"input={given} contains no videos, no images and no manifest.csv: nothing to embed{also}")
    try:
        return Sources(name, sources, ignored=ignored)
    except ValueError as error:
        raise ValueError(f"input={given}: {error}") from error


def demo_sources() -> Sources:
    """The pairs that ship with the package."""
    return find_sources(Path(__file__).parents[1] / "assets" / "pairs", "demo")


def imagehear_sources(images: str) -> Sources:
    """The ImageHear photographs in a folder, labelled with their classes, all in the test split.

    Raises:
        ValueError: the folder does not exist or contains none of them.
    """
    folder = Path(images)
    if not folder.is_dir():
        raise ValueError(f"input={images} does not exist: expected the folder of the ImageHear photographs")
    entries = imagehear().class_of
    if not any((folder / name).is_file() for name in entries):
        raise ValueError(f"input={images} contains none of the {len(entries)} ImageHear photographs, such as dog1.jpg")
    files = [(str(folder / name), entry.name) for name, entry in entries.items()]
    sources = (Source(Path(path).stem, image=path, label=label, split="test") for path, label in files)
    return Sources("imagehear", sources, imagehear().list_sha256)


def vggsound_sources(videos: str, table: str) -> Sources:
    """VGGSound: 199,467 ten-second clips of 309 classes, by its official csv (Chen et al., 2020, arXiv 2004.14368).

    Clips that are not in the folder are included, so that they are listed as missing.

    Args:
        videos: the folder of the clips, in subfolders or not, with one of the names of `_vggsound_names`.
        table: vggsound.csv. It has no header: YouTube id, start in seconds, label, `train` or `test`.

    Raises:
        ValueError: the folder or the csv does not exist, the csv is another table, or the folder has none of its clips.
    """
    if not Path(videos).is_dir():
        raise ValueError(f"input={videos} does not exist: expected the folder of VGGSound's clips")
    if not Path(table).is_file():
        raise ValueError(f"source.table={table} does not exist: expected VGGSound's official csv, vggsound.csv")
    files = {path.stem: str(path) for path in list_files(Path(videos), VIDEO_SUFFIXES)}
    sources, found, example = [], False, "ID_000030"
    for line, row in read_records(Path(table)):
        if len(row) != 4 or not row[1].isdecimal() or row[3] not in ("train", "test"):
            expected = "YouTube id, start in seconds, label, train or test"
            raise ValueError(f"{table}, line {line}: expected {expected}, got {row}")
        youtube, start, label, split = row
        names = _vggsound_names(youtube, int(start))
        video = next((files[name] for name in names if name in files), None)
        found, example = found or video is not None, names[0]
        video = video or str(path_inside(videos, names[0], f"{table}, line {line}:", ".mp4"))
        sources.append(Source(names[0], video=video, label=label, split=split, group=youtube))
    if not found:
        raise ValueError(f"input={videos} contains none of the {len(sources)} clips of {table}, such as {example}.mp4")
    return Sources("vggsound", sources, file_sha256(Path(table)))


def _vggsound_names(youtube: str, start: int) -> tuple[str, ...]:
    """File names of a clip without suffix: as in most copies, as in SpecVQGAN and Im2Wav, and with bare seconds."""
    return (f"{youtube}_{start:06d}", f"{youtube}_{start * 1000}_{(start + CLIP_SECONDS) * 1000}", f"{youtube}_{start}")


def _folder_sources(folder: Path, audio_alone: bool) -> tuple[list[Source], list[str]]:
    """The sources of a folder, and lines that tell what is ignored."""
    found = MediaFolder(folder, audio_alone)
    names = item_names([path for path, _, _ in found.items], folder)
    long = {path for name, (path, _, _) in zip(names, found.items, strict=True) if len(name.encode()) > LONGEST_NAME}
    found.ignored += [(path, f"its name is longer than {LONGEST_NAME} bytes") for path in sorted(long)]
    sources = [
        Source(
            name,
            **{"audio": str(audio or ""), kind: str(path)},
            label="/".join(path.parent.relative_to(folder).parts),
        )
        for name, (path, kind, audio) in zip(names, found.items, strict=True)
        if path not in long
    ]
    return sources, found.describe_ignored()


def _manifest_sources(manifest: Path, audio_alone: bool) -> Iterator[Source]:
    """The sources of a manifest that a user wrote. Its files may be anywhere; its ids become names of files."""
    for line, row in read_rows(manifest, {"id"}):
        where, split = f"{manifest}, line {line}:", row.get("split", "").lower()
        path_inside("wav", row["id"], f"{where} id")
        paths = {k: str(find_path(manifest.parent / row[k])) for k in ("image", "video", "audio") if row.get(k)}
        if not paths.keys() & {"image", "video"} and not (audio_alone and "audio" in paths):
            hint = "; audio alone needs encoder.pseudo_embeddings=FILE" if "audio" in paths else ""
            raise ValueError(f"{where} {row['id']!r} names neither an image nor a video{hint}")
        if split and split not in SPLITS:
            raise ValueError(f"{where} {row['id']!r} has split={row['split']!r}; expected one of {SPLITS}")
        texts = {k: row[k] for k in ("label", "group") if row.get(k)}
        yield Source(row["id"], **paths, **texts, split=split or "train")
