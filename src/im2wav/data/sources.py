"""Finding what there is to embed: videos, pictures beside sounds, pictures alone."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from im2wav.data.media import AUDIO_SUFFIXES, IMAGE_SUFFIXES, VIDEO_SUFFIXES, read_table

SPLITS = ("train", "valid", "test")


def item_name(path: Path, root: Path) -> str:
    """What an input is called: its path below `root` without suffix, folders joined by underscores."""
    return "_".join(path.relative_to(root).with_suffix("").parts)


@dataclass(frozen=True)
class Source:
    """What one pair is made from: a picture or a video, and where there is one a sound."""

    id: str
    image: Path | None = None
    video: Path | None = None
    audio: Path | None = None  # beside a picture, or instead of a video's own track
    label: str = ""
    split: str = "train"
    group: str = ""

    @property
    def path(self) -> Path:
        """The picture or the video."""
        return self.video or self.image  # type: ignore[return-value]


def find_sources(given: Path) -> list[Source]:
    """Sources of a folder or a manifest, in order of their ids.

    In a folder without a manifest.csv, each video and each picture is a source; a sound of the same name belongs to
    it, and the folder below `given` that it lies in is its label.

    Raises:
        ValueError: the folder does not exist or holds nothing to embed, or two sources share an id.
    """
    manifest = given / "manifest.csv" if given.is_dir() else given
    if manifest.suffix == ".csv" and manifest.is_file():
        sources = list(_manifest_sources(manifest))
    elif given.is_dir():
        files = sorted(p for p in given.rglob("*") if p.is_file() and not p.name.startswith("."))
        sounds = {p.with_suffix(""): p for p in files if p.suffix.lower() in AUDIO_SUFFIXES}
        sources = []
        for path in files:
            suffix, bare = path.suffix.lower(), path.with_suffix("")
            if suffix in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
                kind = "image" if suffix in IMAGE_SUFFIXES else "video"
                name, label = item_name(path, given), "/".join(path.parent.relative_to(given).parts)
                sources.append(Source(name, audio=sounds.get(bare), label=label, **{kind: path}))  # type: ignore[arg-type]
    else:
        raise ValueError(f"input={given} does not exist: expected a folder or a manifest.csv")
    if not sources:
        raise ValueError(f"input={given} holds neither videos nor pictures nor a manifest.csv: nothing to embed")
    double = [name for name, n in Counter(s.id for s in sources).items() if n > 1]
    if double:
        raise ValueError(
            f"input={given}: several sources have the id {double[0]!r} ({len(double)} such ids); rename them"
        )
    return sorted(sources, key=lambda s: s.id)


def _manifest_sources(manifest: Path) -> Iterator[Source]:
    for row in read_table(manifest, {"id"}):
        paths = {k: manifest.parent / row[k] for k in ("image", "video", "audio") if row.get(k)}
        if not row["id"] or Path(row["id"]).name != row["id"]:
            raise ValueError(f"{manifest}: id {row['id']!r} cannot be a file name")
        if not paths.keys() & {"image", "video"}:
            raise ValueError(f"{manifest}: {row['id']!r} names neither an image nor a video")
        if row.get("split") and row["split"] not in SPLITS:
            raise ValueError(f"{manifest}: {row['id']!r} has split={row['split']!r}; expected one of {SPLITS}")
        texts = {k: row[k] for k in ("label", "split", "group") if row.get(k)}
        yield Source(row["id"], **paths, **texts)  # type: ignore[arg-type]
