"""Scoring for ImageHear, the benchmark of Im2Wav: AudioSet classes that count as correct for a class or label.

Source: Sheffer and Adi, 2022, and the lists of the official repository. A class has several AudioSet labels and
classes share labels, so a hit is a label in the class's set; the 30-way score asks which class scores highest.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from torch import Tensor

from im2wav.data.imagehear_list import imagehear
from im2wav.evaluation.audio_files import format_names
from im2wav.evaluation.metrics import wanted_classes


def class_names() -> list[str]:
    """The 30 classes."""
    return [entry.name for entry in imagehear().classes]


@lru_cache(maxsize=1)
def image_classes() -> dict[str, str]:
    """Name of each image without its suffix -> its class."""
    return {Path(image).stem: entry.name for image, entry in imagehear().class_of.items()}


def class_of(label: str) -> str | None:
    """ImageHear class of a label: the class itself, or a VGGSound label of the class."""
    wanted = label.strip().lower()
    for entry in imagehear().classes:
        if wanted == entry.name.lower() or wanted in (x.lower() for x in entry.vggsound):
            return entry.name
    return None


def audioset_names(label: str, known: Sequence[str]) -> list[str]:
    """AudioSet classes that count as correct for a label: those of its ImageHear class, else the class of its name."""
    found = class_of(label)
    if found is not None:
        return next(list(entry.audioset) for entry in imagehear().classes if entry.name == found)
    wanted = label.strip().lower()
    return [name for name in known if name.lower() == wanted]


def class_groups(labels: Sequence[str]) -> Tensor:
    """Tagger classes of each of the 30 ImageHear classes: bool [30, C]."""
    return wanted_classes([entry.audioset for entry in imagehear().classes], labels)


@lru_cache
def general_mask(labels: tuple[str, ...]) -> Tensor:
    """Classes that are too general to count (`Music`, `Animal`): bool [C]."""
    return wanted_classes([imagehear().audioset_general], labels)[0]


def images_per_class(per_class: int) -> dict[str, int]:
    """Number of audio files per image for `per_class` files per class: image name without its suffix -> number.

    Raises:
        ValueError: fewer than one file per class.
    """
    if per_class < 1:
        raise ValueError(f"per_class={per_class}: must be >= 1 (120 in the paper)")
    counts = {}
    for entry in imagehear().classes:
        each, rest = divmod(per_class, len(entry.images))
        counts.update({Path(image).stem: each + (i < rest) for i, image in enumerate(entry.images)})
    return {image: count for image, count in counts.items() if count}


def find_imagehear_images(folder: Path) -> dict[str, Path]:
    """Find the 101 images in a folder, by name without suffix.

    Raises:
        ValueError: the folder or some of the images are missing.
    """
    if not folder.is_dir():
        raise ValueError(f"images={folder}: no such folder; expected the 101 photographs of ImageHear")
    found = {path.name: path for path in sorted(folder.rglob("*"))}
    names = list(imagehear().class_of)
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(
            f"images={folder}: {len(missing)} of the {len(names)} images of ImageHear are missing: "
            f"{format_names(missing)}"
        )
    return {Path(name).stem: found[name] for name in names}
