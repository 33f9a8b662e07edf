"""Small networks, data and encoders that several test files use."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from im2wav.data.manifest import COLUMNS
from im2wav.data.pairs import DatasetInfo
from im2wav.decoding.decoder import Decoder
from im2wav.decoding.sampler import SamplingOptions
from im2wav.files import npy_bytes, state_sha256, table_bytes, wav_bytes, write_atomic
from im2wav.media.encoder import ImageEncoder, resized_square
from im2wav.prior import Conditions, Prior, Timing

RATE = 16000
GREEDY = SamplingOptions(top_k=1)
SIZES = {"width": 32, "depth": 6, "heads": 2, "blocks": 8}


def low_prior(**conditioning) -> Prior:
    torch.manual_seed(1)
    options = {"clip_dim": 6, "map_width": 8, "frames": True, "timing": True, "guidance": True, **conditioning}
    return sharpened(Prior(16, 64, SIZES, options)).eval()


def up_prior() -> Prior:
    torch.manual_seed(1)
    options = {"clip_dim": 6, "map_width": 8, "upsampler": {"strides": [2, 2], "width": 8, "depth": 3}}
    return sharpened(Prior(16, 64, SIZES, options)).eval()


def sharpened(prior: Prior) -> Prior:
    """Fresh weights are so small that all logits are nearly equal; larger ones make differences visible."""
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return prior


def conditions(batch=3, frames=5, coarse=False) -> Conditions:
    torch.manual_seed(2)
    timing = Timing(torch.full((batch,), 1.6e5), torch.arange(batch) * 1e4, torch.full((batch,), 65536.0))
    codes = torch.randint(16, (batch, 16)) if coarse else None
    return Conditions(torch.randn(batch, frames, 6), timing, codes)


CASES = [(low_prior, conditions()), (up_prior, conditions(coarse=True))]


def forced_logits(decoder: Decoder, codes, given, prefix=0, options=GREEDY):
    """Logits [R, n - prefix, K] of the engine along given codes."""
    uniform = torch.zeros(codes.shape, dtype=torch.float64)
    decoding = decoder.start(given, uniform, options, codes[:, :prefix])
    parts = []
    for t in range(prefix, codes.shape[1]):
        parts.append(decoding.logits())
        decoding.feed(codes[:, t])
    return torch.stack(parts, 1)


def make_pairs(root, seconds=(3.0, 0.5), fps=10.0, splits=("train", "train")):
    """A pairs folder whose sound says its own sample number and whose embeddings say their own frame number."""
    DatasetInfo("test", 2, "0" * 64, fps).write(root)
    rows = []
    for i, (length, split) in enumerate(zip(seconds, splits, strict=True)):
        samples, frames = int(length * RATE), int(length * fps) if fps else 1
        ramp = torch.arange(samples) / 65536
        write_atomic(root / f"wav/{i}.wav", wav_bytes(ramp, RATE))
        clip = np.stack([np.arange(frames), np.full(frames, i)], 1).astype(np.float16)
        write_atomic(root / f"clip/{i}.npy", npy_bytes(clip))
        size = {"samples": samples, "frames": frames, "source": "", "group": ""}
        rows.append({"id": f"{i}", "label": "", "split": split, "wav": f"wav/{i}.wav", "clip": f"clip/{i}.npy", **size})
    write_atomic(root / "manifest.csv", table_bytes(COLUMNS, rows))
    return root


TINY_ENCODER = ["encoder=efficientnet_lite2", "encoder._target_=helpers.TinyEncoder", "encoder.name=tiny"]
TINY_ENCODER += ["encoder.dim=16", "trainer.accelerator=cpu", "trainer.devices=1", "num_workers=1", "threads=1"]


class TinyEncoder(ImageEncoder):
    def __init__(self, name: str = "tiny", dim: int = 16, pseudo_embeddings: str | None = None):
        super().__init__()
        self.name, self.dim, self.size, self.pseudo_embeddings = name, dim, 32, pseudo_embeddings
        self.crop = partial(resized_square, size=32)
        self.net = nn.Linear(3 * 32 * 32, dim)
        with torch.no_grad():
            self.net.weight.copy_(torch.randn(dim, 3072, generator=torch.Generator().manual_seed(0)) / 50)
            self.net.bias.zero_()
        self.weights_sha256 = state_sha256(self.state_dict())

    def normalise(self, squares):
        return squares.float() / 128 - 1

    def embed(self, images):
        return self.net(images.flatten(1))


def crop_or_hang(image):
    """A decoder that hangs with images 13 pixels wide, and dies with those 17 pixels wide."""
    width = image.size[0]
    if width == 13:
        time.sleep(1000)
    if width == 17:
        os.kill(os.getpid(), signal.SIGKILL)
    return resized_square(image, size=32)


class FragileEncoder(TinyEncoder):
    def __init__(self, name: str = "tiny", dim: int = 16, pseudo_embeddings: str | None = None):
        super().__init__(name, dim)
        self.crop = crop_or_hang


STEADY = [
    "data.global_batch_size=4",
    "data.windows_per_epoch=12",
    "trainer.limit_val_batches=0",
    "model.scheduler.steps=1",
    "model.net.codebook.restart_threshold=0",
    "callbacks.checkpoint.every_n_epochs=null",
    "callbacks.checkpoint.every_n_steps=2",
]


def losses(folder) -> list[str]:
    rows = []
    for path in sorted(folder.glob("csv/version_*/metrics.csv")):
        with path.open(newline="") as file:
            rows += [(int(row["step"]), row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    return [loss for _, loss in sorted(dict(rows).items())]


class PeakMemory:
    """Peak resident memory in MiB, sampled every 50 ms: `largest` of a descendant of this process, `total` of all."""

    def __enter__(self):
        self.largest = self.total = 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join()

    def _watch(self):
        while not self._end.wait(0.05):
            parents, sizes = {}, {}
            for path in Path("/proc").glob("[0-9]*/stat"):
                try:
                    fields = path.read_text().rpartition(")")[2].split()
                except OSError:  # it has ended
                    continue
                parents[int(path.parent.name)] = int(fields[1])
                sizes[int(path.parent.name)] = int(fields[21]) * os.sysconf("SC_PAGE_SIZE") / 2**20
            ours = {os.getpid()}
            while more := {child for child, parent in parents.items() if parent in ours} - ours:
                ours |= more
            self.largest = max([self.largest, *(sizes[child] for child in ours - {os.getpid()})])
            self.total = max(self.total, sum(sizes[process] for process in ours))


PROCESS_ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent / "training"), *sys.path]),
}


def run_on_two(runs: list[list[str]], attempts: int = 2) -> None:
    """Make training runs one after the other on two processes.

    A process that libraries have crashed ("malloc(): unaligned tcache chunk detected" was seen once) starts again, with
    a warning that says where it happened.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    script = [sys.executable, str(Path(__file__).parent / "training/train_runs.py"), json.dumps(runs)]
    processes = [
        subprocess.Popen(
            script, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**PROCESS_ENVIRONMENT, **group, "LOCAL_RANK": str(rank), "NODE_RANK": "0"},
        )
        for rank in (0, 1)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    codes = [process.returncode for process in processes]
    if attempts > 1 and {-signal.SIGABRT, -signal.SIGSEGV} & {*codes}:
        warnings.warn(f"exit codes {codes}, starting again:\n" + "\n".join(x[-3000:] for x in outputs), stacklevel=1)
        run_on_two(runs, attempts - 1)
        return
    for code, output in zip(codes, outputs, strict=True):
        assert code == 0, output[-3000:]
