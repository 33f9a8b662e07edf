"""Inputs of generation: find, name and embed photos, videos, timelines of photos, texts, and pairs."""

import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from im2wav.data.manifest import Pair
from im2wav.data.pairs import PairsFolder
from im2wav.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, find_path, item_names
from im2wav.media import reading as media
from im2wav.media.encoder import ImageEncoder
from im2wav.media.reading import MediaFolder, media_kind
from im2wav.media.video import Video, read_frames

log = logging.getLogger(__name__)
KNOWN = IMAGE_SUFFIXES | VIDEO_SUFFIXES
TIMELINE_FPS = 10.0  # frames per second of a timeline for models that were trained on photos

ImageSource = str | Path | Image.Image


@dataclass(frozen=True)
class Input:
    """A photo, a video, a timeline, a text, or a pair of a pairs folder.

    Attributes:
        name: name of its output files.
        kind: photo, video, timeline, text or pair.
        path: path of the photo, the video, or the pairs folder.
        images: for a timeline: paths of photos, and the second from which each is shown.
        text: for a text: the text.
        image: a photo in memory, instead of its path.
        pair: for a pair: the pairs folder and the pair.
        embeddings: image embeddings over time [F, D], after `embed_input`. May be memory-mapped: only the rows that a
            window needs are read.
        fps: frames per second of the embeddings; None for a single image.
        prompt: a text beside the images, and its weight; see `with_prompt`.
    """

    name: str
    kind: str
    path: Path | None = None
    images: tuple[tuple[Path, float], ...] = ()
    text: str = ""
    image: Image.Image | None = None
    pair: tuple[PairsFolder, Pair] | None = None
    embeddings: Tensor | None = field(default=None, repr=False, compare=False)
    fps: float | None = None
    prompt: tuple[str, float] | None = None

    @property
    def source(self) -> str:
        """Description of the input as text, for tables."""
        if self.pair is not None:
            return self.pair[1].source
        if self.images:
            return ",".join(f"{path}@{start:g}" for path, start in self.images)
        return self.text or str(self.path or "an image in memory")

    @cached_property
    def sha256(self) -> str:
        """Hash of the content of the input; names and folders of files do not matter.

        Raises:
            MediaError: a file is missing.
        """
        digest = hashlib.sha256(f"{self.kind} {self.text} {[start for _, start in self.images]}".encode())
        if self.prompt is not None:
            digest.update(repr(self.prompt).encode())
        if self.pair is not None:
            digest.update(self.read_embeddings().numpy().tobytes())
            return digest.hexdigest()
        for path in [p for p in (self.path, *(p for p, _ in self.images)) if p is not None]:
            try:
                with path.open("rb") as file:
                    while part := file.read(1 << 20):
                        digest.update(part)
            except OSError as error:
                raise media.MediaError("missing file", f"{path}: {error.strerror}") from None
        if self.image is not None:
            digest.update(self.image.tobytes())
        return digest.hexdigest()

    def seconds(self) -> float | None:
        """Duration in seconds; None for a photo.

        Raises:
            MediaError: the video cannot be read.
        """
        if self.kind == "video":
            return Video(self.path).seconds  # type: ignore[arg-type]
        if self.pair is not None and self.pair[1].frames > 1 and self.pair[0].info.fps:
            return self.pair[1].frames / self.pair[0].info.fps
        return None

    def read_embeddings(self) -> Tensor:
        """The stored embeddings [F, D] of a pair."""
        folder, pair = self.pair  # type: ignore[misc]
        try:
            return folder.read_clip(pair)
        except ValueError as error:
            raise media.MediaError("unreadable embeddings", str(error)) from error

    def until(self, end: float) -> Tensor:
        """Embeddings [F, D] of the frames from 0 to `end` seconds; unlike `between`, without repeated frames."""
        assert self.embeddings is not None
        return self.embeddings if self.fps is None else self.embeddings[: int(end * self.fps) + 1]

    def between(self, start: float, duration: float) -> Tensor:
        """Embeddings [F, D] of the frames from `start` to `start + duration` seconds, both included.

        The last frame is repeated beyond the end. Without a frame rate, returns all frames. Source: Im2Wav, sample.py.
        """
        assert self.embeddings is not None
        if self.fps is None or len(self.embeddings) == 1:
            return self.embeddings
        index = int(start * self.fps) + torch.arange(int(duration * self.fps) + 1)
        return self.embeddings[index.clamp_max(len(self.embeddings) - 1)]


