"""Sets of audio files to evaluate: listing, matching by name, checks, and uniform reading.

All files are read in the same way: mono, one sample rate, one resampler, one length and one loudness. Distances between
sets then do not depend on how the files were stored.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import soundfile
import torch
import torchaudio.functional
from torch import Tensor

from im2wav.evaluation.metrics import nearest
from im2wav.evaluation.networks import Network, NetworkOutputs
from im2wav.evaluation.set_statistics import map_in_threads
from im2wav.files import AUDIO_SUFFIXES, item_names, list_files
from im2wav.media.reading import MediaError, read_audio, read_audio_and_rate, set_loudness
from im2wav.report.plots import log_mel
from im2wav.system import track_progress

SILENT = 1e-3  # audio with a lower peak (full scale is 1) counts as silent
FULL = 0.999  # samples at or above count as full scale
SHORTEST = 0.1  # seconds of audio that the networks need
CLIPPED = 3  # number of consecutive full-scale samples that count as clipping
# Outputs are stacked for this number of files at a time: small tensors that stay allocated between waveforms fragment
# the memory (0.2 MB per file).
TOGETHER = 64
COMMON_RATE = 16000  # Hz
QUIETEST = -100.0  # dB; level of silent audio


def format_names(names: Sequence[str], at_most: int = 5) -> str:
    """Format the first names of a list, and the number of further names."""
    more = len(names) - at_most
    return ", ".join(map(str, names[:at_most])) + (f" and {more} more" if more > 0 else "")


@dataclass(frozen=True)
class AudioFile:
    """An audio file. `target` is the name of its item; a reference is its own item."""

    name: str
    path: Path
    target: str
    rate: int
    frames: int  # samples per channel

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return self.frames / self.rate


@dataclass(frozen=True)
class AudioFileSet:
    """A set of audio files."""

    title: str  # name of the set in messages
    files: tuple[AudioFile, ...]  # sorted by name
    # function of waveform [N] and sample rate, applied when a file is read, such as codec reconstruction
    process: Callable[[Tensor, int], Tensor] | None = field(default=None, compare=False)

    @property
    def rates(self) -> dict[int, int]:
        """Number of files per sample rate."""
        return dict(sorted(Counter(file.rate for file in self.files).items()))

    @property
    def targets(self) -> list[str]:
        """Item of each file."""
        return [file.target for file in self.files]


def describe_audio(path: Path, name: str) -> AudioFile:
    """Describe an audio file from its header, or by decoding it if libsndfile cannot read it.

    Raises:
        MediaError: the file cannot be read, or is shorter than `SHORTEST` seconds.
    """
    try:
        info = soundfile.info(path)
        file = AudioFile(name, path, name, info.samplerate, info.frames)
    except (soundfile.LibsndfileError, RuntimeError):  # formats that FFmpeg reads
        wav, rate = read_audio_and_rate(path, COMMON_RATE)
        file = AudioFile(name, path, name, rate, round(len(wav) * rate / COMMON_RATE))
    if file.seconds < SHORTEST:
        raise MediaError("too short", f"{path}: {file.frames} samples, expected at least {SHORTEST:g} s")
    return file


def find_audio_files(folder: Path, option: str) -> list[AudioFile]:
    """Find the audio files in a folder, sorted by name; see `item_names`.

    Raises:
        ValueError: the folder does not exist or has no audio files, or files are unreadable, too short or have the same
            name.
    """
    if not folder.is_dir():
        raise ValueError(f"{option}={folder}: no such folder; expected a folder of audio files")
    paths = list_files(folder, AUDIO_SUFFIXES)
    if not paths:
        raise ValueError(f"{option}={folder} contains no audio files ({', '.join(sorted(AUDIO_SUFFIXES))})")
    double = [str(stem) for stem, count in Counter(path.with_suffix("") for path in paths).items() if count > 1]
    if double:
        raise ValueError(
            f"{option}={folder}: several files have the same name: {format_names(double)}; keep one of each"
        )
    files, broken = [], []
    for path, name in zip(paths, item_names(paths, folder), strict=True):
        try:
            files.append(describe_audio(path, name))
        except MediaError as error:
            what = error.detail.removeprefix(f"{path}").removeprefix(": ")[:80]
            broken.append(f"{path.relative_to(folder).as_posix()} ({error.reason}: {what})")
    if broken:
        raise ValueError(
            f"{option}={folder}: {len(broken)} files cannot be used: {format_names(broken)}; replace or remove them"
        )
    return sorted(files, key=lambda file: file.name)


def match(
    generated: list[AudioFile], targets: Sequence[str], missing: str
) -> tuple[list[AudioFile], dict[str, list[str]]]:
    """Assign each generated file to its item: the one of the same name, or of its name without a suffix such as `_00`.

    Args:
        generated: generated files.
        targets: names of the expected items.
        missing: `error`, or `skip` to use only the matching files.

    Returns:
        The matched files, and the names of generated files and of references without a counterpart.

    Raises:
        ValueError: nothing matches, or names do not match and `missing` is `error`.
    """
    wanted, matched, lone = set(targets), [], []
    for file in generated:
        target = file.name if file.name in wanted else re.sub(r"_\d{2,}$", "", file.name)
        if target in wanted:
            matched.append(replace(file, target=target))
        else:
            lone.append(file.name)
    bare = sorted(wanted - {file.target for file in matched})
    if not matched:
        raise ValueError(
            f"no generated file has the name of a reference: generated are {format_names(lone)}; references are "
            f"{format_names(bare)}. Names must be equal, or NAME_00, NAME_01 for several files of one reference; "
            "paired=false compares the sets without pairing"
        )
    if missing == "error" and (lone or bare):
        raise ValueError(
            f"names do not match: {len(lone)} generated files without a reference"
            f"{': ' + format_names(lone) if lone else ''}; {len(bare)} references without a generated file"
            f"{': ' + format_names(bare) if bare else ''}. "
            "Correct the names, or set missing=skip to use only the matching files"
        )
    return matched, {"generated": lone, "reference": bare}


@dataclass(frozen=True)
class Reading:
    """How all files are read."""

    rate: int  # Hz that all files are resampled to
    seconds: float  # duration of the evaluated audio; shorter audio is repeated, as in training
    loudness: float | None  # RMS level in dBFS that all audio is scaled to; None: unchanged

    def raw(
        self, file: AudioFile, process: Callable[[Tensor, int], Tensor] | None = None, whole: bool = False
    ) -> Tensor:
        """Read a waveform [N] without scaling its loudness; with `whole`, longer audio is not cut.

        Raises:
            MediaError: the file cannot be used.
        """
        wav = read_audio(file.path, self.rate)
        samples = round(self.seconds * self.rate)
        if not whole or len(wav) < samples:
            wav = wav.repeat(-(-samples // len(wav)))[:samples]
        return wav if process is None else process(wav, self.rate)

    def level(self, wav: Tensor) -> Tensor:
        """Scale a waveform to the loudness; silent audio stays unchanged."""
        if self.loudness is None or wav.abs().max() < SILENT:
            return wav
        return set_loudness(wav, self.loudness)


def choose_rate(sets: Sequence[AudioFileSet], resample: bool) -> int:
    """Return the common sample rate of the sets; with `resample`, the lowest one.

    Raises:
        ValueError: sample rates differ and `resample` is false.
    """
    every = {rate for found in sets for rate in found.rates}
    if len(every) > 1 and not resample:
        listing = "; ".join(f"{s.title}: " + ", ".join(f"{n} at {r} Hz" for r, n in s.rates.items()) for s in sets)
        raise ValueError(
            f"sample rates differ ({listing}), and all distances depend on the bandwidth; set resample=true "
            f"to resample all files to {min(every)} Hz"
        )
    return min(every)


def levels(wav: Tensor) -> Tensor:
    """Return [3] for a waveform [N]: RMS level in dB; whether it is silent, and whether it is clipped (1 or 0)."""
    rms = 20 * wav.double().square().mean().sqrt().clamp_min(10 ** (QUIETEST / 20)).log10()
    full = wav.abs() >= FULL
    clipped = int(full.sum()) >= CLIPPED and bool(full.unfold(0, CLIPPED, 1).all(1).any())
    return torch.tensor([rms.item(), float(wav.abs().max() < SILENT), float(clipped)], dtype=torch.float64)


@dataclass(frozen=True)
class Judged:
    """Network outputs and levels of a set of S files."""

    set: AudioFileSet
    outputs: dict[str, NetworkOutputs]  # by network name
    levels: Tensor  # [S, 3], see `levels`
    nearest: Sequence[str] = ()  # name of the recording nearest to each file, for retrieval


def judge(
    audio: AudioFileSet, networks: Sequence[Network], reading: Reading, recordings: Mapping[str, Tensor] | None = None
) -> Judged:
    """Run each network on each file of a set. One file per thread is in memory at a time.

    `recordings`: log-mel spectrograms [T, bands] by name, among which the nearest to each file is searched.

    Raises:
        ValueError: files cannot be used; the message lists them.
    """

    def analyse(file: AudioFile) -> tuple[Tensor, list[NetworkOutputs], Tensor | None] | str:
        try:
            wav = reading.raw(file, audio.process)
        except MediaError as error:
            return f"{file.name} ({error.reason})"
        scaled = reading.level(wav)
        at_rates = (torchaudio.functional.resample(scaled, reading.rate, n.sample_rate) for n in networks)
        outputs = [network.analyse(at_rate) for network, at_rate in zip(networks, at_rates, strict=True)]
        return levels(wav), outputs, log_mel(wav, reading.rate) if recordings else None

    count = len(audio.files)
    analysed = map_in_threads(analyse, audio.files)
    stream = iter(track_progress(analysed, desc=f"evaluate {audio.title}", unit="file", total=count))
    parts, all_levels, mels, broken = [], [], [], []
    while chunk := list(islice(stream, TOGETHER)):
        broken += [reason for reason in chunk if isinstance(reason, str)]
        if good := [one for one in chunk if not isinstance(one, str)]:
            all_levels.append(torch.stack([one[0] for one in good]))
            mels += [one[2] for one in good if one[2] is not None]
            parts.append([NetworkOutputs.concat(of) for of in zip(*(one[1] for one in good), strict=True)])
    if broken:
        raise ValueError(
            f"{audio.title}: {len(broken)} audio files cannot be used: {format_names(broken)}; replace them"
        )
    by_network = zip(networks, zip(*parts, strict=True), strict=True)
    outputs = {network.name: NetworkOutputs.concat(of) for network, of in by_network}
    found: list[str] = []
    if recordings:
        names = list(recordings)
        found = [names[i] for i in nearest(torch.stack(mels), list(recordings.values()))]
    return Judged(audio, outputs, torch.cat(all_levels), found)
