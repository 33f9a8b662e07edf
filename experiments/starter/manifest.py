"""List recordings for `im2wav.embed`, split by group.

    python experiments/starter/manifest.py data/starter/manifest.csv FOLDER ...

A folder has audio files and sources.csv, which says `file`, `class` and `group` of each (and its author and licence). A
group, the original recording, is in one split only. Changed copies (augment.py) of held-out recordings are left out,
and so are files whose class is not in classes.yaml, which are listed.
"""

import argparse
import csv
import hashlib
import sys
from collections import Counter
from pathlib import Path

from omegaconf import OmegaConf

VALID, TEST = 6, 14  # per cent of the groups in the validation split, and up to which in the test split
COLUMNS = ("id", "audio", "label", "group", "split")


def split_of(group: str) -> str:
    """Split of a group, by its hash."""
    place = int(hashlib.sha256(group.encode()).hexdigest(), 16) % 100
    return "valid" if place < VALID else "test" if place < TEST else "train"


def fewest(rows: list[dict[str, str]], most: int) -> list[dict[str, str]]:
    """The rows with at most `most` of each class in the training split."""
    counts: Counter[str] = Counter()
    kept = set()
    for row in sorted(rows, key=lambda row: hashlib.sha256(row["id"].encode()).hexdigest()):
        counts[row["label"]] += row["split"] == "train"
        if row["split"] != "train" or counts[row["label"]] <= most:
            kept.add(row["id"])
    return [row for row in rows if row["id"] in kept]


def main() -> None:
    """Write the manifest, and the number of recordings of each class to the terminal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="manifest.csv to write")
    parser.add_argument("folders", type=Path, nargs="+", help="folders with sources.csv")
    parser.add_argument("--most", type=int, help="number of training recordings of each class, chosen by a hash")
    options = parser.parse_args()
    known = set(OmegaConf.load(Path(__file__).with_name("classes.yaml")))
    rows, left_out = [], Counter()
    for folder in options.folders:
        with (folder / "sources.csv").open(newline="", encoding="utf-8") as file:
            for source in csv.DictReader(file):
                if source["class"] not in known:
                    left_out[source["class"]] += 1
                    continue
                name, split = source["file"].rpartition(".")[0].replace("/", "_"), split_of(source["group"])
                if split != "train" and "augment.py" in source["note"]:
                    continue
                audio = str((folder / source["file"]).resolve())
                fields = (name, audio, source["class"], source["group"], split)
                rows.append(dict(zip(COLUMNS, fields, strict=True)))
    if options.most:
        rows = fewest(rows, options.most)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    counts = Counter(row["label"] for row in rows)
    sys.stdout.write(f"{len(rows)} recordings: {', '.join(f'{name} {n}' for name, n in counts.most_common())}\n")
    if left_out:
        sys.stdout.write(f"left out, as their class is not in classes.yaml: {dict(left_out)}\n")


if __name__ == "__main__":
    main()
