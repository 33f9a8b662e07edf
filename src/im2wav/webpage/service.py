"""Requests of the web page: checked, generated and written as files."""

import math
import re
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from im2wav.files import path_inside
from im2wav.inference.api import Im2Wav
from im2wav.inference.generate import GeneratedAudio, write_audio, write_video
from im2wav.media.reading import MediaError, media_errors, media_kind, open_media, read_audio, read_image
from im2wav.media.video import Video

PHOTO, VIDEO, TEXT = "Photo", "Video", "Text"  # kinds of inputs
NEW, CONTINUE, INPAINT = "New audio", "Continue", "Inpaint"  # what is generated
FORMATS_OF_PAGE = ("wav", "flac", "mp3")
LONGEST_TEXT = 300  # characters


@dataclass(frozen=True)
class Limits:
    """Limits of a request.

    Attributes:
        seconds: of generated audio, and of audio to continue or inpaint.
        video: seconds of a video.
        drafts: number of drafts.
    """

    seconds: float
    video: float
    drafts: int


@dataclass(frozen=True)
class Form:
    """The fields of the page, in their order.

    Attributes:
        kind: `PHOTO`, `VIDEO` or `TEXT`; the input is the field of that name.
        photo, video: paths of uploaded files.
        text: the text.
        seconds: length; 0 for that of the video, or one window.
        seed: same seed, same audio.
        num_drafts: drafts to choose from; 1 for none.
        guidance_scale, temperature, negative_scale: see `SamplingOptions`.
        negative, negative_text: a photo or a text that guidance moves away from.
        task: `NEW`, `CONTINUE` or `INPAINT`.
        known: path of the audio to continue or inpaint.
        start, end: interval to inpaint in seconds; audio is continued from `end`.
        adapters: the chosen ones.
        last: the latest audio of this user, whose codes are kept if it is inpainted.
    """

    kind: str = PHOTO
    photo: str | None = None
    video: str | None = None
    text: str | None = None
    seconds: float | None = 0
    seed: int | None = 0
    num_drafts: float | None = 1
    guidance_scale: float | None = None
    temperature: float | None = None
    negative: str | None = None
    negative_text: str | None = None
    negative_scale: float | None = None
    task: str = NEW
    known: str | None = None
    start: float | None = 0
    end: float | None = 0
    adapters: Sequence[str] = ()
    last: "Answer | None" = None


@dataclass(frozen=True)
class Draft:
    """A draft to choose from: its name on the page, the seed that gives it, and the file of its low level."""

    name: str
    seed: int
    path: Path


@dataclass(frozen=True)
class Answer:
    """Generated audio with its files.

    Attributes:
        audio: the audio.
        files: wav, flac, mp3 and, for a photo or a video, mp4.
        note: what the user should know; empty if nothing.
        drafts: the drafts, the best first; empty if none were asked for.
        form: the request.
    """

    audio: GeneratedAudio = field(repr=False)
    files: tuple[Path, ...]
    note: str
    drafts: tuple[Draft, ...]
    form: Form = field(repr=False)


