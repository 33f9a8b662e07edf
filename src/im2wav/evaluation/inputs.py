"""What an evaluation is given: generated sounds, their references, pictures and labels, each item by its name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from im2wav.data.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES, read_table
from im2wav.data.pairs import PairsFolder
from im2wav.evaluation import imagehear
from im2wav.evaluation.sounds import Sound, SoundSet, Unmatched, find_sounds, listed, match


@dataclass
class Inputs:
    """What is to be judged.

    Attributes:
        sets: `generated` and, of a model, `draft`.
        reference: real sounds; None where there are none.
        pictures: item -> its photo or video.
        labels: item -> its label.
        unmatched: names without a partner.
    """

    sets: dict[str, SoundSet]
    reference: SoundSet | None = None
    pictures: Mapping[str, Path] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    unmatched: Unmatched = field(default_factory=lambda: Unmatched([], []))


def find_pictures(folder: Path) -> dict[str, Path]:
    """Photos and videos of a folder by name: the path below it without suffix.

    Raises:
        ValueError: no such folder, or nothing in it.
    """
    if not folder.is_dir():
        raise ValueError(f"images={folder}: no such folder; expected the pictures, called like the sounds")
    kinds = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in kinds and not p.name.startswith("."))
    if not paths:
        raise ValueError(f"images={folder} holds neither photos nor videos")
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}


def read_labels(path: Path) -> dict[str, str]:
    """Labels of items from a csv file with the columns id and label.

    Raises:
        ValueError: the file is missing or lacks a column.
    """
    return {row["id"]: row["label"] for row in read_table(path, {"id", "label"})}


def from_folders(generated: Path, reference: Path | None, paired: bool, missing: str) -> Inputs:
    """Sounds of two folders, matched by name where they are paired; without a reference each sound is an item.

    Raises:
        ValueError: a folder is missing or empty, or names do not match.
    """
    sounds = find_sounds(generated, "generated")
    if reference is None:
        return Inputs({"generated": SoundSet("generated", tuple(sounds))})
    real = find_sounds(reference, "reference")
    if not paired:
        return Inputs({"generated": SoundSet("generated", tuple(sounds))}, SoundSet("reference", tuple(real)))
    matched, rest = match(sounds, [sound.name for sound in real], missing)
    heard = {sound.target for sound in matched}
    real = [sound for sound in real if sound.name in heard]
    return Inputs(
        {"generated": SoundSet("generated", tuple(matched))}, SoundSet("reference", tuple(real)), unmatched=rest
    )


def pairs_inputs(folder: PairsFolder, split: str, pictures_needed: bool = True) -> Inputs:
    """References, pictures and labels of a pairs folder; what a model hears in the pictures is still to come.

    Raises:
        ValueError: the split has no pair with picture and sound, or pictures that are needed are missing.
    """
    pairs = [pair for pair in folder.pairs if pair.samples and split in ("all", pair.split)]
    if not pairs:
        splits = sorted({pair.split for pair in folder.pairs})
        raise ValueError(f"data={folder.root} with split={split}: no pair has a sound; its splits are {splits}, or all")
    pictures = {pair.id: Path(pair.source) for pair in pairs}
    lost = [str(path) for path in pictures.values() if not path.is_file()]
    if not pictures_needed:
        pictures = {name: path for name, path in pictures.items() if path.is_file()}
    elif lost:
        raise ValueError(
            f"data={folder.root}: {len(lost)} of {len(pictures)} pictures are no longer where its manifest says: "
            f"{listed(lost, 2)}. Put them back, or run this from the folder that `embed` ran in"
        )
    rate = folder.info.sample_rate
    real = [Sound(pair.id, folder.root / pair.wav, pair.id, rate, pair.samples) for pair in pairs]
    labels = {pair.id: pair.label for pair in pairs}
    return Inputs({}, SoundSet("reference", tuple(sorted(real, key=lambda s: s.name))), pictures, labels)


def imagehear_inputs(images: Path | None) -> Inputs:
    """Pictures and labels of ImageHear.

    Raises:
        ValueError: some of the photographs are missing.
    """
    classes = imagehear.image_classes()
    pictures = {path.stem: path for path in imagehear.find_images(images).values()} if images else {}
    return Inputs({}, None, pictures, classes)


def add_generated(inputs: Inputs, title: str, folder: Path, items: Sequence[str], missing: str) -> None:
    """Add a set of generated sounds that belong to `items`.

    Raises:
        ValueError: the folder is missing or empty, or names do not match.
    """
    matched, rest = match(find_sounds(folder, title), items, missing)
    inputs.sets[title] = SoundSet(title, tuple(matched))
    inputs.unmatched = rest
    heard = {sound.target for sound in matched}
    if inputs.reference is not None:
        kept = tuple(sound for sound in inputs.reference.sounds if sound.name in heard)
        inputs.reference = replace(inputs.reference, sounds=kept)
