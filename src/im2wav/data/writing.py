"""Finished clips -> files of a pairs folder and lines of its journal."""

from collections.abc import Callable, Mapping

import numpy as np

from im2wav.data.decoding import Decoded
from im2wav.data.journal import Journal
from im2wav.data.packing import End
from im2wav.data.pairs import npy_bytes
from im2wav.data.sources import Source


class PairWriter:
    """Writes each clip as it ends; the line in the journal comes last, so what it names is there.

    Args:
        journal: of this process.
        sources: by the number that a clip is called.
        progress: called after each clip.
    """

    def __init__(self, journal: Journal, sources: Mapping[int, Source], progress: Callable[[], object]):
        self.journal, self.sources, self.progress = journal, sources, progress

    def __call__(self, clip: int, end: End, embeddings: np.ndarray | None) -> None:
        """Write one clip: embeddings float16 [F, D], or None where it cannot be used.

        Raises:
            ValueError: the folder cannot be written.
        """
        source = self.sources[clip]
        if not isinstance(end, Decoded) or embeddings is None:
            self.journal.add({"id": source.id, "reason": end.reason, "detail": end.detail})  # type: ignore[union-attr]
            self.progress()
            return
        files = {"wav": f"wav/{source.id}.wav" if end.wav else "", "clip": f"clip/{source.id}.npy"}
        if end.wav:
            self.journal.write(files["wav"], end.wav)
        self.journal.write(files["clip"], npy_bytes(embeddings))
        texts = {"id": source.id, "label": source.label, "split": source.split, "group": source.group}
        size = {"samples": end.samples, "frames": len(embeddings), "source": source.path}
        self.journal.add({**texts, **files, **size, "sound": end.sound, "note": end.note})
        self.progress()
