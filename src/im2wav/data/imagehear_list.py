"""ImageHear: list of the 101 photos of 30 classes used to evaluate Im2Wav. The photos are not included.

The list is from the official repository (Data/meta.py), plus people4.jpg, which is only in its folder.
"""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class ImageHearClass:
    """A class with its photos and its labels in two data sets. Several classes can have the same label."""

    name: str
    images: tuple[str, ...]  # file names
    vggsound: tuple[str, ...]
    audioset: tuple[str, ...]


@dataclass(frozen=True)
class ImageHear:
    """The ImageHear list.

    Attributes:
        classes: the classes in alphabetical order.
        audioset_general: AudioSet labels too general to count as an answer ("Music"), ignored in the official accuracy.
        sha256: hash of each photo, by file name.
    """

    classes: tuple[ImageHearClass, ...]
    audioset_general: tuple[str, ...]
    sha256: dict[str, str]

    @property
    def class_of(self) -> dict[str, ImageHearClass]:
        """Class of each photo, by file name."""
        return {image: entry for entry in self.classes for image in entry.images}


@cache
def imagehear() -> ImageHear:
    """Read the list of the package."""
    content = json.loads(files("im2wav.data").joinpath("imagehear.json").read_text(encoding="utf-8"))
    kinds = ("images", "vggsound", "audioset")
    classes = (ImageHearClass(name, *(tuple(c[kind]) for kind in kinds)) for name, c in content["classes"].items())
    return ImageHear(tuple(classes), tuple(content["audioset_general_classes"]), content["sha256"])


def imagehear_sha256() -> str:
    """Hash of the list of the package."""
    from hashlib import sha256

    return sha256(files("im2wav.data").joinpath("imagehear.json").read_bytes()).hexdigest()
