"""Audio files of `sample`: out/up/NAME_00.wav, the draft out/low/NAME_00.wav, and a .json beside each.

The .json of the draft is written last: if it exists, the other files do.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from im2wav.files import LONGEST_NAME, table_bytes, write_atomic
from im2wav.inference.generated_audio import FORMATS, write_sound
from im2wav.inference.inputs import Input
from im2wav.media.mux import mux
from im2wav.media.reading import MediaError

MANIFEST = ("name", "number", "input", "seed", "seconds", "rank", "gap", "up", "low", "video")


@dataclass(frozen=True)
class Outputs:
    """A folder of generated audio.

    Attributes:
        root: the folder.
        format: wav or flac.
        video: also write the audio of videos into copies of them, NAME_00.mp4.
        overwrite: generate existing files again.

    Raises:
        ValueError: another format.
    """

    root: Path
    format: str = "wav"
    video: bool = False
    overwrite: bool = False

    def __post_init__(self):
        if self.format not in FORMATS:
            raise ValueError(f"format={self.format}: expected one of {', '.join(FORMATS)}")

    def path(self, level: str, name: str, number: int, suffix: str | None = None) -> Path:
        """Path of a file.

        Raises:
            ValueError: the name cannot be a file name. It may be an id of any manifest.
        """
        if {"/", os.sep, "\0"} & set(name) or len(name.encode("utf-8", "surrogateescape")) > LONGEST_NAME:
            raise ValueError(
                f"name {name[:60]!r} cannot be a file name: expected at most {LONGEST_NAME} bytes without slashes; "
                "rename the input, or change its id in manifest.csv"
            )
        return self.root / level / f"{name}_{number:02d}.{suffix or self.format}"

    def read(self, name: str, number: int) -> dict[str, Any] | None:
        """The .json of a finished sample; None if it is not finished."""
        path = self.path("low", name, number, "json")
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            files = [self.root / file for file in about["files"].values()]
        except (OSError, ValueError, KeyError, AttributeError):
            return None
        return about if all(file.is_file() for file in files) else None

    def finished(self, item: Input, number: int, identity: Callable[[], Mapping[str, Any]]) -> bool:
        """Whether an earlier run generated this sample.

        Raises:
            ValueError: it did, with other settings.
        """
        about = None if self.overwrite else self.read(item.name, number)
        if about is None:
            return False
        now, before = (_flat(x) for x in (identity(), about.get("identity", {})))
        changed = sorted(k for k in now.keys() | before.keys() if now.get(k) != before.get(k))
        if changed:
            key = changed[0]
            raise ValueError(
                f"{self.path('up', item.name, number)} already exists, made with {key}={before.get(key)}; now "
                f"{key}={now.get(key)}. Use another folder (out=), or overwrite=true"
            )
        files = about["files"]
        return files.get("low", "").endswith(self.format) and ("video" in files or not self._wants_video(item, files))

    def _wants_video(self, item: Input, files: Mapping[str, str]) -> bool:
        return self.video and item.kind == "video" and "up" in files

    def write(
        self,
        item: Input,
        number: int,
        wav: Mapping[str, Tensor],
        sample_rate: int,
        about: Mapping[str, Any],
    ) -> tuple[dict[str, Any], str | None]:
        """Write the waveforms of one sample, by level; only `low` for a draft that was not refined.

        Returns:
            The content of its .json, and the reason if its video could not be written.
        """
        for suffix in ("json", *FORMATS, "mp4"):  # of an earlier run, first the .json that marks it as finished
            for level in ("low", "up"):
                old = self.path(level, item.name, number, suffix)
                if old.is_file():
                    old.unlink()
        paths = {level: self.path(level, item.name, number) for level in wav}
        files = {level: str(path.relative_to(self.root)) for level, path in paths.items()}
        problem = None
        if self._wants_video(item, files):
            target = self.path("up", item.name, number, "mp4")
            try:
                mux(item.path, wav["up"], sample_rate, target)  # type: ignore[arg-type]
                files["video"] = str(target.relative_to(self.root))
            except MediaError as error:
                problem = str(error)
        said = {**about, "name": item.name, "number": number, "input": item.source, "files": files}
        for level in sorted(wav, reverse=True):  # up, then low, whose .json marks it as finished
            write_sound(paths[level], wav[level], sample_rate, {"level": level, **said})
        return said, problem

    def write_manifest(self, sounds: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
        """Write manifest.csv with the finished ones of these samples (name, number), in their order.

        Returns:
            The content of their .json files, with the paths of their files by level.
        """
        said = [about for name, number in sounds if (about := self.read(name, number)) is not None]
        rows = [{**about, **about["files"]} for about in said]
        write_atomic(self.root / "manifest.csv", table_bytes(MANIFEST, rows))
        return [{**about, **{k: str(self.root / file) for k, file in about["files"].items()}} for about in said]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as a flat one, with keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
