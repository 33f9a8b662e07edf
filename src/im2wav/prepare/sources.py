"""Finding the sources to embed: videos, images with audio files, images alone."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from im2wav.data.imagehear_list import imagehear, imagehear_sha256
from im2wav.data.manifest import SPLITS
from im2wav.files import AUDIO_SUFFIXES, IMAGE_SUFFIXES, LONGEST_NAME, VIDEO_SUFFIXES, item_name, list_files, read_table


@dataclass(frozen=True)
class Source:
    """Source files of a pair: an image or a video, and optionally an audio file. Paths are strings to save memory."""

    id: str
    image: str = ""
    video: str = ""
    audio: str = ""  # beside an image, or instead of a video's own track
    label: str = ""
    split: str = "train"
    group: str = ""

    @property
    def path(self) -> str:
        """The image or the video."""
        return self.video or self.image


class Sources(Sequence[Source]):
    """Sources sorted by id.

    Args:
        name: name of the data set.
        sources: in any order.
        list_sha256: hash of the published list that defines the data set, if there is one.

    Raises:
        ValueError: two have the same id, or an id cannot be a file name.
    """

    def __init__(self, name: str, sources: Iterable[Source], list_sha256: str | None = None):
        self.name, self.list_sha256 = name, list_sha256
        self._sources = sorted(sources, key=lambda source: source.id)
        double = [name for name, n in Counter(source.id for source in self._sources).items() if n > 1]
        if double:
            raise ValueError(f"several sources have the id {double[0]!r} ({len(double)} such ids); rename them")
        for source in self._sources:
            if source.id in ("", ".", "..") or {"/", "\\", "\0"} & set(source.id):
                raise ValueError(f"{source.path}: id {source.id!r} cannot be a file name")
            if len(source.id.encode("utf-8", "surrogateescape")) > LONGEST_NAME:
                start = source.id[:40]
                raise ValueError(f"{source.path}: id {start!r}... is longer than {LONGEST_NAME} bytes; shorten it")

    def __len__(self) -> int:
        return len(self._sources)

    def __getitem__(self, index):
        return self._sources[index]


def find_sources(given: str | Path, name: str = "pairs") -> Sources:
    """Sources of a folder or a manifest.

    In a folder without a manifest.csv, each video and each image is a source; an audio file of the same name belongs
    to it, and its subfolder is its label.

    Raises:
        ValueError: the folder does not exist or has nothing to embed, or two sources have the same id.
    """
    given = Path(given)
    manifest = given / "manifest.csv" if given.is_dir() else given
    if manifest.suffix == ".csv" and manifest.is_file():
        sources = list(_manifest_sources(manifest))
    elif given.is_dir():
        sources = list(_folder_sources(given))
    else:
        raise ValueError(f"input={given} does not exist: expected a folder or a manifest.csv")
    if not sources:
        raise ValueError(f"input={given} contains no videos, no images and no manifest.csv: nothing to embed")
    try:
        return Sources(name, sources)
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
    sources = (
        Source(Path(name).stem, image=str(folder / name), label=entry.name, split="test")
        for name, entry in entries.items()
    )
    return Sources("imagehear", sources, imagehear_sha256())


def _folder_sources(folder: Path) -> Iterator[Source]:
    files = [path for path in list_files(folder, IMAGE_SUFFIXES | VIDEO_SUFFIXES | AUDIO_SUFFIXES) if path.is_file()]
    audio = {path.with_suffix(""): str(path) for path in files if path.suffix.lower() in AUDIO_SUFFIXES}
    for path in files:
        suffix, beside = path.suffix.lower(), audio.get(path.with_suffix(""), "")
        name, label = item_name(path, folder), "/".join(path.parent.relative_to(folder).parts)
        if suffix in IMAGE_SUFFIXES:
            yield Source(name, image=str(path), audio=beside, label=label)
        elif suffix in VIDEO_SUFFIXES:
            yield Source(name, video=str(path), audio=beside, label=label)


def _manifest_sources(manifest: Path) -> Iterator[Source]:
    for row in read_table(manifest, {"id"}):
        paths = {k: str(manifest.parent / row[k]) for k in ("image", "video", "audio") if row.get(k)}
        if not row["id"] or Path(row["id"]).name != row["id"]:
            raise ValueError(f"{manifest}: id {row['id']!r} cannot be a file name")
        if not paths.keys() & {"image", "video"}:
            raise ValueError(f"{manifest}: {row['id']!r} names neither an image nor a video")
        if row.get("split") and row["split"] not in SPLITS:
            raise ValueError(f"{manifest}: {row['id']!r} has split={row['split']!r}; expected one of {SPLITS}")
        texts = {k: row[k] for k in ("label", "split", "group") if row.get(k)}
        yield Source(row["id"], **paths, **texts)
