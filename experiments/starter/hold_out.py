"""Manifests of the fine-tuning experiment: the recordings without some classes, and few recordings of these classes.

    python experiments/starter/hold_out.py OUT FOLDER ... [--classes cat horse] [--clips 20]

OUT/base.csv has all recordings of other classes. OUT/few.csv has `--clips` recordings of the held-out classes in the
training split, equally many of each, all of different groups, and every recording of other groups in the validation
split.
"""

import argparse
import hashlib
from pathlib import Path

from manifest import read_sources, write_manifest


def main() -> None:
    """Write both manifests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the manifests")
    parser.add_argument("folders", type=Path, nargs="+", help="folders with sources.csv")
    parser.add_argument("--classes", nargs="+", default=["cat", "horse"], help="classes that are held out")
    parser.add_argument("--clips", type=int, default=20, help="recordings to fine-tune on, of all of them together")
    given = parser.parse_args()
    rows, _ = read_sources(given.folders)
    few = []
    for name in given.classes:
        own, groups = [row for row in rows if row["label"] == name], set()
        own.sort(key=lambda row: hashlib.sha256(row["id"].encode()).hexdigest())  # nothing to do with names
        for row in own:
            if len(groups) < given.clips // len(given.classes) and row["group"] not in groups:
                groups.add(row["group"])
                few.append(row | {"split": "train"})
        few += [row | {"split": "valid"} for row in own if row["group"] not in groups]
    write_manifest(given.out / "base.csv", [row for row in rows if row["label"] not in given.classes])
    write_manifest(given.out / "few.csv", few)


if __name__ == "__main__":
    main()
