"""Does a generated sound belong to its picture? Ask which recording it is nearest to."""

from collections.abc import Sequence

from torch import Tensor

from im2wav.evaluation.distance import log_mel, mel_distance


def nearest(sounds: Sequence[Tensor], recordings: Sequence[Tensor], sample_rate: int) -> list[int]:
    """For each sound [N] the number of the recording [N] that it is nearest to, by `mel_distance`."""
    mels = [log_mel(recording, sample_rate) for recording in recordings]
    found = []
    for sound in sounds:
        distances = [mel_distance(log_mel(sound, sample_rate), mel) for mel in mels]
        found.append(distances.index(min(distances)))
    return found


def share_right(found: Sequence[int], belongs: Sequence[int]) -> float:
    """Share of sounds whose nearest recording is the one that belongs to the picture."""
    return sum(a == b for a, b in zip(found, belongs, strict=True)) / len(found)


def share_shuffled(found: Sequence[int], belongs: Sequence[int]) -> float:
    """The same share when every sound is judged as if it were made for another picture: the mean over all shifts."""
    shifts = range(1, len(found))
    return sum(share_right(found, [*belongs[s:], *belongs[:s]]) for s in shifts) / max(len(shifts), 1)
