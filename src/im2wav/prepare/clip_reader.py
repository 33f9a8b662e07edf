"""Read sources as streams of messages, uint8 squares for the encoder and then the audio, in processes that may die.

Media decoders run native code on untrusted files. A torch DataLoader stops when a worker dies, and process pools return
the complete result of a job, which is gigabytes for a long video. Here, a job sends its messages through a pipe, which
blocks when it is full, so that memory stays bounded; a worker that dies or hangs costs its current job alone.
"""

import hashlib
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
import torch

from im2wav.files import wav_bytes
from im2wav.media import reading as media
from im2wav.media.encoder import AnyImage
from im2wav.media.video import Video
from im2wav.prepare.sources import Source
from im2wav.system import hold_signals, leave_signals_to_parent

_GONE = (EOFError, BrokenPipeError, ConnectionResetError)  # the parent closed the pipe
_LATE = 0.05  # s between the starts of audio and video that are noted
_TOLERANCE = 0.5  # s by which the durations of audio and video may differ: containers pad both


@dataclass(frozen=True)
class Decoded:
    """Last message of a usable source, after its frames."""

    wav: bytes  # content of a wav file; empty where there is no audio
    samples: int
    sound: str  # hash of the samples
    note: str  # what was corrected


@dataclass(frozen=True)
class Failed:
    """Last message of a source that cannot be used, or whose worker died or hung."""

    reason: str
    detail: str


End = Decoded | Failed


@dataclass(frozen=True)
class ClipReader:
    """Reads one source. It is pickled and sent to the processes that decode."""

    crop: Callable[[AnyImage], np.ndarray]  # image -> encoder input, uint8 [3, S, S]
    size: int  # S
    fps: float  # frames per second taken from a video
    sample_rate: int = 16000  # of the audio, in Hz
    silence: float = 0.001  # audio with a lower peak (full scale is 1) is an error
    loudness: float | None = None  # RMS level in dBFS that audio is scaled to; None: unchanged
    min_seconds: float = 0.0  # shorter audio is an error
    min_frame_change: float = 0.0  # a video whose frames differ less from the first (mean over 256 levels) is an error
    chunk: int = 32  # number of frames in memory at a time

    def __call__(self, source: Source) -> Iterator[np.ndarray | End]:
        """Arrays of squares uint8 [n, 3, S, S], none of audio alone, then `Decoded`; or `Failed` at any time."""
        try:
            if source.video:
                yield from self._video(source)
            elif source.is_audio:
                yield self._audio(source, None)
            else:
                square = self.crop(media.read_image(source.path))
                end = self._audio(source, None)
                yield square[None]
                yield end
        except media.MediaError as error:
            yield Failed(error.reason, error.detail)

    def _video(self, source: Source) -> Iterator[np.ndarray | End]:
        video = Video(source.path, self.size)
        end = self._audio(source, video)
        first, change, count = None, 0.0, 0
        for images in video.frames(self.fps, self.chunk):
            squares = np.stack([self.crop(image) for image in images])
            first = squares[0].astype(np.int16) if first is None else first
            if change <= self.min_frame_change:
                change = max(change, *(float(np.abs(square - first).mean()) for square in squares))
            count += len(squares)
            yield squares
        if count > 1 and change <= self.min_frame_change and self.min_frame_change:
            raise media.MediaError("still frame", f"{source.path}: its frames differ by at most {change:.2g} of 255")
        yield end

    def _audio(self, source: Source, video: Video | None) -> Decoded:
        path, late = source.audio or source.video, 0.0
        if not path:
            return Decoded(b"", 0, "", "")
        if source.audio:
            wav, rate = media.read_audio_and_rate(path, self.sample_rate)
        else:
            wav, rate, late = media.read_track(path, self.sample_rate, None if video is None else video.origin)
        notes = [f"resampled: from {rate} Hz"] if rate != self.sample_rate else []
        if late > _LATE:
            notes.append(f"sound late: {late:.2f} s of silence before it, as it starts after the video")
        elif late < -_LATE:
            notes.append(f"sound early: its first {-late:.2f} s are cut, as it starts before the video")
        seconds = None if video is None else video.seconds
        length = len(wav) / self.sample_rate
        if length < self.min_seconds:
            raise media.MediaError("too short", f"{path}: {length:.2f} s of audio, min_seconds={self.min_seconds:g}")
        if seconds is not None and length > seconds + _TOLERANCE:
            notes.append(f"sound cut: {length:.2f} s to the video's {seconds:.2f} s")
            wav = wav[: max(1, round(seconds * self.sample_rate))]
        elif seconds is not None and length < seconds - _TOLERANCE:
            notes.append(f"sound short: {length:.2f} s of the video's {seconds:.2f} s")
        media.check_loudness(wav, self.silence, path)
        if self.loudness is not None:
            wav = media.set_loudness(wav, self.loudness)
        content = wav_bytes(wav, self.sample_rate)
        return Decoded(content, len(wav), hashlib.blake2b(content, digest_size=8).hexdigest(), "; ".join(notes))


