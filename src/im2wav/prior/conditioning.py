"""Conditioning of a prior: image embeddings, timing and, for the up prior, coarse codes.

Letters: B batch, T positions (codes), F frames, D dimension of the image embedding, W width of the transformer.
Source: Im2Wav (Sheffer & Adi, 2022); the timing tables and the upsampler come from Jukebox (Dhariwal et al., 2020).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from math import prod

import torch
from torch import Tensor, nn

from im2wav.layers import LayerNorm, UpsampleStack, code_table, normal
from im2wav.prior.class_scores import ClassScores


@dataclass(frozen=True)
class Timing:
    """Position of a window in its recording, in samples; each field is [B], float32."""

    total: Tensor  # length of the recording
    offset: Tensor  # start of the window
    duration: Tensor  # length of the window


@dataclass(frozen=True)
class Conditions:
    """Conditions of a prior for B sequences.

    Attributes:
        clip: image embeddings per frame, [B, F, D]; a photo is one frame.
        timing: required by priors with timing tables.
        codes_low: coarse codes [B, T / ratio]; required by the up prior.
        null: [B] booleans; true replaces the image embeddings by the learnt null (unconditional) embedding.
    """

    clip: Tensor
    timing: Timing | None = None
    codes_low: Tensor | None = None
    null: Tensor | None = None

    @property
    def is_null(self) -> Tensor:
        """Return `null`, or all false if it is None: [B] booleans."""
        return self.null if self.null is not None else self.clip.new_zeros(len(self.clip), dtype=torch.bool)

    def null_like(self) -> "Conditions":
        """Unconditional copy: every image embedding is replaced by the null embedding; timing and coarse codes stay."""
        return replace(self, null=torch.ones_like(self.is_null))

    def take(self, rows: Tensor | slice) -> "Conditions":
        """Select sequences of the batch."""
        return _map(lambda *x: x[0][rows], self)

    def to(self, device: torch.device) -> "Conditions":
        """Move the conditions to a device."""
        return _map(lambda *x: x[0].to(device), self)

    @staticmethod
    def cat(parts: "Sequence[Conditions]") -> "Conditions":
        """Concatenate conditions along the batch."""
        return _map(lambda *x: torch.cat(x), *(replace(p, null=p.is_null) for p in parts))


def _map(function, *items):
    """Apply a function to the corresponding tensors of dataclasses of the same type."""
    if items[0] is None:
        return None
    if isinstance(items[0], Tensor):
        return function(*items)
    kind = type(items[0])
    return kind(**{f.name: _map(function, *(getattr(item, f.name) for item in items)) for f in fields(kind)})


@dataclass(frozen=True)
class UpsamplerConfig:
    """Network that upsamples coarse codes to the rate of the fine codes.

    Attributes:
        strides: their product is the number of fine codes per coarse code.
        width, depth: width and depth of the residual stacks.
        dilation_growth, dilation_cycle: residual block d has the dilation growth^(d mod cycle).
        expansion: channels inside a residual block, as a multiple of `width`.
    """

    strides: Sequence[int] = (2, 2)
    width: int = 512
    depth: int = 16
    dilation_growth: int = 3
    dilation_cycle: int | None = 8
    expansion: float = 1.0


@dataclass(frozen=True)
class ConditioningConfig:
    """Conditions of a prior and the sizes of the networks that embed them.

    Attributes:
        clip_dim: dimension D of the image embeddings.
        clip_scale: factor that multiplies the embeddings, which have unit norm. 1 in Im2Wav. About sqrt(D) gives unit
            variance per entry, and small priors then learn to use the images much earlier.
        map_width: hidden width of the MLPs from D to the width of the transformer.
        map_dropout: dropout in these MLPs.
        frames: add the embedding of the frame shown at each position (low prior); otherwise only the mean over the
            frames is used, as the start of the sequence.
        timing: add embeddings of the recording's length, and of the absolute and relative position in it (low prior).
        embedding: condition on the image embedding itself; false: on the class scores only.
        classes: number of labels whose scores, read from the image embedding by fixed directions, are a condition; they
            do not drift in training as a learnt reading does. 0: none.
        class_rows: number of these directions; a label has one or more.
        guidance: learn null (unconditional) embeddings, which classifier-free guidance (CFG) requires.
        upsampler: condition on coarse codes (up prior).
        timing_bins: number of entries of a timing table.
        sample_rate: Hz; converts the ranges of the timing tables from seconds to samples.
        total_range: range of recording lengths in seconds; absolute positions range from 0 to its end.
    """

    clip_dim: int = 512
    clip_scale: float = 1.0
    map_width: int = 512
    map_dropout: float = 0.1
    frames: bool = False
    timing: bool = False
    embedding: bool = True
    classes: int = 0
    class_rows: int = 0
    guidance: bool = False
    upsampler: UpsamplerConfig | None = None
    timing_bins: int = 64
    sample_rate: int = 16000
    total_range: Sequence[float] = field(default=(2.05, 600.0))


class ClipMap(nn.Sequential):
    """MLP from image embeddings [..., D] to [..., W]."""

    def __init__(self, dim: int, hidden: int, width: int, dropout: float):
        super().__init__(nn.Linear(dim, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, width))


class TimingTables(nn.Module):
    """Sum of three embeddings of binned times, [B, T, W]. Times out of range are clamped to the first or last bin."""

    def __init__(self, config: ConditioningConfig, width: int, std: float):
        super().__init__()
        low, high = (seconds * config.sample_rate for seconds in config.total_range)
        self.ranges = {"total": (low, high), "absolute": (0.0, high), "relative": (0.0, 1.0)}
        self.bins = config.timing_bins
        self.tables = nn.ModuleDict({name: code_table(config.timing_bins, width, std) for name in self.ranges})

    def bin(self, name: str, value: Tensor) -> Tensor:
        """Bin indices of float32 values in the table `name`."""
        low, high = self.ranges[name]
        return (self.bins * ((value - low) / (high - low))).floor().long().clamp(0, self.bins - 1)

    def bins_of(self, timing: Timing, length: int) -> dict[str, Tensor]:
        """Bin indices per table for `length` evenly spaced positions of each window: [B, 1] or [B, length].

        The relative position is at most 1, even if the window is longer than its recording.
        """
        total, offset, duration = (x.float()[:, None] for x in (timing.total, timing.offset, timing.duration))
        fraction = torch.arange(length, device=total.device, dtype=torch.float32) / length

        def interpolate(start: Tensor, end: Tensor) -> Tensor:
            return start + (end - start) * fraction

        end = offset + duration
        return {
            "total": self.bin("total", total),
            "absolute": self.bin("absolute", interpolate(offset, end)),
            "relative": self.bin("relative", interpolate(offset / total, (end / total).clamp_max(1.0))),
        }

    def forward(self, timing: Timing, length: int) -> Tensor:
        """Return the embeddings of `length` positions."""
        return sum(self.tables[name](index) for name, index in self.bins_of(timing, length).items())


class CodeUpsampler(nn.Module):
    """Embed and upsample coarse codes: [B, T / ratio] -> [B, T, W]."""

    def __init__(self, config: UpsamplerConfig, codebook_size: int, width: int, std: float):
        super().__init__()
        self.ratio = prod(config.strides)
        self.embedding = code_table(codebook_size, width, std)
        self.stack = UpsampleStack(
            width,
            config.width,
            width,
            config.strides,
            depth=config.depth,
            growth=config.dilation_growth,
            cycle=config.dilation_cycle,
            hidden=int(config.expansion * config.width),
        )
        self.norm = LayerNorm(width)

    def forward(self, codes: Tensor) -> Tensor:
        """Embed and upsample the codes."""
        x = self.stack(self.embedding(codes).transpose(1, 2))
        return self.norm(x.transpose(1, 2))


def frame_of_position(length: int, frames: int, device: torch.device | None = None) -> Tensor:
    """Index of the frame shown at each of `length` positions, [length]: evenly spaced from the first to the last.

    Rounds half to even in float64. Computes on the device unless it lacks float64, which avoids a copy.
    Source: Im2Wav, models/prior.py.
    """
    has_float64 = device is None or device.type != "mps"
    step = torch.arange(length, dtype=torch.float64, device=device if has_float64 else None) * (1 / max(length - 1, 1))
    if length > 1:
        step[-1:].fill_(1.0)
    return (step * (frames - 1)).round().long().to(device)


class Conditioner(nn.Module):
    """Convert `Conditions` to a start embedding [B, W] and position embeddings [B, T, W] for the transformer.

    The position embeddings are None if frames, timing and upsampler are all disabled.
    """

    def __init__(self, config: ConditioningConfig, codebook_size: int, width: int, init_scale: float):
        super().__init__()
        self.config = config
        std = 0.01 * init_scale
        if not (config.embedding or config.classes):
            raise ValueError("conditioning.embedding=false needs conditioning.classes, the number of labels")
        maps = (config.clip_dim, config.map_width, width, config.map_dropout)
        self.start_map = ClipMap(*maps) if config.embedding else None
        self.frame_map = ClipMap(*maps) if config.embedding and config.frames else None
        self.class_scores = None
        if config.classes:
            self.class_scores = ClassScores(config.classes, config.class_rows, config.clip_dim)
            self.class_start = nn.Linear(config.classes, width)
            self.class_frame = nn.Linear(config.classes, width) if config.frames else None
        self.timing = TimingTables(config, width, std) if config.timing else None
        self.upsampler = (
            CodeUpsampler(config.upsampler, codebook_size, width, 0.02 * init_scale) if config.upsampler else None
        )
        self.null_start = normal(width, std=std) if config.guidance else None
        self.null_frame = normal(width, std=std) if config.guidance and config.frames else None

    def _check(self, conditions: Conditions, length: int) -> None:
        clip, coarse = conditions.clip, conditions.codes_low
        if clip.ndim != 3 or clip.shape[2] != self.config.clip_dim or not clip.shape[1]:
            raise ValueError(
                f"image embeddings of shape {tuple(clip.shape)}: expected [B, F, {self.config.clip_dim}]; "
                "use the image encoder that the prior was trained with"
            )
        if self.timing is not None and conditions.timing is None:
            raise ValueError("this prior requires conditions.timing")
        if self.upsampler is not None:
            if coarse is None:
                raise ValueError("this prior requires the coarse codes conditions.codes_low")
            if coarse.shape[1] * self.upsampler.ratio != length:
                raise ValueError(
                    f"{coarse.shape[1]} coarse codes give {coarse.shape[1] * self.upsampler.ratio} positions, "
                    f"but the context has {length}"
                )
        if conditions.null is not None and self.null_start is None and conditions.null.any():
            raise ValueError(
                "this prior has no null embedding (conditioning.guidance=false): guidance is not available"
            )

    def _embed_images(self, clip: Tensor) -> tuple[Tensor, Tensor | None]:
        """Image embeddings [B, F, D] -> start [B, W] and, if frames are a condition, frames [B, F, W]."""
        starts, frames = [], []
        if self.start_map is not None:
            scaled = clip.to(next(self.start_map.parameters())) * self.config.clip_scale
            starts.append(self.start_map(scaled.mean(1)))
            frames += [] if self.frame_map is None else [self.frame_map(scaled)]
        if self.class_scores is not None:
            scores = self.class_scores(clip).to(self.class_start.weight.dtype)
            starts.append(self.class_start(scores.mean(1)))
            frames += [] if self.class_frame is None else [self.class_frame(scores)]
        return sum(starts[1:], starts[0]), sum(frames[1:], frames[0]) if frames else None

    def forward(self, conditions: Conditions, length: int) -> tuple[Tensor, Tensor | None]:
        """Return the start embedding [B, W] and the position embeddings [B, length, W] or None.

        Raises:
            ValueError: required conditions are missing, or their shapes do not match.
        """
        self._check(conditions, length)
        start, frames = self._embed_images(conditions.clip)
        null = conditions.is_null
        if self.null_start is not None:
            start = torch.where(null[:, None], self.null_start.to(start), start)
        parts = []
        if frames is not None:
            if self.null_frame is not None:
                frames = torch.where(null[:, None, None], self.null_frame.to(frames), frames)
            parts.append(frames[:, frame_of_position(length, frames.shape[1], frames.device)])
        if self.timing is not None and conditions.timing is not None:
            parts.append(self.timing(conditions.timing, length))
        if self.upsampler is not None and conditions.codes_low is not None:
            parts.append(self.upsampler(conditions.codes_low))
        return start, sum(parts[1:], parts[0]) if parts else None
