"""ImageHear: 101 photographs of 30 classes, on which Im2Wav was evaluated. The photographs are not shipped.

The list is the official repository's (Data/meta.py), with people4.jpg, which lies in its folder but not in its list.
"""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from im2wav.data.sources import Source, Sources


@dataclass(frozen=True)
class ImageHearClass:
    """A class: its photographs, and which labels of two data sets mean it. Classes share labels."""

    name: str
    images: tuple[str, ...]  # file names
    vggsound: tuple[str, ...]
    audioset: tuple[str, ...]


@dataclass(frozen=True)
class ImageHear:
    """The list.

    Attributes:
        classes: in alphabetical order.
        audioset_general: AudioSet labels too general to count as an answer ("Music"), ignored in the official accuracy.
        sha256: of each photograph, by file name.
    """

    classes: tuple[ImageHearClass, ...]
    audioset_general: tuple[str, ...]
    sha256: dict[str, str]

    @property
    def class_of(self) -> dict[str, ImageHearClass]:
        """The class of each photograph, by file name."""
        return {image: entry for entry in self.classes for image in entry.images}


@cache
def imagehear() -> ImageHear:
    """The packaged list."""
    content = json.loads(files("im2wav.data").joinpath("imagehear.json").read_text(encoding="utf-8"))
    kinds = ("images", "vggsound", "audioset")
    classes = (ImageHearClass(name, *(tuple(c[kind]) for kind in kinds)) for name, c in content["classes"].items())
    return ImageHear(tuple(classes), tuple(content["audioset_general_classes"]), content["sha256"])


def imagehear_sources(images: str) -> Sources:
    """The photographs in a folder, labelled with their classes, all in the test split.

    Raises:
        ValueError: the folder does not exist or holds none of them.
    """
    folder = Path(images)
    if not folder.is_dir():
        raise ValueError(f"input={images} does not exist: expected the folder that holds the ImageHear photographs")
    entries = imagehear().class_of
    if not any((folder / name).is_file() for name in entries):
        raise ValueError(f"input={images} holds none of the {len(entries)} ImageHear photographs, such as dog1.jpg")
    sources = (
        Source(Path(name).stem, image=str(folder / name), label=entry.name, split="test")
        for name, entry in entries.items()
    )
    return Sources("imagehear", sources, imagehear_sha256())


def imagehear_sha256() -> str:
    """Hash of the packaged list."""
    from hashlib import sha256

    return sha256(files("im2wav.data").joinpath("imagehear.json").read_bytes()).hexdigest()
