"""Plots as data URIs of SVG images, and log-mel spectrograms. Equal values give byte-identical plots."""

import base64
import io
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torchaudio.transforms
from PIL import Image
from torch import Tensor

DYNAMIC_RANGE = 20.0  # dB below the maximum; lower values are clamped, to ignore faint noise
# evenly spaced stops of the colour map, from dark to bright
COLOURS = np.array([[4, 3, 20], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]], float)


def data_uri(kind: str, content: bytes) -> str:
    """Return content as a data URI of the MIME type `kind`."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def log_mel(wav: Tensor, sample_rate: int, dynamic_range: float = DYNAMIC_RANGE, frame: float = 0.064) -> Tensor:
    """Log-mel spectrogram of wav [N]: [frames, 64] in dB, clamped `dynamic_range` dB below its maximum.

    It has 64 mel bands and Hann windows of `frame` seconds that overlap by half. It is shifted to the range 0 to
    `dynamic_range`, so that it does not depend on the loudness of the audio.
    """
    window = int(sample_rate * frame)
    mel = torchaudio.transforms.MelSpectrogram(
        sample_rate, n_fft=window, hop_length=window // 2, n_mels=64, norm="slaney", mel_scale="htk"
    )
    decibels = 10 * mel(wav.float()).clamp_min(1e-10).log10()
    return (decibels - decibels.max() + dynamic_range).clamp_min(0).T


def mel_image(wav: Tensor, sample_rate: int) -> Image.Image:
    """Image of the log-mel spectrogram of wav [N]: time to the right, frequency upwards; 50 dB from dark to bright."""
    level = log_mel(wav, sample_rate, dynamic_range=50.0, frame=0.032).numpy().T[::-1] / 50.0
    stops = np.linspace(0, 1, len(COLOURS))
    channels = [np.interp(level, stops, COLOURS[:, c]) for c in range(3)]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def waveform_image(
    wav: Tensor, interval: tuple[float, float] = (0.0, 1.0), size: tuple[int, int] = (1200, 140)
) -> Image.Image:
    """Image of wav [N]: the range of its samples in each column of pixels; an interval, in fractions, is highlighted.

    Args:
        wav: samples, scaled to the largest one.
        interval: start and end of the highlighted part.
        size: width and height in pixels.
    """
    width, height = size
    edges = np.linspace(0, len(wav), width + 1).astype(int)
    samples = wav.numpy() / max(float(wav.abs().max()), 1e-9)
    columns = [samples[a : max(b, a + 1)] for a, b in pairwise(edges)]
    low, high = (np.array([bound(part) for part in columns]) for bound in (np.min, np.max))
    rows = np.linspace(1, -1, height)[:, None]
    margin = 1.5 / height
    inside = (rows >= low - margin) & (rows <= high + margin)
    place = (np.arange(width) + 0.5) / width
    chosen = (place >= interval[0]) & (place <= interval[1])
    colours = np.where(chosen[:, None], COLOURS[3], [150, 150, 160])
    background = np.where(chosen[:, None], [255, 241, 230], [245, 245, 247])
    pixels = np.where(inside[..., None], colours, background)
    return Image.fromarray(pixels.astype(np.uint8))


def _axes(count: int, columns: int, width: float, height: float) -> tuple[Any, list[Any]]:
    """Return a figure and its `count` panels, at most `columns` per row."""
    from matplotlib.figure import Figure

    columns = max(min(count, columns), 1)
    lines = max(-(-count // columns), 1)
    figure = Figure(figsize=(width * columns, height * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).flatten().tolist()
    for axis in axes[count:]:
        axis.axis("off")
    return figure, axes[:count]


def _svg(figure: Any) -> str:
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "im2wav"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return data_uri("image/svg+xml", buffer.getvalue())


def plot_curves(panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]) -> str:
    """Plot curves over steps, with one panel for each title: title -> {curve: [(step, value), ...]}."""
    figure, axes = _axes(len(panels), len(panels), 4.2, 3.0)
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        for label, points in curves.items():
            axis.plot(*zip(*points, strict=True), label=label, linewidth=1.2, marker="." if len(points) < 20 else None)
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        if curves:
            axis.legend(fontsize="small")
    return _svg(figure)


def plot_histograms(panels: Mapping[str, Mapping[str, Any]], colours: Mapping[str, str] | None = None) -> str:
    """Plot histograms, normalised to fractions, with one panel for each title: title -> {set: values}."""
    panels = {title: sets for title, sets in panels.items() if any(len(values) for values in sets.values())}
    figure, axes = _axes(len(panels), len(panels), 4.5, 2.8)
    for axis, (title, sets) in zip(axes, panels.items(), strict=True):
        every = [x for values in sets.values() for x in values]
        low, high = min(every), max(every)
        edges = [low + (high - low or 1.0) * i / 30 for i in range(31)]
        for name, values in sets.items():
            colour = (colours or {}).get(name)
            axis.hist(values, edges, weights=[1 / len(values)] * len(values), color=colour, label=name, alpha=0.6)
        axis.set(title=title, ylabel="fraction")
        axis.grid(alpha=0.3)
        if len(sets) > 1:
            axis.legend(fontsize="small")
    return _svg(figure)


def plot_counts(counts: Sequence[float], label: str) -> str:
    """Plot counts as bars in descending order."""
    figure, (axis,) = _axes(1, 1, 9.0, 2.6)
    axis.bar(range(len(counts)), sorted(counts, reverse=True), width=1.0)
    axis.set(xlabel=label, ylabel="count")
    return _svg(figure)


def plot_intervals(
    panels: Mapping[str, Mapping[str, tuple[float, float | None, float | None]]], colours: Mapping[str, str]
) -> str:
    """Plot bars with one panel for each title: title -> {set: (value, low, high)}; low=None: no interval."""
    figure, axes = _axes(len(panels), 3, 4.0, 2.6)
    handles: dict[str, Any] = {}
    for axis, (title, sets) in zip(axes, panels.items(), strict=True):
        for place, (name, (value, low, high)) in enumerate(sets.items()):
            handles[name] = axis.bar(place, value, color=colours.get(name))
            if low is not None and high is not None:
                spread = [[max(value - low, 0)], [max(high - value, 0)]]
                axis.errorbar(place, value, yerr=spread, color="black", capsize=3)
        axis.set(title=title, xticks=[])
        axis.grid(axis="y", alpha=0.3)
        axis.set_axisbelow(True)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, frameon=False)
    return _svg(figure)


def plot_confusion(labels: Sequence[str], counts: Sequence[Sequence[float]]) -> str:
    """Plot a confusion matrix [true label, predicted label], with rows normalised to fractions."""
    fractions = [[x / (sum(row) or 1) for x in row] for row in counts]
    side = max(4.0, 0.34 * len(labels) + 2)
    figure, (axis,) = _axes(1, 1, side + 1, side)
    shown = axis.imshow(fractions, cmap="magma", vmin=0, vmax=1)
    ticks = range(len(labels))
    axis.set_xticks(ticks, labels, rotation=90, fontsize="small")
    axis.set_yticks(ticks, labels, fontsize="small")
    axis.set(xlabel="predicted label", ylabel="true label")
    figure.colorbar(shown, ax=axis, label="fraction of the true label", shrink=0.6)
    return _svg(figure)
