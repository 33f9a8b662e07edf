"""Reading csv files, our own and those that spreadsheets write.

UTF-8 and UTF-16, with commas, semicolons or tabs, are read. Other encodings are rejected, because a wrong guess would
change letters of names and labels without a warning.
"""

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

DELIMITERS = (",", ";", "\t")
HEAD = 1 << 16  # bytes that decide encoding and delimiter
SAVE = "save it as CSV in UTF-8 (in Excel: CSV UTF-8)"

Record = tuple[int, list[str]]  # line number in the file, fields


def read_records(path: Path, exact: bool = False) -> Iterator[Record]:
    """The rows of a csv file, including the header if there is one; empty rows are left out.

    Args:
        path: the file.
        exact: for files that this package wrote: spaces around values, and bytes of file names that are not UTF-8, stay
            as they are.

    Raises:
        ValueError: it does not exist, or is not a csv file in one of the encodings above; the message has the line.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    encoding = _encoding(path)
    errors = "surrogateescape" if exact and encoding != "utf-16" else "strict"
    with path.open(newline="", encoding=encoding, errors=errors) as file:
        line = 1
        try:
            delimiter, skipped = _delimiter(file.read(HEAD))
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter, strict=True, skipinitialspace=not exact)
            for number, fields in enumerate(reader):
                if number >= skipped and any(map(str.strip, fields)):
                    yield line, fields if exact else [field.strip() for field in fields]
                line = reader.line_num + 1
        except csv.Error as error:
            raise ValueError(f"{path}, line {line}: {error}; check its quotation marks, or {SAVE}") from error
        except UnicodeError as error:
            raise ValueError(f"{path}, line {_broken_line(path)}: not in {encoding}; {SAVE}") from error


def _encoding(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(HEAD)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if b"\0" in head:
        raise ValueError(f"{path}, line {head[: head.index(0)].count(10) + 1}: contains null bytes; {SAVE}")
    return "utf-8-sig"  # with or without a byte order mark


def _delimiter(head: str) -> tuple[str, int]:
    """The delimiter that gives the first row the most fields, and the number of rows before the header."""
    given = re.match(r'"?sep=([^\r\n])"?[\r\n]', head)  # a line that Excel writes and obeys
    if given:
        return given[1], 1
    first = {mark: next(csv.reader(io.StringIO(head, newline=""), delimiter=mark), []) for mark in DELIMITERS}
    return max(DELIMITERS, key=lambda mark: len(first[mark])), 0


def _broken_line(path: Path) -> int:
    """Number of the first line that is not UTF-8; 1 for other encodings."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return 1


def read_header(path: Path, records: Iterator[Record], required: Collection[str]) -> list[str]:
    """The column names of the first row, in lower case without spaces around them.

    Raises:
        ValueError: required columns are missing, or names occur twice.
    """
    header = [name.strip().strip("\ufeff").lower() for name in next(records, (1, []))[1]]
    if missing := set(required) - set(header):
        raise ValueError(f"{path} lacks the columns {sorted(missing)}; it has {header}")
    double = [name for name, count in Counter(header).items() if name and count > 1]
    if double:
        raise ValueError(f"{path} has several columns called {double[0]!r}: keep one of them")
    return header


def fit_row(path: Path, record: Record, header: list[str], required: Collection[str]) -> list[str]:
    """The fields of a row, one for each column; missing ones at its end are empty.

    Raises:
        ValueError: it lacks a required field, or has more fields than the header.
    """
    line, fields = record
    if len(fields) == len(header):
        return fields
    if any(fields[len(header) :]) or set(header[len(fields) :]) & set(required):
        found = f"a row of {len(fields)} fields, expected {len(header)} ({', '.join(header)})"
        raise ValueError(f"{path}, line {line}: {found}; put values that contain the delimiter in quotation marks")
    return (fields + [""] * len(header))[: len(header)]


def read_rows(path: Path, required: Collection[str], exact: bool = False) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and values by column of each row of a csv file with a header; see `read_records`.

    Raises:
        ValueError: the file does not exist, cannot be read, or lacks a required column or field.
    """
    records = read_records(path, exact)
    header = read_header(path, records, required)
    for record in records:
        yield record[0], dict(zip(header, fit_row(path, record, header, required), strict=True))


def read_table(path: Path, required: Collection[str], exact: bool = False) -> list[dict[str, str]]:
    """The rows of a csv file with a header; see `read_rows`.

    Raises:
        ValueError: the file does not exist, cannot be read, or lacks a required column or field.
    """
    return [row for _, row in read_rows(path, required, exact)]
