"""Tables as text, Markdown and CSV. A table is a list of rows, the first of which holds the column names."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

Rows = Sequence[Sequence[Any]]


def format_number(value: Any) -> str:
    """Format a float with three significant digits; other values with str."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def format_duration(seconds: float) -> str:
    """Seconds in the largest unit of which there are at least two."""
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.0f} seconds"


def as_text(rows: Rows, most: int | None = None) -> str:
    """Aligned columns; of a long table the first `most` rows."""
    shown = rows if most is None else rows[: most + 1]
    cells = [[format_number(value) for value in row] for row in shown]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
    more = [f"... and {len(rows) - len(shown)} more"] if len(rows) > len(shown) else []
    return "\n".join([*(line for line in lines if line), *more])


def as_markdown(rows: Rows) -> str:
    """A Markdown table."""
    head, *rest = [[format_number(value) for value in row] for row in rows]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rest)]) + "\n"


def as_csv(records: Sequence[Mapping[str, Any]]) -> bytes:
    """A CSV file with a line for each record and a column for each key; missing values are empty."""
    buffer = io.StringIO(newline="")
    columns = list(dict.fromkeys(name for record in records for name in record))
    writer = csv.DictWriter(buffer, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(records)
    return buffer.getvalue().encode()
