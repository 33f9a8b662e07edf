"""List recordings for `im2wav.embed`, split by group.

    python experiments/starter/manifest.py data/starter/manifest.csv FOLDER ...

A folder has audio files and sources.csv, which says `file`, `class` and `group` of each (and its author and licence). A
group, the original recording, is in one split only. Changed copies (augment.py) of held-out recordings are left out,
and so are files whose class is not in classes.yaml, which are listed. With --most, so are recordings of something else
that belongs to the class, by what their source says, such as the horn of a car.
"""

import argparse
import csv
import hashlib
import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from omegaconf import OmegaConf

VALID, TEST = 6, 14  # per cent of the groups in the validation split, and up to which in the test split
COLUMNS = ("id", "audio", "label", "group", "split")
OTHER = {"car": "horn|honk|claxon", "train": "crossing"}  # words in the name or the description of a recording


def split_of(group: str) -> str:
    """Split of a group, by its hash."""
    place = int(hashlib.sha256(group.encode()).hexdigest(), 16) % 100
    return "valid" if place < VALID else "test" if place < TEST else "train"


def fewest(rows: list[dict[str, str]], most: int, scores: dict[str, float]) -> list[dict[str, str]]:
    """The rows with the `most` of the highest score of each class in the training split."""
    counts: Counter[str] = Counter()
    kept = set()
    for row in sorted(rows, key=lambda row: (-scores.get(row["id"], 0), row["id"])):
        counts[row["label"]] += row["split"] == "train"
        if row["split"] != "train" or counts[row["label"]] <= most:
            kept.add(row["id"])
    return [row for row in rows if row["id"] in kept]


def is_something_else(source: dict[str, str]) -> bool:
    """Whether a recording is of something else that belongs to its class."""
    words = " ".join(source[column] for column in ("file", "original", "note")).lower()
    return source["class"] in OTHER and re.search(OTHER[source["class"]], words) is not None


def read_sources(folders: Iterable[Path], everything: bool = True) -> tuple[list[dict[str, str]], Counter[str]]:
    """Rows of the manifest for the recordings of some folders, and how many are left out of classes that are unknown.

    Without `everything`, recordings of something else that belongs to their class are left out, too.
    """
    known = set(OmegaConf.load(Path(__file__).with_name("classes.yaml")))
    rows, left_out = [], Counter()
    for folder in folders:
        with (folder / "sources.csv").open(newline="", encoding="utf-8") as file:
            for source in csv.DictReader(file):
                if source["class"] not in known:
                    left_out[source["class"]] += 1
                    continue
                name, split = source["file"].rpartition(".")[0].replace("/", "_"), split_of(source["group"])
                if split != "train" and "augment.py" in source["note"]:
                    continue
                if not everything and is_something_else(source):
                    continue
                audio = str((folder / source["file"]).resolve())
                rows.append(dict(zip(COLUMNS, (name, audio, source["class"], source["group"], split), strict=True)))
    return rows, left_out


def write_manifest(path: Path, rows: list[dict[str, str]]) -> None:
    """Write the manifest, and the number of recordings of each class to the terminal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    counts = Counter(row["label"] for row in rows)
    found = ", ".join(f"{name} {n}" for name, n in counts.most_common())
    sys.stdout.write(f"{path}: {len(rows)} recordings: {found}\n")


def main() -> None:
    """Write the manifest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="manifest.csv to write")
    parser.add_argument("folders", type=Path, nargs="+", help="folders with sources.csv")
    parser.add_argument("--most", type=int, help="number of training recordings of each class")
    parser.add_argument("--typical", type=Path, help="scores by which these are chosen, written by typical.py")
    options = parser.parse_args()
    rows, left_out = read_sources(options.folders, everything=not options.most)
    if options.most:
        with options.typical.open(newline="", encoding="utf-8") as file:
            scores = {row["id"]: float(row["score"]) for row in csv.DictReader(file)}
        rows = fewest(rows, options.most, scores)
    write_manifest(options.out, rows)
    if left_out:
        sys.stdout.write(f"left out, as their class is not in classes.yaml: {dict(left_out)}\n")


if __name__ == "__main__":
    main()