class AudioService:
    """Answers requests, one at a time.

    Args:
        load: loads the model with some of the adapters.
        adapters: files of adapters by the name that the page shows.
        limits: of a request.
        folder: of uploaded and generated files.
        sampling: sampling options of all requests, where the page has no field or the field is empty.
    """

    def __init__(
        self,
        load: Callable[[list[str]], Im2Wav],
        adapters: Mapping[str, str],
        limits: Limits,
        folder: Path,
        sampling: Mapping[str, Any],
    ):
        self.adapters, self.limits, self.folder, self.sampling = adapters, limits, folder, sampling
        self._load = lru_cache(maxsize=2)(lambda names: load([adapters[name] for name in names]))

    def model(self, names: Sequence[str] | None = None) -> Im2Wav:
        """The model with some of the adapters; None: with all.

        Raises:
            ValueError: an adapter that the page was not started with.
        """
        names = list(self.adapters) if names is None else names
        if unknown := sorted(set(names) - set(self.adapters)):
            raise ValueError(f"adapter {unknown[0]}: expected some of {', '.join(self.adapters)}")
        return self._load(tuple(name for name in self.adapters if name in names))

    def run(self, form: Form, seed: int | None = None) -> Generator[Tensor, None, Answer]:
        """Generate the audio of a form; yields its pieces [n] meanwhile, except with drafts.

        Args:
            form: the fields of the page.
            seed: of one of its drafts, to refine that one; None for that of the form.

        Raises:
            ValueError: a field that is empty or out of range, or a file that cannot be read.
        """
        count = 1 if seed is not None else self._number("drafts", form.num_drafts, 1, self.limits.drafts)
        first = self._number("seed", form.seed, 0, 2**53)
        if form.num_drafts is not None and (count % 1 or first % 1):
            raise ValueError("seed and drafts: expected whole numbers")
        model = self.model(form.adapters)
        options, note = self._options(form, model)
        stem, source = self._source(form)
        drafts: list[GeneratedAudio] = []
        if count > 1:
            drafts = model.drafts(**source, **options, seed=int(first), num_drafts=int(count))
            audio = drafts[0]
        else:
            audio = yield from model.stream(**source, **options, seed=int(first if seed is None else seed))
        return self._write(form, audio, drafts, stem, note)

    @staticmethod
    def _number(name: str, value: float | None, least: float, most: float) -> float:
        if value is None or not math.isfinite(value) or not least <= value <= most:
            raise ValueError(f"{name}={'' if value is None else f'{value:g}'}: expected {least:g} to {most:g}")
        return value

    def _source(self, form: Form) -> tuple[str, dict[str, Any]]:
        """Name of the output files, and the input of `Im2Wav.generate`."""
        if form.kind == TEXT:
            return "text", {"text": _short_text(form.text, "Enter a text first")}
        path = form.photo if form.kind == PHOTO else form.video
        if path is None:
            raise ValueError(f"Choose a {form.kind.lower()} first: upload one, or take one with the camera")
        if form.kind == VIDEO:
            return Path(path).stem, {"video": path}
        return Path(path).stem, {"image": _read_photo(path)}

    def _options(self, form: Form, model: Im2Wav) -> tuple[dict[str, Any], str]:
        """Options of `Im2Wav.generate`, and a note for the user."""
        longest, note = self.limits.seconds, ""
        seconds: float | None = self._number("length", form.seconds, 0, longest) or None
        if form.kind == VIDEO and form.video is not None:
            duration = self._video_seconds(form.video)
            if seconds is None and duration > longest:
                note = f"The video lasts {duration:.0f} s: audio was generated for the first {longest:g} s."
            seconds = seconds or min(duration, longest)
        given = {name: getattr(form, name) for name in ("guidance_scale", "temperature", "negative_scale")}
        options = {**self.sampling, **{name: value for name, value in given.items() if value is not None}}
        if form.negative is not None and form.negative_text:
            raise ValueError("Move away from a photo or from a text, not from both: remove one of the two")
        if form.negative is not None:
            options["negative"] = _read_photo(form.negative)
        elif form.negative_text:
            options["negative_text"] = _short_text(form.negative_text)
        options |= self._edit(form, model, seconds)
        return {"seconds": seconds, **options}, note

    def _edit(self, form: Form, model: Im2Wav, seconds: float | None) -> dict[str, Any]:
        """Options of audio continuation and inpainting, and the length of the audio."""
        if form.task == NEW:
            return {"seconds": seconds or min(model.window, self.limits.seconds)}
        if form.known is None:
            raise ValueError(f"{form.task}: upload or record the audio first, or take the latest result")
        wav, length = self.read_known(form.known)
        rate, end = model.sample_rate, form.end or 0
        if form.task == CONTINUE:
            wav = wav[: round(end * rate)] if end else wav
            total = seconds or min(len(wav) / rate + model.window, self.limits.seconds)
            return {"continue_from": wav, "seconds": total}
        if not 0 <= (form.start or 0) < end <= length + 0.01:  # the page shows hundredths
            raise ValueError(f"Inpaint from {form.start} to {form.end} s: expected an interval within {length:.2f} s")
        is_last = form.last is not None and str(form.last.files[0]) == form.known
        known = form.last.audio if is_last and form.last else form.known
        return {"inpaint": known, "inpaint_interval": (form.start or 0, min(end, length)), "seconds": None}

    def _video_seconds(self, path: str) -> float:
        if media_kind(Path(path)) != "video":
            raise ValueError(f"{Path(path).name} is not a video: use MP4, MOV, WebM, MKV, AVI or GIF")
        seconds, longest = Video(path).seconds, self.limits.video
        if seconds > longest:
            raise ValueError(
                f"{Path(path).name} lasts {seconds / 60:.1f} minutes: at most {longest / 60:g} are allowed; cut it"
            )
        return seconds

    def read_known(self, path: str) -> tuple[Tensor, float]:
        """Audio to continue or inpaint: samples [N] at the sample rate of the model, and its length in seconds.

        Raises:
            ValueError: it is too long.
            MediaError: it cannot be read.
        """
        with media_errors(path, "unreadable audio"), open_media(path) as container:
            seconds = (container.duration or 0) / 1e6
        if seconds > self.limits.seconds:
            raise ValueError(
                f"{Path(path).name} lasts {seconds:.0f} s: at most {self.limits.seconds:g} s are allowed. Cut it first"
            )
        rate = self.model().sample_rate
        wav = read_audio(path, rate)
        return wav, len(wav) / rate

    def _write(
        self, form: Form, audio: GeneratedAudio, drafts: Sequence[GeneratedAudio], stem: str, note: str
    ) -> Answer:
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        paths = [path_inside(folder, f"{stem[:80]}_im2wav", "name", f".{suffix}") for suffix in FORMATS_OF_PAGE]
        for path in paths:
            write_audio(path, audio.wav, audio.sample_rate)
        if form.kind != TEXT:
            try:
                write_video(audio.request.input, audio.wav, audio.sample_rate, paths[0].with_suffix(".mp4"))
                paths.append(paths[0].with_suffix(".mp4"))
            except (MediaError, ValueError) as error:
                note = f"{note} There is no mp4: {self.readable(error)}".strip()
        listed = []
        for number, draft in enumerate(drafts, 1):
            path = folder / f"draft_{number}.wav"
            write_audio(path, draft.waveforms["low"], draft.sample_rate)
            fit = "" if draft.gap is None else f" ({draft.gap:.2f} bits)"
            listed.append(Draft(f"{number}{fit}", draft.request.seed, path))
        last = form.last and replace(form.last, form=Form())  # not a chain of all earlier answers
        return Answer(audio, tuple(paths), note, tuple(listed), replace(form, last=last))

    def readable(self, error: Exception) -> str:
        """The message of an error, with names of files instead of their paths on the server."""
        return re.sub(rf"{re.escape(str(self.folder))}/(?:\w+/)?", "", str(error))


def _short_text(text: str | None, if_empty: str = "") -> str:
    """A text that is neither empty nor too long."""
    text = (text or "").strip()
    if not text:
        raise ValueError(if_empty)
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"The text has {len(text)} characters: at most {LONGEST_TEXT} are allowed")
    return text


def _read_photo(path: str) -> Any:
    try:
        return read_image(path)
    except MediaError as error:
        raise MediaError(error.reason, f"{error.detail}. Use a photo as JPEG, PNG, WebP, HEIC or AVIF") from error
