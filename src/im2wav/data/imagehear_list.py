"""ImageHear: list of the 101 photos of 30 classes used to evaluate Im2Wav. The photos are not included.

The list is from the official repository (Data/meta.py), plus people4.jpg, which is only in its folder.
"""

import hashlib
import json
from functools import cache
from importlib.resources import files
from typing import NamedTuple


class ImageHearClass(NamedTuple):
    """A class with its photos and its labels in two data sets. Several classes can have the same label."""

    name: str
    images: tuple[str, ...]  # file names
    vggsound: tuple[str, ...]
    audioset: tuple[str, ...]


class ImageHear(NamedTuple):
    """The ImageHear list."""

    classes: tuple[ImageHearClass, ...]  # in alphabetical order
    audioset_general: tuple[str, ...]  # labels too general to count as an answer ("Music"), ignored as officially
    class_of: dict[str, ImageHearClass]  # class of each photo, by file name
    list_sha256: str  # hash of the list itself


@cache
def imagehear() -> ImageHear:
    """Read the list of the package."""
    text = files("im2wav.data").joinpath("imagehear.json").read_bytes()  # with the hash of each photo, too
    content = json.loads(text)
    kinds = ("images", "vggsound", "audioset")
    classes = tuple(ImageHearClass(name, *(tuple(c[kind]) for kind in kinds)) for name, c in content["classes"].items())
    class_of = {image: entry for entry in classes for image in entry.images}
    general = tuple(content["audioset_general_classes"])
    return ImageHear(classes, general, class_of, hashlib.sha256(text).hexdigest())
