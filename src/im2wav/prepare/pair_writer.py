"""Finished clips -> files of a pairs folder and lines of its journal."""

from collections.abc import Callable, Mapping

import numpy as np

from im2wav.files import npy_bytes
from im2wav.prepare.clip_reader import Decoded
from im2wav.prepare.journal import Journal
from im2wav.prepare.packing import End
from im2wav.prepare.sources import Source


class PairWriter:
    """Writes each clip as it ends. Its line in the journal is written last, so the files that it names exist.

    Args:
        journal: the journal of this process.
        sources: sources by the number of their clip.
        progress: called after each clip.
    """

    def __init__(self, journal: Journal, sources: Mapping[int, Source], progress: Callable[[], object]):
        self.journal, self.sources, self.progress = journal, sources, progress

    def __call__(self, clip: int, end: End, embeddings: np.ndarray | None) -> None:
        """Write one clip: embeddings float16 [F, D], or None where it failed.

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
