"""Kill a command with SIGKILL at random moments, repeat it, and compare its files with those of an undisturbed run.

    python experiments/robustness/kill.py COMMAND [KILLS] [SEED] [FOLDER]

COMMAND is embed, train, sample, tokenize or shard, on the shipped pairs with tiny networks. Each run is a process that
is forked after the package was imported. The moments are uniform from 0.8 of the time to the first result of an
undisturbed run to its end, so that most of them hit its work. Every other kill goes to all its processes, as at the end
of a container; the others to the command alone, as when memory runs out. Needs Linux, and the extras `offline` and
`shards`.
"""

import hashlib
import importlib
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch

PAIRS = Path(__file__).resolve().parents[2] / "src/im2wav/assets/pairs"
PACKAGES = ("inference.command", "media.encoder", "prepare.code_cache", "prepare.embedding", "prepare.shard_writer")
PACKAGES += (
    "training.dashboard",
    "training.ema",
    "training.monitor",
    "training.priors",
    "training.run",
    "training.vqvae",
)
IMPORTED = [*(f"im2wav.{name}" for name in PACKAGES), "decord", "efficientnet_lite_pytorch", "litdata", "wandb"]
# Not compared: logs, which have a part for each start of a training, and the lock of a run folder (a process id)
LOGS = ("csv/", "train.log", ".lock")
ENCODER = "encoder=efficientnet_lite2"
TINY = [
    ENCODER,
    "trainer=cpu",
    "data.num_samples=4096",
    "data.batch_size=4",
    "codes.size=32",
    "callbacks.progress=null",
]
TRANSFORMER = "model.net.transformer={width: 32, depth: 3, heads: 2, blocks: 8}"
UPSAMPLER = ["model.net.conditioning.upsampler.width=16", "model.net.conditioning.upsampler.depth=2"]
NETS = {
    "vqvae": ["model.net.width=8", "model.net.depth=2", "model.net.code_dim=16"],
    "low_prior": [TRANSFORMER],
    "up_prior": [TRANSFORMER, *UPSAMPLER],
}
RESULTS = {
    "embed": "clip/*.npy",
    "train": "checkpoints/*",
    "sample": "low/*",
    "tokenize": "*/*/*.npy",
    "shard": "*/chunk*",
}
LONGEST_START, LONGEST_END = 100.0, 15.0  # s until a command writes a file, and until workers notice that it is gone
log = logging.getLogger("kill")


def start(verb: str, arguments: list[str], output: Path) -> int:
    """Run a command in a forked process with its own session; returns its process id."""
    process = os.fork()
    if process:
        return process
    os.setsid()
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    code = 1
    try:
        sys.argv = [verb, *arguments]
        importlib.import_module(f"im2wav.{verb}").main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.stdout.flush()
        os._exit(code)


def finish(process: int, output: Path) -> None:
    """Wait for a command that must succeed."""
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if status:
        raise SystemExit(f"exit code {status}:\n{output.read_text()[-3000:]}")


def kill(process: int, whole_group: bool) -> bool:
    """Send SIGKILL; returns whether the command was still running."""
    (os.killpg if whole_group else os.kill)(process, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(process, 0)[1])


def add_content(digest: Any, value: Any) -> None:
    """Add a checkpoint's content to a hash. Its bytes also depend on which equal strings are one object."""
    if isinstance(value, torch.Tensor):
        digest.update(f"{value.dtype} {tuple(value.shape)}".encode() + value.contiguous().view(-1).numpy().tobytes())
    elif isinstance(value, Mapping):
        for key, item in value.items():
            digest.update(f"{key!r}:".encode())
            add_content(digest, item)
    elif isinstance(value, list | tuple):
        digest.update(f"{len(value)} items:".encode())
        for item in value:
            add_content(digest, item)
    else:
        digest.update(f"{value!r}".encode())


def contents(folder: Path) -> dict[str, str]:
    """Hashes of all compared files, by their path."""
    hashes = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        digest = hashlib.sha256()
        if path.suffix == ".ckpt":
            checkpoint = torch.load(path, weights_only=True)
            for count in checkpoint["loops"]["fit_loop"]["epoch_progress"].values():
                del count[
                    "processed"
                ]  # Lightning counts an epoch twice after resuming from its end; only max_epochs uses it
            add_content(digest, checkpoint)
        elif path.suffix == ".json" and "timing" in (about := json.loads(path.read_text(encoding="utf-8"))):
            digest.update(repr({**about, "timing": None}).encode())  # seconds that the generation took, and batch size
        elif not name.startswith(LOGS):
            digest.update(path.read_bytes())
        hashes[name] = digest.hexdigest()
    return {name: value for name, value in hashes.items() if not name.startswith(LOGS)}


def train(model: str, steps: int, folder: Path) -> list[str]:
    """Arguments of a tiny training."""
    steps_of_run = [f"trainer.max_steps={steps}", "data.windows_per_epoch=32", "resume=auto", "data.num_workers=1"]
    every = ["callbacks.checkpoint.every_n_steps=4", "trainer.log_every_n_steps=1"]
    places = [f"data.root={folder / 'pairs'}", f"hydra.run.dir={folder / 'runs/base' / model}"]
    codec = f"codec={folder / 'runs/base/vqvae/last.ckpt'}"
    return [
        f"model={model}",
        *TINY,
        *NETS[model],
        *steps_of_run,
        *every,
        *places,
        f"paths.runs={folder / 'runs'}",
        codec,
    ]


