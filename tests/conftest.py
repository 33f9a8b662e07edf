import csv
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from im2wav.system import SIGNALS

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # fail at once instead of retrying without a network
os.environ["WANDB_SILENT"] = "true"
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell starts background jobs so: tests interrupt commands
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPO = Path(__file__).resolve().parents[1]
SHARED = REPO.parent / "shared"
ASSETS = REPO / "src" / "im2wav" / "assets" / "pairs"

HAS_COMPILER = shutil.which("g++") is not None  # TorchInductor writes C++
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler")

# six shipped pairs: two of one label, one of them held out
IDS = ("bird_02", "bird_03", "cat_03", "cow_04", "owl_03", "scream_01")

# the real networks, small enough for a second
TINY_ON_ANY_TRAINER = [
    "encoder=efficientnet_lite2",
    "trainer.log_every_n_steps=1",
    "codes.size=32",
    "data.num_samples=4096",
    "data.num_workers=0",
    "data.batch_size=5",
]
TINY = [*TINY_ON_ANY_TRAINER, "trainer=cpu"]
TINY_NET = {
    "vqvae": [
        "model.net.width=8",
        "model.net.depth=2",
        "model.net.code_dim=16",
        "model.net.codebook.restart_threshold=0.1",
    ],
    "low_prior": ["model.net.transformer={width: 32, depth: 3, heads: 2, blocks: 8}"],
    "up_prior": [
        "model.net.transformer={width: 32, depth: 3, heads: 2, blocks: 8}",
        "model.net.conditioning.upsampler.width=16",
        "model.net.conditioning.upsampler.depth=2",
    ],
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need ../shared, and skip those that need a real GPU where there is none.

    `tests/training` and the notebooks take longest and come first, so that the workers of pytest-xdist end together.
    """
    items.sort(key=lambda item: {"training", "notebooks"}.isdisjoint(item.path.parts))
    needs_gpu = [item for item in items if item.get_closest_marker("gpu")]
    for item in items:
        if "shared" in getattr(item, "fixturenames", ()):
            item.add_marker("shared")
    if not needs_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in needs_gpu:
            item.add_marker(pytest.mark.skip(reason="no CUDA GPU"))


def command(verb: str, *arguments: str) -> int:
    """Call an entry as the shell does, in this process: its exit code."""
    import importlib

    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    argv, sys.argv = sys.argv, [verb, *map(str, arguments)]
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        importlib.import_module(f"im2wav.{verb}").main()
    except SystemExit as stop:
        return int(stop.code or 0) if not isinstance(stop.code, str) else 1
    finally:
        sys.argv = argv
        for number, handler in handlers.items():  # an interrupted command ignores further signals
            signal.signal(number, handler)
    return 0


def config(name: str, *overrides: str, output: Path | None = None):
    """Compose a primary config as an entry gets it."""
    from hydra import compose, initialize_config_dir

    from im2wav.cli import CONF, register_resolvers, rewrite

    register_resolvers()
    where = [f"paths.output={output}", f"paths.runs={output}"] if output else []
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose(name, rewrite(name, [*map(str, overrides), *where]))


def tiny_config(model: str, root: Path, output: Path, *overrides: str):
    """Configuration of a tiny training run."""
    arguments = [f"model={model}", f"data.root={root}", *TINY, *TINY_NET[model], *overrides]
    return config("train", *arguments, output=output)


def logged_values(folder: Path, name: str = "train/loss", version: str = "version_0") -> list[float]:
    """The values of a metric in the csv log of a run that was started once, in their order."""
    with (folder / "csv" / version / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


@pytest.fixture(scope="session")
def pairs(tmp_path_factory) -> Path:
    """A pairs folder of a few shipped pairs, made by the real `embed`."""
    folder = tmp_path_factory.mktemp("source")
    with (ASSETS / "manifest.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["id"] in IDS]
    for row in rows:
        row |= {"image": str(ASSETS / row["image"]), "audio": str(ASSETS / row["audio"])}
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    out = tmp_path_factory.mktemp("data") / "pairs"
    options = ["encoder=efficientnet_lite2", "trainer=cpu", "loudness=-18"]
    assert command("embed", f"input={folder}", f"out={out}", *options) == 0
    return out


@pytest.fixture(scope="session")
def trained(pairs, tmp_path_factory) -> Path:
    """A folder of runs with three tiny models that belong together, trained for a few steps by the real `train`."""
    from im2wav.train import train

    runs = tmp_path_factory.mktemp("runs")
    for model in ("vqvae", "low_prior", "up_prior"):
        codec = f"codec={runs}/base/vqvae/last.ckpt"
        train(tiny_config(model, pairs, runs / "base" / model, "trainer.max_steps=3", codec))
    return runs


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("../shared is not here: official examples and golden data are not shipped")
    return SHARED


def write_wav(path: Path, samples: np.ndarray, rate: int = 16000) -> Path:
    soundfile.write(path, samples, rate)
    return path


def tone(seconds: float = 1.0, rate: int = 16000, hertz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


def write_mp4(path: Path, seconds: float = 2.0, fps: int = 10, audio: bool = True, rate: int = 44100) -> Path:
    """A small real H.264 video, dark to bright, with a stereo AAC track: a tone on the left, silence on the right."""
    import av

    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=fps)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("aac", rate=rate, layout="stereo") if audio else None
        count = int(seconds * fps)
        for i in range(count):
            pixels = np.full((48, 64, 3), 20 + 200 * i // max(count - 1, 1), np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video.encode())
        if sound is not None:
            left = tone(seconds, rate).astype(np.float32)
            for start in range(0, len(left), 1024):
                part = left[start : start + 1024]
                frame = av.AudioFrame.from_ndarray(np.stack([part, 0 * part]), format="fltp", layout="stereo")
                frame.sample_rate, frame.pts = rate, start
                container.mux(sound.encode(frame))
            container.mux(sound.encode())
    return path


@pytest.fixture(scope="session")
def clip_file(tmp_path_factory):
    """A CLIP ViT-B/32 of the true layout with random weights: the published ones cannot be fetched in a test."""
    import open_clip
    import torch

    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32-quickgelu", pretrained=None)
    path = tmp_path_factory.mktemp("clip") / "clip.pt"
    torch.save(model.state_dict(), path)
    return path, model.eval()


FIGURES: list[tuple[str, str]] = []


@pytest.fixture
def figure():
    """Record a figure of `pytest -m gpu`; all of them come as a table to paste into an issue."""

    def record(name: str, value: float, unit: str, note: str = "") -> None:
        FIGURES.append((name, f"{value:.4g} {unit}{f' ({note})' if note else ''}"))

    return record


def pytest_terminal_summary(terminalreporter):
    if not FIGURES:
        return
    import platform

    import torch

    card = torch.cuda.get_device_properties(0)
    head = f"{card.name}, {card.total_memory / 1e9:.0f} GB; torch {torch.__version__} (CUDA {torch.version.cuda}), "
    terminalreporter.write_line(f"\n{head}Python {platform.python_version()}, im2wav tests -m gpu\n")
    for line in ("| what | figure |", "|---|---|", *(f"| {name} | {value} |" for name, value in FIGURES)):
        terminalreporter.write_line(line)
