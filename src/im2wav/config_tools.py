"""Structured configs of `bench` and `licenses`; see `im2wav.config`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from im2wav.options import device_option, group, option


@dataclass
class Bench:
    """Measure speed, memory and quality, and compare them with limits measured in the same run.

    The targets are in docs/speed.md, docs/training.md, docs/reading.md and docs/evaluation.md.
    """

    example_commands: ClassVar[tuple[str, ...]] = (
        "measure=machine",
        "measure=decode device=cuda measure.batches=[1,8,64]",
        "measure=training threads=2 out=training.json",
    )

    device: str = device_option()
    threads: int | None = option(None, "number of CPU threads; null: PyTorch's default", minimum=1)
    out: str | None = option(None, "JSON file to write the figures to; null: none")
    measure: Any = group()
    paths: Any = group()


@dataclass
class Licenses:
    """List the licences of im2wav, of all files that it ships, and of the installed packages that it needs."""

    example_commands: ClassVar[tuple[str, ...]] = (
        "",
        "extras=[eval,adapters]",
        "format=json out=licenses.json",
    )

    format: str = option("text", "format of the list", choices=("text", "json"))
    extras: list[str] = option([], "extras whose packages are listed too, such as [eval,adapters]")
    out: str | None = option(None, "file to write the list to; null: print it")
