"""The inputs of an evaluation: generated audio, references, images and labels, matched by item name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from im2wav.data.pairs import PairsFolder
from im2wav.evaluation import imagehear
from im2wav.evaluation.audio_files import SHORTEST, AudioFile, AudioFileSet, find_audio_files, format_names, match
from im2wav.evaluation.evaluated_model import MakeConfig, generate_audio
from im2wav.files import AUDIO_SUFFIXES, item_names, same_name
from im2wav.inference.command import Build
from im2wav.media.reading import MediaFolder
from im2wav.tables import read_rows


@dataclass
class Inputs:
    """Inputs of an evaluation."""

    sets: dict[str, AudioFileSet]  # `generated` and, for a model, `draft`
    reference: AudioFileSet | None = None
    images: Mapping[str, Path] = field(default_factory=dict)  # photo or video of each item
    labels: Mapping[str, str] = field(default_factory=dict)  # label of each item
    # names without a counterpart, see `match`
    unmatched: Mapping[str, list[str]] = field(default_factory=lambda: {"generated": [], "reference": []})
    recordings: Sequence[AudioFile] = ()  # what retrieval searches, which need not be the references


def check_options(cfg: Any) -> None:
    """Reject options that do not go together, before anything is read."""
    if cfg.mode == "imagehear":
        if cfg.generated and cfg.model_dir:
            raise ValueError("mode=imagehear: give one of generated=DIR (audio files) and model=DIR (generates first)")
        if not cfg.generated and not cfg.images:
            raise ValueError(
                "mode=imagehear needs generated=DIR (audio files), or images=DIR, the folder of its 101 photographs, "
                "to generate the audio first"
            )
    if cfg.mode == "folders" and not (cfg.reference or cfg.data_dir):
        raise ValueError("mode=folders needs reference=DIR (real audio of the same names) or data=PAIRS")
    if cfg.seconds is not None and cfg.seconds < SHORTEST:
        raise ValueError(f"seconds={cfg.seconds}: expected at least {SHORTEST:g}")
    if cfg.suite in ("paper", "all") and cfg.weights_dir is None:
        raise ValueError(f"suite={cfg.suite} needs weights_dir=DIR; docs/evaluation.md says which files it holds")


def find_media(folder: Path) -> dict[str, Path]:
    """Photos and videos of a folder by name; see `item_names`.

    Raises:
        ValueError: the folder does not exist or contains no photos or videos.
    """
    if not folder.is_dir():
        raise ValueError(f"images={folder}: no such folder; expected images named like the audio files")
    paths = [path for path, _, _ in MediaFolder(folder).items]
    if not paths:
        raise ValueError(f"images={folder} contains neither photos nor videos")
    return dict(zip(item_names(paths, folder), paths, strict=True))


def from_pairs(folder: PairsFolder, split: str, needs_images: bool = True) -> Inputs:
    """References, images and labels of a split of a pairs folder; retrieval searches its training recordings.

    Raises:
        ValueError: the split has no pair with image and audio, or images that are needed are missing.
    """
    every = [pair for pair in folder.pairs if pair.samples]
    pairs = [pair for pair in every if split in ("all", pair.split)]
    if not pairs:
        splits = sorted({pair.split for pair in folder.pairs})
        raise ValueError(f"data={folder.root} with split={split}: no pair has audio; its splits are {splits}, or all")
    images = {pair.id: Path(pair.source) for pair in pairs if Path(pair.source).suffix.lower() not in AUDIO_SUFFIXES}
    if needs_images and len(images) < len(pairs):
        raise ValueError(
            f"data={folder.root} with split={split}: {len(pairs) - len(images)} of {len(pairs)} pairs are audio alone "
            f"and have no photo. Generate from their embeddings, `im2wav.sample input={folder.root}`, and evaluate "
            "generated=DIR reference=DIR labels=FILE"
        )
    lost = [str(path) for path in images.values() if not path.is_file()]
    if not needs_images:
        images = {name: path for name, path in images.items() if path.is_file()}
    elif lost:
        raise ValueError(
            f"data={folder.root}: {len(lost)} of {len(images)} images are no longer where its manifest says: "
            f"{format_names(lost, 2)}. Put them back, or run this from the folder that `embed` ran in"
        )
    rate = folder.info.sample_rate
    files = {pair.id: AudioFile(pair.id, folder.wav_path(pair), pair.id, rate, pair.samples) for pair in every}
    reference = sorted((files[pair.id] for pair in pairs), key=lambda file: file.name)
    recordings = [files[pair.id] for pair in every if pair.split == "train"]
    labels = {pair.id: pair.label for pair in every}
    return Inputs({}, AudioFileSet("reference", tuple(reference)), images, labels, recordings=recordings)


def read_labels(path: Path) -> dict[str, str]:
    """The label of each item, from a csv file with the columns id and label.

    Raises:
        ValueError: the file cannot be read, or an id has two labels.
    """
    labels: dict[str, str] = {}
    for line, row in read_rows(path, {"id", "label"}):
        if labels.setdefault(same_name(row["id"]), row["label"]) != row["label"]:
            raise ValueError(f"{path}, line {line}: id {row['id']!r} has another label above; keep one of them")
    return labels


def gather(cfg: Any, make_config: MakeConfig, build: Build) -> Inputs | None:
    """Find what is evaluated; a model generates its audio first.

    Returns:
        None in a process that only generates, on one of several devices.

    Raises:
        ValueError: something is missing or does not match.
    """
    if cfg.mode == "codec":
        return from_pairs(PairsFolder(cfg.data_dir), cfg.split, needs_images=False)
    numbers: dict[str, int] = {}  # of audio files of each item
    if cfg.mode == "imagehear":
        images = imagehear.find_imagehear_images(Path(cfg.images)) if cfg.images else {}
        found, numbers = Inputs({}, None, images, imagehear.image_classes()), imagehear.images_per_class(cfg.per_class)
    elif cfg.get("data_dir"):
        found = from_pairs(PairsFolder(cfg.data_dir), cfg.split)
        numbers = dict.fromkeys(found.images, cfg.num_samples)
    else:
        real = find_audio_files(Path(cfg.reference), "reference")
        found = Inputs({}, AudioFileSet("reference", tuple(real)), recordings=real if cfg.paired else ())
        numbers = {file.name: 1 for file in real} if cfg.paired else {}
    folders = {"generated": Path(cfg.generated)} if cfg.get("generated") else {}
    if cfg.get("model_dir"):
        sounds = Path(cfg.out) / "sounds"
        if not generate_audio(cfg, found.images, numbers, sounds, make_config, build):
            return None
        folders = {"draft": sounds / "low", "generated": sounds / "up"}
    for title, folder in folders.items():
        files = find_audio_files(folder, title)
        if numbers:
            files, found.unmatched = match(files, list(numbers), cfg.missing)
        found.sets[title] = AudioFileSet(title, tuple(files))
        if numbers and found.reference is not None:  # keep the references that have audio
            targets = {file.target for file in files}
            kept = tuple(file for file in found.reference.files if file.name in targets)
            found.reference = replace(found.reference, files=kept)
    if cfg.mode == "imagehear" and cfg.reference:
        found.reference = AudioFileSet("reference", tuple(find_audio_files(Path(cfg.reference), "reference")))
    if cfg.images and cfg.mode != "imagehear":
        found.images = find_media(Path(cfg.images))
    if cfg.labels:
        found.labels = read_labels(Path(cfg.labels))
    return found
