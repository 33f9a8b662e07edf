"""Jobs: inputs with their options; those of a table, `input=jobs.csv`, have one row each."""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from im2wav.decoding import SamplingOptions
from im2wav.files import IMAGE_SUFFIXES, item_names
from im2wav.inference.inputs import Input, input_of, text_input, with_prompt
from im2wav.tables import read_rows

SAMPLING = {"guidance": "guidance_scale", "negative_scale": "negative_scale", "temperature": "temperature"}
NUMBERS: dict[str, Callable[[str], Any]] = {
    "seed": int,
    "seconds": float,
    "prompt_weight": float,
    **dict.fromkeys(SAMPLING, float),
}
COLUMNS = ("file", "name", "prompt", "negative", *NUMBERS)


@dataclass(frozen=True)
class Job:
    """Inputs that share options.

    Attributes:
        inputs: of which audio is generated.
        numbers: numbers of the audio files of each.
        options: arguments of `make_request`, and `seed`, that differ from those of the command.
        sampling: fields of `SamplingOptions` that do.
    """

    inputs: Sequence[Input]
    numbers: range
    options: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)


def read_job_table(path: Path, numbers: range, prompt: str | None = None, prompt_weight: float = 0.5) -> list[Job]:
    """Read a table of jobs.

    Its columns are `COLUMNS`. `file` is a photo or a video, relative to the folder of the table; a row with a prompt
    only generates audio for a text. `negative` is a photo or a text. An empty field has the value of the command line.

    Args:
        path: the csv file.
        numbers: numbers of the audio files of each row.
        prompt, prompt_weight: of rows without their own, see `with_prompt`.

    Returns:
        One job for each row, in the order of the table; a file that occurs again has the name NAME-2, NAME-3, ...

    Raises:
        ValueError: the file cannot be read, is empty, has an unknown column or a wrong value, or names twice.
    """
    jobs, lines, names = [], [], []
    for line, row in read_rows(path, ()):
        unknown = [column for column in row if column not in COLUMNS]
        if unknown:
            raise ValueError(f"{path}: unknown column {unknown[0]!r}; expected some of {', '.join(COLUMNS)}")
        given = {column: value.strip() for column, value in row.items() if value.strip()}
        try:
            jobs.append(_job(path.parent, given, numbers, prompt, prompt_weight))
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {error}") from error
        lines.append(line)
        names.append(given.get("name"))
    if not jobs:
        raise ValueError(f"{path} has no rows; expected one for each audio, with some of the columns {COLUMNS}")
    return _name(path, jobs, lines, names)


def _job(root: Path, given: dict[str, str], numbers: range, prompt: str | None, prompt_weight: float) -> Job:
    """The job of a row, of which only the fields with a value are given."""
    values: dict[str, Any] = {}
    for column, convert in NUMBERS.items():
        if column in given:
            try:
                values[column] = convert(given[column])
            except ValueError:
                kind = "an integer" if convert is int else "a number"
                raise ValueError(f"{column}={given[column]}: expected {kind}") from None
    prompt, weight = given.get("prompt", prompt), values.get("prompt_weight", prompt_weight)
    if "file" in given:
        item = with_prompt(input_of(root / given["file"]), prompt, weight)
    elif prompt is not None:
        item = text_input(prompt)
    else:
        raise ValueError("neither a file nor a prompt")
    sampling = {option: values[column] for column, option in SAMPLING.items() if column in values}
    SamplingOptions().updated(sampling)  # rejects wrong values before the model is loaded
    options: dict[str, Any] = {key: values[key] for key in ("seed", "seconds") if key in values}
    if options.get("seconds", 1) <= 0:
        raise ValueError(f"seconds={options['seconds']}: expected more than 0")
    if "negative" in given:
        options |= _negative(root, given["negative"])
    return Job([item], numbers, options, sampling)


def _negative(root: Path, given: str) -> Mapping[str, Any]:
    """A photo, by its suffix, or a text."""
    if Path(given).suffix.lower() not in IMAGE_SUFFIXES:
        return {"negative": None, "negative_text": given}
    return {"negative": input_of(root / given).path, "negative_text": None}


def _name(path: Path, jobs: list[Job], lines: list[int], given: list[str | None]) -> list[Job]:
    """The jobs with names: those of the table, else of their files, numbered where a file occurs again."""
    items: list[Input] = [job.inputs[0] for job in jobs]
    files = list(dict.fromkeys(item.path.absolute() for item in items if item.path is not None))
    below = Path(os.path.commonpath([file.parent for file in files])) if files else Path()
    by_file = dict(zip(files, item_names(files, below), strict=True))
    used: dict[str, int] = {}  # name -> line
    seen: Counter[str] = Counter()
    for index, (item, line, wanted) in enumerate(zip(items, lines, given, strict=True)):
        name = wanted or (item.name if item.path is None else by_file[item.path.absolute()])
        seen[name] += not wanted
        if not wanted and seen[name] > 1:
            name = f"{name}-{seen[name]}"
        if name in used:
            raise ValueError(
                f"{path}: lines {used[name]} and {line} have the same name {name!r}; change the column name"
            )
        used[name] = line
        jobs[index] = replace(jobs[index], inputs=[replace(item, name=name)])
    return jobs
