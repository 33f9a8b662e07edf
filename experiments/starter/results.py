"""Results of every photograph of ImageHear as a Markdown table: `python experiments/starter/results.py ITEMS.csv`.

ITEMS.csv is written by `im2wav.evaluate mode=imagehear`; it has a row for each audio file.
"""

import csv
import sys
from collections import Counter, defaultdict


def first_tag(tags: str) -> str:
    """`Cat` of `Cat 0.91; Meow 0.40`."""
    return tags.split(";")[0].rpartition(" ")[0]


def main() -> None:
    """Print a row for each photograph, and one for each class."""
    with open(sys.argv[1], newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    groups = defaultdict(list)
    for row in rows:
        groups[row["label"], row["item"]].append(row)
        groups[row["label"], "all of the class"].append(row)
    lines = ["| class | photograph | sounds | right of 30 | label is the top tag | most frequent tag |"]
    lines.append("|" + "---|" * 6)
    for (label, item), found in sorted(groups.items()):
        right, top = (sum(float(row[key]) for row in found) / len(found) for key in ("acc_30way", "acc@1"))
        tag, share = Counter(first_tag(row["tags"]) for row in found).most_common(1)[0]
        lines.append(
            f"| {label} | {item} | {len(found)} | {right:.2f} | {top:.2f} | {tag} ({share / len(found):.0%}) |"
        )
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
