"""Generated audio and its files: out/up/NAME_00.wav, the draft out/low/NAME_00.wav, and a .json beside each.

The .json of the draft is written last: if it exists, the other files do.
"""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from im2wav.files import LONGEST_NAME, table_bytes, wav_bytes, write_atomic
from im2wav.media.mux import mux
from im2wav.media.reading import MediaError

if TYPE_CHECKING:
    from im2wav.inference.request import Request

FORMATS = ("wav", "flac")
MANIFEST = ("name", "number", "input", "seed", "seconds", "rank", "gap", "up", "low", "video")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GeneratedAudio:
    """Generated audio.

    Attributes:
        request: what it was generated from.
        codes: by level [T].
        waveforms: by level, samples [N] in [-1, 1] on the CPU: `up` is the result, unless a draft was not refined;
            `low` is decoded from the low codes only.
        rank: of the draft among those of its input; 0 is the best.
        gap: guidance gap of the draft in bits per code; None if drafts were not ranked.
        about: the content of its .json.
    """

    request: "Request" = field(repr=False)
    codes: Mapping[str, Tensor]
    waveforms: Mapping[str, Tensor]
    rank: int = 0
    gap: float | None = None
    about: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def wav(self) -> Tensor:
        """Samples [N] in [-1, 1], on the CPU."""
        return self.waveforms["up"]

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self.request.sample_rate

    def save(self, path: str | Path) -> Path:
        """Save it as .wav, .flac or, if the input was a video, .mp4, and `about` as a .json beside it.

        Raises:
            ValueError: another suffix, or the file cannot be written.
        """
        path, item = Path(path), self.request.input
        if path.suffix.lower() != ".mp4":
            write_audio(path, self.wav, self.sample_rate)
        elif item.kind != "video" or item.path is None:
            raise ValueError(f"{path}: the input was not a video; save it as .wav or .flac")
        else:
            mux(item.path, self.wav, self.sample_rate, path)
        write_about(path, self.about)
        return path


def write_audio(path: Path, wav: Tensor, sample_rate: int) -> None:
    """Write wav [N] as `path`, .wav or .flac.

    Raises:
        ValueError: another suffix, or the file cannot be written.
    """
    if path.suffix[1:].lower() not in FORMATS:
        raise ValueError(f"{path}: the suffix must be one of {', '.join('.' + f for f in FORMATS)}")
    write_atomic(path, wav_bytes(wav, sample_rate, path.suffix[1:].upper()))


def write_about(path: Path, about: Mapping[str, Any]) -> None:
    """Write the .json beside an audio file."""
    write_atomic(path.with_suffix(".json"), (json.dumps(about, indent=2, ensure_ascii=False) + "\n").encode())


@dataclass(frozen=True)
class Outputs:
    """A folder of generated audio.

    Attributes:
        root: the folder.
        format: wav or flac.
        video: also write the audio of videos into copies of them, NAME_00.mp4.
        overwrite: generate existing files again.
    """

    root: Path
    format: str = "wav"
    video: bool = False
    overwrite: bool = False

    def path(self, level: str, name: str, number: int, suffix: str | None = None) -> Path:
        """Path of a file.

        Raises:
            ValueError: the name, which may be an id of any manifest, is not a valid file name.
        """
        if {"/", os.sep, "\0"} & set(name) or len(name.encode("utf-8", "surrogateescape")) > LONGEST_NAME:
            raise ValueError(
                f"name {name[:60]!r} cannot be a file name: expected at most {LONGEST_NAME} bytes without slashes; "
                "rename the input, or change its id in manifest.csv"
            )
        return self.root / level / f"{name}_{number:02d}.{suffix or self.format}"

    def read(self, name: str, number: int) -> dict[str, Any] | None:
        """The .json of a finished audio; None if it is not finished."""
        path = self.path("low", name, number, "json")
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            files = [self.root / file for file in about["files"].values()]
        except (OSError, ValueError, KeyError, AttributeError):
            return None
        return about if all(file.is_file() for file in files) else None

    def finished(self, request: "Request", identity: Callable[[], Mapping[str, Any]]) -> bool:
        """Whether an earlier run generated this audio.

        Raises:
            ValueError: it did, with other settings.
        """
        name, number = request.input.name, request.number
        about = None if self.overwrite else self.read(name, number)
        if about is None:
            return False
        now, before = (_flat(x) for x in (identity(), about.get("identity", {})))
        changed = sorted(k for k in now.keys() | before.keys() if now.get(k) != before.get(k))
        if changed:
            key = changed[0]
            raise ValueError(
                f"{self.path('up', name, number)} already exists, generated with {key}={before.get(key)}; now "
                f"{key}={now.get(key)}. Use another folder (out=), or overwrite=true"
            )
        files = about["files"]
        return files.get("low", "").endswith(self.format) and (
            "video" in files or not self._wants_video(request, files)
        )

    def _wants_video(self, request: "Request", files: Mapping[str, str]) -> bool:
        return self.video and request.input.kind == "video" and "up" in files

    def write(self, audio: GeneratedAudio) -> None:
        """Write the files of one audio; only those of `low` for a draft that was not refined."""
        request, wav = audio.request, audio.waveforms
        name, number = request.input.name, request.number
        for suffix in ("json", *FORMATS, "mp4"):  # of an earlier run, first the .json that marks it as finished
            for level in ("low", "up"):
                old = self.path(level, name, number, suffix)
                if old.is_file():
                    old.unlink()
        paths = {level: self.path(level, name, number) for level in wav}
        files = {level: str(path.relative_to(self.root)) for level, path in paths.items()}
        if self._wants_video(request, files):
            target = self.path("up", name, number, "mp4")
            try:
                mux(request.input.path, wav["up"], audio.sample_rate, target)  # type: ignore[arg-type]
                files["video"] = str(target.relative_to(self.root))
            except MediaError as error:
                log.warning("%s; the audio is in %s", error, paths["up"])
        about = {**audio.about, "name": name, "number": number, "files": files}
        for level in sorted(wav, reverse=True):  # up, then low, whose .json marks it as finished
            write_audio(paths[level], wav[level], audio.sample_rate)
            write_about(paths[level], {"level": level, **about})

    def write_manifest(self, files: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
        """Write manifest.csv with the finished ones of these (name, number), in the order given.

        Returns:
            The content of their .json files, with the paths of their files by level.
        """
        finished = [about for name, number in files if (about := self.read(name, number)) is not None]
        rows = [{**about, **about["files"]} for about in finished]
        write_atomic(self.root / "manifest.csv", table_bytes(MANIFEST, rows))
        return [{**about, **{k: str(self.root / file) for k, file in about["files"].items()}} for about in finished]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as a flat one, with keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