def input_of(path: Path) -> Input:
    """Return the input of a file: a photo or a video."""
    kind = media_kind(path) if path.is_file() else ""
    if kind not in ("image", "video"):
        raise ValueError(
            f"input={path}: expected a photo, a video, or a folder of them ({', '.join(sorted(KNOWN))}), a pairs "
            "folder, or - for a list of paths on stdin"
        )
    return Input(path.stem, "photo" if kind == "image" else "video", path)


def find_inputs(given: Path) -> list[Input]:
    """Return the inputs of a path: the file itself, or the content of a folder or a pairs folder, sorted by name.

    Raises:
        ValueError: the path does not exist, is of an unknown kind or has no inputs; or two inputs have the same name.
    """
    if not given.is_dir():
        return [input_of(find_path(given))]
    if (given / "dataset.json").is_file():
        folder = PairsFolder(given)
        if not folder.pairs:
            raise ValueError(f"input={given}: its manifest has no pairs")
        return [Input(pair.id, "pair", given, pair=(folder, pair)) for pair in folder.pairs]
    found = MediaFolder(given)
    for line in found.describe_ignored():
        log.info(line)
    if not found.items:
        input_of(given)  # raises
    return name_inputs([input_of(path) for path, _, _ in found.items], given)


def list_inputs(lines: Iterable[str]) -> list[Input]:
    """Return the inputs of a list of paths, one per line, in their order; empty lines are skipped."""
    paths = [find_path(Path(line.strip())) for line in lines if line.strip()]
    if not paths:
        raise ValueError("input=-: stdin lists no photo or video (expected one path per line)")
    return name_inputs([input_of(p) for p in paths], Path(os.path.commonpath([p.absolute().parent for p in paths])))


def name_inputs(inputs: Sequence[Input], root: Path) -> list[Input]:
    """Name inputs by their paths below `root`; see `item_names`."""
    names = item_names([item.path.absolute() for item in inputs], root.absolute())  # type: ignore[union-attr]
    return [replace(item, name=name) for item, name in zip(inputs, names, strict=True)]


def timeline_input(images: Sequence[str | tuple[str | Path, float]]) -> Input:
    """Return a timeline of photos, each given as `dog.jpg@0` or (path, second); seconds increase from 0."""
    found: list[tuple[Path, float]] = []
    for image in images:
        name, _, start = image.rpartition("@") if isinstance(image, str) else (str(image[0]), "", str(image[1]))
        try:
            found.append((Path(name), float(start)))
        except ValueError:
            raise ValueError(f"input.timeline: {image!r} is not PHOTO@SECONDS, such as dog.jpg@0") from None
        if input_of(found[-1][0]).kind != "photo":
            raise ValueError(f"input.timeline: {found[-1][0]} is not a photo")
    starts = [start for _, start in found]
    if not found or starts[0] != 0 or any(a >= b for a, b in pairwise(starts)):
        raise ValueError(
            f"input.timeline: photos begin at {starts} s; expected the first at 0, then increasing seconds"
        )
    return Input("_".join(path.stem for path, _ in found)[:80], "timeline", images=tuple(found))


def text_input(text: str) -> Input:
    """Return the input of a text, which must not be empty."""
    if not text.strip():
        raise ValueError("input.text is empty")
    return Input(re.sub(r"\W+", "_", text).strip("_")[:60] or "text", "text", text=text.strip())


def with_prompt(item: Input, prompt: str | None, weight: float = 0.5) -> Input:
    """Return the input with a text beside its images (CLIP only); without a prompt, the input itself.

    The direction of each embedding becomes (1 - weight) * image + weight * text; its norm stays.

    Raises:
        ValueError: the input is a text itself, the prompt is empty, or the weight is not in [0, 1].
    """
    if prompt is None:
        return item
    if item.kind == "text":
        raise ValueError("prompt= is for photos and videos; input.text is a text already")
    if not prompt.strip() or not 0 <= weight <= 1:
        raise ValueError(f"prompt={prompt!r}, prompt_weight={weight}: expected a text, and a weight from 0 to 1")
    return replace(item, prompt=(prompt.strip(), weight))