def some_pairs(folder: Path) -> None:
    """Every third of the shipped pairs, as a folder with a manifest."""
    lines = (PAIRS / "manifest.csv").read_text(encoding="utf-8").splitlines()
    shutil.copytree(PAIRS, folder)
    kept = [lines[0], *lines[1::3]]
    (folder / "manifest.csv").write_text("\n".join(kept) + "\n", encoding="utf-8")
    for path in sorted((folder / "images").iterdir()):
        if not any(f"images/{path.name}," in line for line in kept):
            path.unlink()


def prepare(verb: str, folder: Path) -> tuple[list[str], Path]:
    """Make what a command reads; returns its arguments and the folder that it writes."""
    pairs, out, output = folder / "pairs", folder / "out", folder / "prepare.txt"
    some_pairs(folder / "source")
    embed = [f"input={folder / 'source'}", ENCODER, "trainer=cpu", "num_workers=2", "threads=1", "batch_size=4"]
    if verb == "embed":
        return [*embed, f"out={out}"], out
    finish(start("embed", [*embed, f"out={pairs}"], output), output)
    if verb == "shard":
        return [f"data.root={pairs}", f"out={out}", "chunk_mb=0.05"], out
    if verb == "train":
        return train("vqvae", 16, folder), folder / "runs/base/vqvae"
    for model in NETS if verb == "sample" else ["vqvae"]:
        finish(start("train", train(model, 4, folder), output), output)
    if verb == "tokenize":
        codec = f"codec={folder / 'runs/base/vqvae/last.ckpt'}"
        return [f"data.root={pairs}", codec, "data.num_samples=4096", "data.num_workers=1"], pairs / "codes"
    options = ["batch_size=2", "seconds=0.25"]
    return [f"input={folder / 'source/images'}", ENCODER, f"paths.runs={folder / 'runs'}", f"out={out}", *options], out


def disturb(verb: str, kills: int, seed: int, folder: Path) -> None:
    """Kill and repeat a command, and log a table row."""
    arguments, out = prepare(verb, folder)
    shutil.rmtree(out, ignore_errors=True)
    began, process = time.monotonic(), start(verb, arguments, folder / "undisturbed.txt")
    while not any(out.glob(RESULTS[verb])) and time.monotonic() < began + LONGEST_START:
        time.sleep(0.005)
    first = time.monotonic() - began
    finish(process, folder / "undisturbed.txt")
    seconds = time.monotonic() - began
    expected, moments = contents(out), random.Random(seed)
    hit, differing = {"before": 0, "during": 0, "after": 0}, 0
    for number in range(kills):
        shutil.rmtree(out)
        output = folder / f"{number}.txt"
        process = start(verb, arguments, output)
        moment = moments.uniform(0.8 * first, seconds)
        time.sleep(moment)
        running = kill(process, number % 2 == 0)
        there = len(list(out.glob(RESULTS[verb])))
        hit["after" if not running else "during" if there else "before"] += 1
        again = start(verb, arguments, output)
        finish(again, output)
        found = contents(out)
        changed = sorted(name for name in found.keys() | expected if found.get(name) != expected.get(name))
        differing += bool(changed)
        log.info("%d: at %.2f of %.2f s, %d results; different: %s", number, moment, seconds, there, changed or "none")
        end_of_group(process)
    log.info(
        "| command | kills | before its first result | during | after its end | identical files after the repeat |"
    )
    log.info("| `%s` | %d | %d | %d | %d | %d of %d |", verb, kills, *hit.values(), kills - differing, kills)
    if differing:
        raise SystemExit(1)


def end_of_group(group: int) -> None:
    """Wait until all processes of a killed command are gone.

    Raises:
        SystemExit: some stay.
    """
    deadline = time.monotonic() + LONGEST_END
    while any(is_of_session(path, group) for path in Path("/proc").glob("[0-9]*/stat")):
        if time.monotonic() > deadline:
            os.killpg(group, signal.SIGKILL)
            raise SystemExit(f"processes of the killed command live after {LONGEST_END:g} s")
        time.sleep(0.1)


def is_of_session(path: Path, session: int) -> bool:
    """Whether the process of a file /proc/PID/stat belongs to a session, and lives."""
    try:
        state, _, _, number, *_ = path.read_text().rpartition(")")[2].split()
        return int(number) == session and state != "Z"
    except OSError:  # it has just ended
        return False


def main() -> None:
    """Read the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    verb, kills, seed, folder, *_ = [*sys.argv[1:], *["embed", "20", "0", ""][len(sys.argv) - 1 :]]
    for name in IMPORTED:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory(dir=folder or None) as temporary:
        disturb(verb, int(kills), int(seed), Path(temporary))


if __name__ == "__main__":
    main()