def _work(pipe: Connection, task: Callable[[Any], Iterator[Any]]) -> None:
    """Send None whenever this process is idle, and the messages of each job that then comes."""
    leave_signals_to_parent()
    torch.set_num_threads(1)
    with suppress(*_GONE):
        while True:
            pipe.send(None)
            job = pipe.recv()
            try:
                for message in task(job):
                    pipe.send(message)
            except _GONE:
                raise
            except Exception as error:  # a decoder may raise anything; only this job fails
                pipe.send(Failed("decoder error", f"{type(error).__name__}: {error}"))


class _Worker:
    """A process, its pipe and the key of its current job."""

    def __init__(self, context: Any, task: Callable[[Any], Iterator[Any]]):
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, task), daemon=True)
        with hold_signals():
            resource_tracker.ensure_running()  # which unblocks signals
            with hold_signals():
                self.process.start()
        theirs.close()
        self.idle, self.key = False, None  # neither idle nor busy: it is starting
        self.last_message = time.monotonic()

    def start(self, key: Any, job: Any) -> None:
        self.key, self.idle, self.last_message = key, False, time.monotonic()
        with suppress(OSError):  # it died while idle: `_listen` notices
            self.pipe.send(job)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


class Workers:
    """Runs jobs in processes of one thread each.

    Args:
        task: a job -> its messages, one by one, none of them None. Must be picklable.
        count: number of processes.
        timeout: seconds without a message after which a worker is considered hung. It is killed and replaced.

    Raises:
        ValueError: fewer than one process, or processes that die before their first job.
    """

    def __init__(self, task: Callable[[Any], Iterator[Any]], count: int, timeout: float):
        if count < 1:
            raise ValueError(f"num_workers={count}: must be at least 1")
        self.task, self.count, self.timeout = task, count, timeout
        # A server that has imported everything forks workers and replacements in milliseconds, without the parent's
        # threads and its CUDA context.
        kind = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        self.context = multiprocessing.get_context(kind)
        if kind == "forkserver":
            self.context.set_forkserver_preload([__name__])

    def run(self, jobs: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        """(key, job) pairs -> (key, message) pairs, in order within a job, interleaved between jobs.

        A lost job gives `Failed` as its last message.
        """
        waiting, exhausted = iter(jobs), False
        workers = [_Worker(self.context, self.task) for _ in range(self.count)]
        try:
            while True:
                for worker in workers:
                    if worker.idle and not exhausted:
                        key, job = next(waiting, (None, None))
                        exhausted = key is None
                        if not exhausted:
                            worker.start(key, job)
                if exhausted and all(worker.key is None for worker in workers):
                    return
                yield from self._listen(workers)
        finally:
            for worker in workers:
                worker.kill()

    def _listen(self, workers: list[_Worker]) -> Iterator[tuple[Any, Any]]:
        """Wait for messages; replace workers that died or hung."""
        nearest = min((w.last_message for w in workers if w.key is not None), default=time.monotonic()) + self.timeout
        arrived = wait([worker.pipe for worker in workers], max(0.0, nearest - time.monotonic()))
        for number, worker in enumerate(workers):
            lost = None
            if worker.pipe in arrived:
                try:
                    message = worker.pipe.recv()
                except (EOFError, OSError):
                    worker.process.join()
                    lost = Failed("decoder died", f"its process ended with exit code {worker.process.exitcode}")
                else:
                    worker.last_message = time.monotonic()
                    if message is None:
                        worker.key, worker.idle = None, True
                    else:
                        yield worker.key, message
            elif worker.key is not None and time.monotonic() - worker.last_message > self.timeout:
                lost = Failed("decoder hung", f"no message for {self.timeout:g} s (timeout)")
            if lost is not None:
                if worker.key is None and not worker.idle:
                    raise ValueError(f"decoding failed before its first file: {lost.detail}; see above")
                worker.kill()
                workers[number] = _Worker(self.context, self.task)
                if worker.key is not None:
                    yield worker.key, lost