def embed_input(item: Input, encoder: Callable[[], ImageEncoder], fps: float | None, seconds: float) -> Input:
    """Return the input with its embeddings, mixed with those of its prompt; see `_embed_media` and `with_prompt`."""
    embedded = _embed_media(item, encoder, fps, seconds)
    if item.prompt is None or embedded.embeddings is None:
        return embedded
    text, weight = item.prompt
    images = embedded.embeddings.float()
    direction = (1 - weight) * F.normalize(images, dim=-1) + weight * encoder().encode_text([text])
    return replace(embedded, embeddings=F.normalize(direction, dim=-1) * images.norm(dim=-1, keepdim=True))


def _embed_media(item: Input, encoder: Callable[[], ImageEncoder], fps: float | None, seconds: float) -> Input:
    """Return the input with its embeddings: computed by the encoder, or for a pair the stored ones.

    Args:
        item: the input.
        encoder: returns the image encoder of the model; not called for a pair without a prompt.
        fps: frames per second of the training videos; None if the model was trained on photos.
        seconds: duration of a video to embed.

    Raises:
        MediaError: the input cannot be read.
        ValueError: the input is a text, and the encoder has no text encoder.
    """
    if item.pair is not None:
        embeddings, rate = item.read_embeddings(), item.pair[0].info.fps
        return replace(item, embeddings=embeddings, fps=rate if len(embeddings) > 1 else None)
    if item.kind == "text":
        return replace(item, embeddings=encoder().encode_text([item.text]))
    if item.kind == "video":
        rate = fps or 1.0  # one frame per second for models that were trained on photos
        frames = _embed_video(item.path, encoder(), rate, int(seconds * rate) + 1)  # type: ignore[arg-type]
        return replace(item, embeddings=frames, fps=rate)
    if item.kind == "timeline":
        rate = fps or TIMELINE_FPS
        embeddings = torch.cat([encoder().encode([media.read_image(path)]) for path, _ in item.images])
        times = torch.arange(int(seconds * rate) + 1, dtype=torch.float64) / rate
        starts = torch.tensor([start for _, start in item.images], dtype=torch.float64)
        shown = torch.searchsorted(starts, times + 1e-9, right=True) - 1
        return replace(item, embeddings=embeddings[shown], fps=rate)
    image = item.image or media.read_image(item.path)  # type: ignore[arg-type]
    return replace(item, embeddings=encoder().encode([image]))


def _embed_video(path: Path, encoder: ImageEncoder, fps: float, wanted: int) -> Tensor:
    """Return embeddings [F, D] of at most `wanted` frames, memory-mapped from a temporary file."""
    count = 0
    with tempfile.TemporaryFile() as file:
        for frames in read_frames(path, fps, size=encoder.size):
            part = encoder.encode(frames[: wanted - count])
            file.write(part.numpy().astype(np.float32).tobytes())
            count += len(part)
            if count >= wanted:
                break
        file.flush()
        return torch.from_numpy(np.memmap(file, np.float32, "c", shape=(count, encoder.dim)))


def one_input(
    image: ImageSource | None,
    video: str | Path | None,
    timeline: Sequence[str | tuple[str | Path, float]] | None,
    text: str | None,
) -> Input:
    """Return the input of `Im2Wav.generate`.

    Raises:
        ValueError: not exactly one argument is set, or its file is of another kind.
    """
    if sum(x is not None for x in (image, video, timeline, text)) != 1:
        raise ValueError("set exactly one of image, video, timeline and text")
    if timeline is not None:
        return timeline_input(timeline)
    if text is not None:
        return text_input(text)
    if isinstance(image, Image.Image):
        return Input("image", "photo", image=image.convert("RGB"))
    found = input_of(Path(image if video is None else video))  # type: ignore[arg-type]
    if found.kind != ("photo" if video is None else "video"):
        raise ValueError(f"{found.path} is a {found.kind}: set it as {'image' if found.kind == 'photo' else 'video'}=")
    return found
