"""ImageHear: the list of the 101 photographs of 30 classes that Im2Wav was evaluated on. They do not ship with it.

The list is the official repository's (Data/meta.py) and people4.jpg, which is in its folder but not in its list.
"""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class ImageHearClass:
    """A class: its photographs, and its labels in two data sets. Classes share labels."""

    name: str
    images: tuple[str, ...]  # file names
    vggsound: tuple[str, ...]
    audioset: tuple[str, ...]


@dataclass(frozen=True)
class ImageHear:
    """The list.

    Attributes:
        classes: the classes in alphabetical order.
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


def imagehear_sha256() -> str:
    """Hash of the packaged list."""
    from hashlib import sha256

    return sha256(files("im2wav.data").joinpath("imagehear.json").read_bytes()).hexdigest()
