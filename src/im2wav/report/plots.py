"""Plots as data URIs of SVG images, and log-mel spectrograms. The same values give the same text."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torchaudio.transforms
from PIL import Image
from torch import Tensor

DYNAMIC_RANGE = 20.0  # dB below the maximum; weaker values count as silence, to ignore faint noise
# colour map from dark to bright, evenly spaced stops
COLOURS = np.array([[4, 3, 20], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]], float)


def data_uri(kind: str, content: bytes) -> str:
    """Content as a URI, with its MIME type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def log_mel(wav: Tensor, sample_rate: int, dynamic_range: float = DYNAMIC_RANGE, frame: float = 0.064) -> Tensor:
    """Log-mel spectrogram of wav [N]: [frames, 64], in dB above the maximum minus `dynamic_range`; 0 is silence.

    64 mel bands, Hann frames of `frame` seconds, half overlapping. The maximum is `dynamic_range`, so that the
    result does not depend on the loudness of the audio.
    """
    window = int(sample_rate * frame)
    mel = torchaudio.transforms.MelSpectrogram(
        sample_rate, n_fft=window, hop_length=window // 2, n_mels=64, norm="slaney", mel_scale="htk"
    )
    decibels = 10 * mel(wav.float()).clamp_min(1e-10).log10()
    return (decibels - decibels.max() + dynamic_range).clamp_min(0).T


def mel_image(wav: Tensor, sample_rate: int) -> Image.Image:
    """Mel spectrogram of wav [N]: time to the right, frequency upwards, 50 dB from dark to bright."""
    level = log_mel(wav, sample_rate, dynamic_range=50.0, frame=0.032).numpy().T[::-1] / 50.0
    stops = np.linspace(0, 1, len(COLOURS))
    channels = [np.interp(level, stops, COLOURS[:, c]) for c in range(3)]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def _axes(count: int, columns: int, width: float, height: float) -> tuple[Any, list[Any]]:
    """A figure with `count` panels, at most `columns` in a row."""
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
    """Curves over steps, a panel each: title -> {curve: [(step, value), ...]}."""
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
    """Distributions, a panel each: title -> {set: sequence or array of values}; each set as fractions."""
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
    """Counts in descending order, a bar each."""
    figure, (axis,) = _axes(1, 1, 9.0, 2.6)
    axis.bar(range(len(counts)), sorted(counts, reverse=True), width=1.0)
    axis.set(xlabel=label, ylabel="count")
    return _svg(figure)


def plot_intervals(
    panels: Mapping[str, Mapping[str, tuple[float, float | None, float | None]]], colours: Mapping[str, str]
) -> str:
    """Bars with intervals, a panel each: title -> {set: (value, low, high)}; without an interval where low is None."""
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
    """A confusion matrix [true label, predicted label], each row as fractions."""
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
