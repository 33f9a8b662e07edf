"""Finding what there is to embed: videos, pictures beside sounds, pictures alone."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from im2wav.data.media import AUDIO_SUFFIXES, IMAGE_SUFFIXES, VIDEO_SUFFIXES, read_table

SPLITS = ("train", "valid", "test")
_LONGEST = 240  # bytes of a file's name, with room for a suffix


def item_name(path: Path, root: Path) -> str:
    """What an input is called: its path below `root` without suffix, folders joined by underscores."""
    return "_".join(path.relative_to(root).with_suffix("").parts)


@dataclass(frozen=True)
class Source:
    """What one pair is made from: a picture or a video, and where there is one a sound. Paths are strings: there are
    hundreds of thousands."""

    id: str
    image: str = ""
    video: str = ""
    audio: str = ""  # beside a picture, or instead of a video's own track
    label: str = ""
    split: str = "train"
    group: str = ""

    @property
    def path(self) -> str:
        """The picture or the video."""
        return self.video or self.image


class Sources(Sequence[Source]):
    """Sources in order of their ids.

    Args:
        name: of the data set.
        sources: in any order.
        list_sha256: hash of the list that they come from, where it is a published one.

    Raises:
        ValueError: there is none, two share an id, or an id cannot be a file name.
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
            if len(source.id.encode("utf-8", "surrogateescape")) > _LONGEST:
                raise ValueError(f"{source.path}: id {source.id[:40]!r}... is longer than {_LONGEST} bytes; shorten it")

    def __len__(self) -> int:
        return len(self._sources)

    def __getitem__(self, index):
        return self._sources[index]


def find_sources(given: str | Path, name: str = "pairs") -> Sources:
    """Sources of a folder or a manifest.

    In a folder without a manifest.csv, each video and each picture is a source; a sound of the same name belongs to
    it, and the folder below `given` that it lies in is its label.

    Raises:
        ValueError: the folder does not exist or holds nothing to embed, or two sources share an id.
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
        raise ValueError(f"input={given} holds neither videos nor pictures nor a manifest.csv: nothing to embed")
    try:
        return Sources(name, sources)
    except ValueError as error:
        raise ValueError(f"input={given}: {error}") from error


def demo_sources() -> Sources:
    """The pairs that are shipped with the package."""
    return find_sources(Path(__file__).parents[1] / "assets" / "pairs", "demo")


def _folder_sources(folder: Path) -> Iterator[Source]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    sounds = {p.with_suffix(""): str(p) for p in files if p.suffix.lower() in AUDIO_SUFFIXES}
    for path in files:
        suffix, sound = path.suffix.lower(), sounds.get(path.with_suffix(""), "")
        name, label = item_name(path, folder), "/".join(path.parent.relative_to(folder).parts)
        if suffix in IMAGE_SUFFIXES:
            yield Source(name, image=str(path), audio=sound, label=label)
        elif suffix in VIDEO_SUFFIXES:
            yield Source(name, video=str(path), audio=sound, label=label)


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
