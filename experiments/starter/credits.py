"""Write who made the recordings of the starter model: a list of all of them, and the authors by licence.

    python experiments/starter/credits.py FOLDER ... --list experiments/starter/recordings.csv --credits CREDITS.md

The folders have sources.csv. The list says for each recording its address, so that it can be collected again.
"""

import argparse
import csv
from collections import defaultdict
from pathlib import Path

COLUMNS = ("file", "class", "group", "seconds", "original", "author", "licence", "source", "note")
HEAD = """# Credits: the recordings that the starter model was trained on

The starter model was trained on these {count} recordings, except a few whose class it does not have. They are not part
of im2wav: `experiments/starter/recordings.csv` lists each with its address, author and licence. They were changed:
mixed to one channel, resampled to 16 kHz, cut, and for training also played at another speed and with another tone.
The authors do not endorse this use.
"""


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="folders with sources.csv")
    parser.add_argument("--list", type=Path, required=True, help="csv file to write")
    parser.add_argument("--credits", type=Path, required=True, help="Markdown file to write")
    options = parser.parse_args()
    rows = []
    for folder in options.folders:
        with (folder / "sources.csv").open(newline="", encoding="utf-8") as file:
            rows += list(csv.DictReader(file))
    rows.sort(key=lambda row: row["file"])
    with options.list.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    authors: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for row in rows:
        authors[row["licence"]][" ".join(row["author"].split()) or "not named"] += 1
    lines = [HEAD.format(count=len(rows))]
    for licence, found in sorted(authors.items(), key=lambda item: -sum(item[1].values())):
        lines.append(f"## {licence}: {sum(found.values())} recordings\n")
        names = [f"{name} ({count})" if count > 1 else name for name, count in sorted(found.items())]
        lines.append("; ".join(names) + ".\n")
    options.credits.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
