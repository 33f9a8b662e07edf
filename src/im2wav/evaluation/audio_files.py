"""Sets of sounds that are to be judged: found, matched by name, checked, and read in one way.

Every sound of every set is read alike: channels averaged, brought to one sample rate by one resampler, cut to one
length, brought to one loudness. A distance between sets then cannot come from how they were stored.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import soundfile
import torch
import torchaudio.functional
from torch import Tensor

from im2wav.evaluation.network import Network, NetworkOutput, SetOutputs
from im2wav.evaluation.threads import map_in_threads
from im2wav.files import AUDIO_SUFFIXES, list_files
from im2wav.media.reading import MediaError, read_audio, set_loudness
from im2wav.report.spectrogram import log_mel

log = logging.getLogger(__name__)

SILENT = 1e-3  # peak, full scale being 1, under which a sound counts as silent
FULL = 0.999  # a sample beyond this is at full scale
CLIPPED = 3  # so many of them in a row are a clipped sound
# What is heard is put together for so many sounds at once. A small tensor that stayed among the waves would break up
# the memory that they leave: 0.2 MB for each sound that was heard.
TOGETHER = 64
QUIETEST = -100.0  # dB; what a silent sound counts as


def format_names(names: Sequence[str], at_most: int = 5) -> str:
    """The first names of a list, and how many more there are."""
    more = len(names) - at_most
    return ", ".join(map(str, names[:at_most])) + (f" and {more} more" if more > 0 else "")


@dataclass(frozen=True)
class AudioFile:
    """A file of a set; `target` is the item that it belongs to: of a reference its own name."""

    name: str
    path: Path
    target: str
    rate: int
    frames: int  # samples of a channel

    @property
    def seconds(self) -> float:
        """How long the file is."""
        return self.frames / self.rate


@dataclass(frozen=True)
class AudioFileSet:
    """Sounds that are judged together.

    Attributes:
        title: what the set is called in messages.
        sounds: sorted by name.
        process: applied to each wave [N] and its rate as it is read, such as a codec's round trip.
    """

    title: str
    files: tuple[AudioFile, ...]
    process: Callable[[Tensor, int], Tensor] | None = field(default=None, compare=False)

    @property
    def rates(self) -> Counter:
        """How many sounds have which sample rate."""
        return Counter(sound.rate for sound in self.files)

    @property
    def names(self) -> list[str]:
        """Names of the sounds."""
        return [sound.name for sound in self.files]

    @property
    def targets(self) -> list[str]:
        """The item of each sound."""
        return [sound.target for sound in self.files]


def find_audio_files(folder: Path, option: str) -> list[AudioFile]:
    """The sounds of a folder, sorted by name; a name is the path below the folder without its suffix.

    Raises:
        ValueError: no such folder, no sounds in it, two of one name, or files that are no sounds.
    """
    if not folder.is_dir():
        raise ValueError(f"{option}={folder}: no such folder; expected a folder of sounds")
    paths = list_files(folder, AUDIO_SUFFIXES)
    if not paths:
        raise ValueError(f"{option}={folder} holds no sounds ({', '.join(sorted(AUDIO_SUFFIXES))})")
    files, broken = [], []
    for path in paths:
        name = path.relative_to(folder).with_suffix("").as_posix()
        try:
            info = soundfile.info(path)
            files.append(AudioFile(name, path, name, info.samplerate, info.frames))
        except (soundfile.LibsndfileError, RuntimeError) as error:
            broken.append(f"{name} ({str(error).splitlines()[0][:80]})")
    if broken:
        raise ValueError(f"{option}={folder}: {len(broken)} files cannot be read: {format_names(broken)}")
    double = [name for name, count in Counter(s.name for s in files).items() if count > 1]
    if double:
        raise ValueError(f"{option}={folder}: several files are called {format_names(double)}; keep one of each")
    return sorted(files, key=lambda sound: sound.name)


def target_of(name: str, targets: set[str]) -> str | None:
    """The item that a generated sound belongs to: the one of its name, or of its name without a number `_00`."""
    if name in targets:
        return name
    bare = re.sub(r"_\d{2,}$", "", name)
    return bare if bare in targets else None


@dataclass(frozen=True)
class Unmatched:
    """Names that have no partner in the other set."""

    generated: list[str]
    reference: list[str]


def match(generated: list[AudioFile], targets: Sequence[str], missing: str) -> tuple[list[AudioFile], Unmatched]:
    """Give each generated sound its item.

    Args:
        generated: sounds.
        targets: names of the items that sounds are expected for.
        missing: `error`, or `skip` to go on with those that match.

    Raises:
        ValueError: names do not match and `missing` is `error`, nothing matches, or no such choice.
    """
    if missing not in ("error", "skip"):
        raise ValueError(f"missing={missing!r}: expected `error` or `skip`")
    wanted = set(targets)
    found = [(sound, target_of(sound.name, wanted)) for sound in generated]
    matched = [replace(sound, target=target) for sound, target in found if target is not None]
    outputs = {sound.target for sound in matched}
    rest = Unmatched([s.name for s, target in found if target is None], sorted(wanted - outputs))
    if not matched:
        raise ValueError(
            f"no generated sound has the name of a reference: generated are {format_names(rest.generated)}; references are "
            f"{format_names(rest.reference)}. Names must be equal, or NAME_00, NAME_01 for several sounds of one reference; "
            "paired=false compares the sets alone"
        )
    if missing == "error" and (rest.generated or rest.reference):
        raise ValueError(
            f"names do not match: {len(rest.generated)} generated sounds without a reference"
            f"{': ' + format_names(rest.generated) if rest.generated else ''}; {len(rest.reference)} references without a "
            f"generated sound{': ' + format_names(rest.reference) if rest.reference else ''}. Mend the names, or go on "
            "with those that match by missing=skip"
        )
    return matched, rest


@dataclass(frozen=True)
class Reading:
    """How every sound is read.

    Attributes:
        rate: Hz; all sets are brought to it before they are judged.
        seconds: the length of what is judged; a shorter sound is repeated, as in training.
        loudness: RMS level in dB of full scale that each sound is brought to; as it is where None.
    """

    rate: int
    seconds: float
    loudness: float | None

    def raw(self, sound: AudioFile, process: Callable[[Tensor, int], Tensor] | None = None) -> Tensor:
        """The wave [N] before its loudness is set.

        Raises:
            MediaError: the file cannot be used.
        """
        wav = read_audio(sound.path, self.rate)
        samples = round(self.seconds * self.rate)
        wav = wav.repeat(-(-samples // len(wav)))[:samples]
        return wav if process is None else process(wav, self.rate)

    def level(self, wav: Tensor) -> Tensor:
        """The wave at the wanted loudness; a silent one stays silent."""
        if self.loudness is None or wav.abs().max() < SILENT:
            return wav
        return set_loudness(wav, self.loudness)


def choose_rate(sets: Sequence[AudioFileSet], resample: bool) -> int:
    """The rate that all sets are brought to: their common one, or with `resample` the lowest.

    Raises:
        ValueError: there are several and `resample` is off.
    """
    rates = {s.title: dict(sorted(s.rates.items())) for s in sets}
    every = {rate for found in rates.values() for rate in found}
    if len(every) > 1 and not resample:
        said = "; ".join(f"{title}: " + ", ".join(f"{n} at {r} Hz" for r, n in x.items()) for title, x in rates.items())
        raise ValueError(
            f"sample rates differ ({said}). Another band width moves every distance; bring all to the lowest, "
            f"{min(every)} Hz, with one resampler by resample=true"
        )
    return min(every)


def levels(wav: Tensor) -> Tensor:
    """RMS level in dB, whether it is silent, whether it is clipped: wave [N] -> [3]."""
    rms = 20 * wav.double().square().mean().sqrt().clamp_min(10 ** (QUIETEST / 20)).log10()
    full = wav.abs() >= FULL
    clipped = int(full.sum()) >= CLIPPED and bool(full.unfold(0, CLIPPED, 1).all(1).any())
    return torch.tensor([rms.item(), float(wav.abs().max() < SILENT), float(clipped)], dtype=torch.float64)


@dataclass(frozen=True)
class Judged:
    """What was heard in a set.

    Attributes:
        set: the sounds, S of them.
        heard: by network.
        levels: [S, 3], as `levels` gives them.
        mels: log-mel spectrograms [S, L, bands], where retrieval is to be computed.
        nearest: name of the recording that is nearest to each sound, where retrieval is computed.
    """

    set: AudioFileSet
    outputs: dict[str, SetOutputs]
    levels: Tensor
    mels: Tensor | None = None
    nearest: Sequence[str] = ()


def judge(files: AudioFileSet, networks: Sequence[Network], reading: Reading, with_mels: bool = False) -> Judged:
    """Run each network on each sound of a set. A few sounds are in memory at a time, one for each thread.

    Raises:
        ValueError: sounds that cannot be used; all of them are named.
    """
    from tqdm.auto import tqdm

    def analyse(sound: AudioFile) -> tuple[Tensor, list[NetworkOutput], Tensor | None] | str:
        """Levels, the networks' outputs and the log-mel spectrogram; or why it cannot be used."""
        try:
            wav = reading.raw(sound, files.process)
        except MediaError as error:
            return f"{sound.name} ({error.reason})"
        even = reading.level(wav)
        at_rates = (torchaudio.functional.resample(even, reading.rate, n.sample_rate) for n in networks)
        outputs = [network.analyse(at_rate) for network, at_rate in zip(networks, at_rates, strict=True)]
        return levels(wav), outputs, log_mel(wav, reading.rate) if with_mels else None

    outputs = tqdm(
        map_in_threads(analyse, files.files),
        desc=f"hear {sounds.title}",
        total=len(files.files),
        unit="sound",
        disable=None,
    )
    stream, parts, facts, mels, broken = iter(outputs), [], [], [], []
    while some := list(islice(stream, TOGETHER)):
        broken += [reason for reason in some if isinstance(reason, str)]
        if good := [one for one in some if not isinstance(one, str)]:
            facts.append(torch.stack([one[0] for one in good]))
            mels += [one[2] for one in good if one[2] is not None]
            parts.append([SetOutputs.join(of) for of in zip(*(one[1] for one in good), strict=True)])
    if broken:
        raise ValueError(
            f"{sounds.title}: {len(broken)} sounds cannot be used: {format_names(broken)}; make them again"
        )
    by_network = zip(networks, zip(*parts, strict=True), strict=True)
    outputs = {network.name: SetOutputs.concat(of) for network, of in by_network}
    return Judged(files, outputs, torch.cat(facts), torch.stack(mels) if mels else None)


def describe_set(files: AudioFileSet) -> dict[str, Any]:
    """N, durations and rates of a set."""
    seconds = sorted(sound.seconds for sound in files.files)
    return {
        "n": len(seconds),
        "items": len(set(files.targets)),
        "seconds": {"min": seconds[0], "median": seconds[len(seconds) // 2], "max": seconds[-1]},
        "sample_rate": {str(rate): count for rate, count in sorted(files.rates.items())},
    }
