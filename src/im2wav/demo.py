"""`python -m im2wav.demo`: the whole way on the shipped pairs, and a page that shows what came of it.

Embeds the pairs, trains the three models at small size, samples for all pictures and writes runs/demo/index.html and
runs/demo/metrics.json. Each stage is the command that a user would type.
"""

from __future__ import annotations

import csv
import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from im2wav.cli import CONF, one_line, quoted, register_resolvers, run, verb

if TYPE_CHECKING:
    from torch import Tensor

    from im2wav.data.datamodule import PairsDataModule

log = logging.getLogger(__name__)
register_resolvers()

ASSETS = Path(__file__).parent / "assets" / "pairs"
STAGES = ("vqvae", "low_prior", "up_prior")


@contextmanager
def timed(seconds: dict[str, float], name: str):
    """Note how long a stage takes."""
    start = time.monotonic()
    yield
    seconds[name] = round(time.monotonic() - start, 1)


def make(cfg: DictConfig, out: Path) -> dict[str, float]:
    """Embed, train and sample; returns the seconds that each stage took."""
    seconds: dict[str, float] = {}
    runs = [f"paths.runs={quoted(cfg.paths.runs)}", f"seed={cfg.seed}"]
    for made in ("pairs", "samples", "own"):  # of an earlier demo
        shutil.rmtree(out / made, ignore_errors=True)
    with timed(seconds, "embed"):
        verb(
            "embed",
            "encoder=efficientnet_lite2",
            f"input={quoted(ASSETS)}",
            f"out={quoted(out / 'pairs')}",
            "loudness=-18",
        )
    for stage in STAGES:
        with timed(seconds, stage):
            verb("train", f"experiment=demo/{stage}", "overwrite=true", *runs, *cfg.demo.overrides)
    with timed(seconds, "sample"):
        common = ["run_name=demo", "encoder=efficientnet_lite2", "batch_size=64", *runs]
        common += [f"sampler.{k}={v}" for k, v in cfg.sampler.items() if not k.startswith("_")]
        verb("sample", f"input={quoted(ASSETS / 'images')}", f"out={quoted(out / 'samples')}", *common)
        if cfg.demo.images:
            verb("sample", f"input={quoted(cfg.demo.images)}", f"out={quoted(out / 'own')}", "max_bad=1", *common)
    return seconds


def nets(out: Path) -> dict[str, Any]:
    """The three trained nets."""
    from im2wav.checkpoint import load_net

    return {stage: load_net(out / stage / "last.ckpt", stage) for stage in STAGES}


def recordings(data: PairsDataModule, split: str) -> dict[str, Tensor]:
    """Whole recordings [N] of a split by id; short ones repeated to the window, as the models saw them."""
    windows = data.windows[split]
    found = {}
    for pair in windows.pairs:
        wav = data.folder.read_wav(pair)
        found[pair.id] = wav.repeat(max(1, -(-windows.num_samples // len(wav))))[: max(len(wav), windows.num_samples)]
    return found


def unseen(data: PairsDataModule) -> list[Any]:
    """Validation pairs whose picture is not, byte for byte, among the training pictures."""
    seen = {Path(pair.source).read_bytes() for pair in data.windows["train"].pairs}
    return [pair for pair in data.windows["valid"].pairs if Path(pair.source).read_bytes() not in seen]


def codec_figures(codec: Any, data: PairsDataModule) -> dict[str, Any]:
    """How well training windows come back from their codes, by level, and how many codes are in use."""
    import torch

    from im2wav.evaluation.distance import log_mel, mel_distance, si_sdr

    batch = next(iter(data.loader("train")))
    figures: dict[str, Any] = {}
    with torch.inference_mode():
        for level, codes in codec.encode(batch.wav).items():
            wav = codec.decode(codes, level)
            rate = data.folder.info.sample_rate
            distances = [
                mel_distance(log_mel(a[0], rate), log_mel(b[0], rate)) for a, b in zip(wav, batch.wav, strict=True)
            ]
            share = codes.flatten().bincount(minlength=codec.codebook_size) / codes.numel()
            figures[level] = {
                "si_sdr_db": si_sdr(batch.wav, wav).mean().item(),
                "mel_distance": sum(distances) / len(distances),
                "codes_used": int((share > 0).sum()),
                "perplexity": torch.special.entr(share).sum().exp().item(),
                "wav": dict(zip(batch.id, wav[:, 0], strict=True)),
            }
    return figures


def bits_figures(models: Mapping[str, Any], data: PairsDataModule, split: str) -> dict[str, dict[str, float]]:
    """Bits per code of both priors on one split: with the condition, with another item's, without (where learnt)."""
    import torch

    from im2wav.prior import Conditions, Timing

    batch = next(iter(data.loader(split)))
    codes = models["vqvae"].encode(batch.wav)
    roll = torch.arange(len(batch.wav)).roll(1)
    figures = {}
    with torch.inference_mode():
        for stage, level in (("low_prior", "low"), ("up_prior", "up")):
            conditions = Conditions(batch.clip, Timing(**batch.timing), codes["low"] if level == "up" else None)
            ways = {"condition": conditions, "shuffled": conditions.take(roll)}
            if models[stage].can_be_guided:
                ways["none"] = conditions.null_like()
            figures[stage] = {way: models[stage].bits(codes[level], c).item() for way, c in ways.items()}
    return figures


def read_curves(out: Path) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Loss curves of the three trainings, from their csv logs."""
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for stage in STAGES:
        newest = max((out / stage / "csv").glob("version_*/metrics.csv"), key=lambda p: p.stat().st_mtime_ns)
        with newest.open(newline="") as file:
            rows = list(csv.DictReader(file))
        curves[stage] = {}
        for name in ("train/loss", "valid/loss"):
            points = [(float(row["step"]), float(row[name])) for row in rows if row.get(name)]
            if points:
                curves[stage][name] = points
    return curves


def measure(out: Path, data: PairsDataModule, models: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """All figures of the demo, and what the page needs besides: sounds and nearest recordings by id."""
    from im2wav.evaluation.retrieval import nearest, share_right, share_shuffled

    rate = data.folder.info.sample_rate
    real, held = recordings(data, "train"), recordings(data, "valid")
    ids, sounds = list(real), list(real.values())
    labels = {pair.id: pair.label for pair in data.folder.pairs}
    generated = {level: _read_sounds(out / "samples" / level, rate) for level in ("up", "low")}
    codec = codec_figures(models["vqvae"], data)
    found = {
        "train": nearest([generated["up"][i] for i in ids], sounds, rate),
        "draft": nearest([generated["low"][i] for i in ids], sounds, rate),
        "reconstruction": nearest([codec["up"]["wav"][i] for i in ids], sounds, rate),
    }
    new = [pair.id for pair in unseen(data)]
    found_new = nearest([generated["up"][i] for i in new], sounds, rate)
    right = list(range(len(ids)))
    figures = {
        "retrieval_train": share_right(found["train"], right),
        "retrieval_shuffled": share_shuffled(found["train"], right),
        "retrieval_draft": share_right(found["draft"], right),
        "retrieval_reconstruction": share_right(found["reconstruction"], right),
        "sounds": len(ids),
        "unseen_same_label": sum(labels[ids[n]] == labels[i] for n, i in zip(found_new, new, strict=True)),
        "unseen_sounds": len(new),
        "codec": {level: {k: v for k, v in f.items() if k != "wav"} for level, f in codec.items()},
        "bits_per_code": {split: bits_figures(models, data, split) for split in ("train", "valid")},
    }
    nearest_ids = {i: ids[n] for i, n in zip([*ids, *new], [*found["train"], *found_new], strict=True)}
    return figures, {"real": {**real, **held}, "generated": generated, "nearest": nearest_ids, "train": ids, "new": new}


def _read_sounds(folder: Path, sample_rate: int) -> dict[str, Tensor]:
    from im2wav.data.media import read_audio

    return {path.stem.removesuffix("_00"): read_audio(path, sample_rate) for path in sorted(folder.glob("*_00.wav"))}


def write(
    out: Path, data: PairsDataModule, figures: Mapping[str, Any], sounds: Mapping[str, Any], own: str | None
) -> None:
    """Write the page."""
    from im2wav.data.media import IMAGE_SUFFIXES
    from im2wav.data.sources import item_name
    from im2wav.evaluation.page import Card, Section, curves, write_page

    rate, window = data.folder.info.sample_rate, data.windows["train"].num_samples
    labels = {pair.id: pair.label for pair in data.folder.pairs}
    pictures = {pair.id: Path(pair.source) for pair in data.folder.pairs}

    def cards(ids: Sequence[str]) -> list[Card]:
        return [
            Card(
                labels[i],
                pictures[i],
                {
                    "real": sounds["real"][i][:window],
                    "generated": sounds["generated"]["up"][i],
                    "draft (low)": sounds["generated"]["low"][i],
                },
                f"{i}: nearest training recording is {sounds['nearest'][i]}"
                + (" (its own)" if sounds["nearest"][i] == i else ""),
            )
            for i in ids
        ]

    sections = [
        Section(
            "Pictures that were never seen",
            "Held out of training, while other pictures of their kind were not. With so few to learn from, expect "
            "the sound of some look-alike, or a blend.",
            cards(sounds["new"]),
        ),
        Section(
            "Pictures of the training set",
            "What the models were shown, and what they make of it.",
            cards(sounds["train"]),
        ),
    ]
    if own:
        heard = {level: _read_sounds(out / "own" / level, rate) for level in ("up", "low")}
        files = {item_name(p, Path(own)): p for p in sorted(Path(own).rglob("*")) if p.suffix.lower() in IMAGE_SUFFIXES}
        mine = [
            Card(name, files[name], {"generated": wav, "draft (low)": heard["low"][name]})
            for name, wav in heard["up"].items()
            if name in files
        ]
        sections.insert(0, Section("Your own pictures", f"From {own}.", mine))
    write_page(
        out / "index.html",
        "im2wav: hearing pictures",
        f"Three small models, trained on {figures['sounds']} pictures and their sounds in "
        f"{figures['seconds']['total'] / 60:.0f} minutes, made the sounds on this page from the pictures alone. Models "
        "this small, with so few examples, learn their sounds by heart: what they prove is that every part works "
        "together. Hearing pictures that were never seen takes more data and larger models.",
        tables(figures),
        curves(read_curves(out)),
        sections,
        rate,
    )


def tables(figures: Mapping[str, Any]) -> dict[str, list[Sequence[Any]]]:
    """The figures as tables for the page."""
    retrieval: list[Sequence[Any]] = [
        ("sounds", "share", "what it says"),
        ("generated", figures["retrieval_train"], "the demo passes at 0.7"),
        ("generated, pictures shuffled", figures["retrieval_shuffled"], "chance"),
        ("drafts of the low prior", figures["retrieval_draft"], "before the up prior refines them"),
        ("codec reconstructions", figures["retrieval_reconstruction"], "the ceiling: real sounds through the codec"),
    ]
    codec: list[Sequence[Any]] = [("level", "SI-SDR, dB", "mel distance", "codes used", "perplexity")]
    codec += [
        (level, f["si_sdr_db"], f["mel_distance"], f["codes_used"], f["perplexity"])
        for level, f in figures["codec"].items()
    ]
    bits: list[Sequence[Any]] = [("prior, pictures", "with its condition", "with another's", "with no picture")]
    bits += [
        (f"{stage}, {split}", f["condition"], f["shuffled"], f.get("none", "not learnt"))
        for split, stages in figures["bits_per_code"].items()
        for stage, f in stages.items()
    ]
    return {
        "Is the nearest training recording the one of the picture?": retrieval,
        "Codec: training windows through their codes": codec,
        "Priors: bits per code (lower is better)": bits,
        "Time": [("stage", "seconds"), *figures["seconds"].items()],
    }


def demo(cfg: DictConfig) -> dict[str, Any]:
    """Run the whole demo; returns the figures."""
    from im2wav.data.datamodule import PairsDataModule
    from im2wav.data.pairs import write_atomic

    start, out = time.monotonic(), Path(cfg.paths.runs) / "demo"
    seconds = make(cfg, out)
    models = nets(out)
    num_samples = models["low_prior"].context_length * models["vqvae"].hop_lengths["low"]
    data = PairsDataModule(str(out / "pairs"), num_samples, batch_size=64, crop="start")
    with timed(seconds, "measure"):
        figures, sounds = measure(out, data, models)
    figures["seconds"] = {**seconds, "total": round(time.monotonic() - start, 1)}
    write(out, data, figures, sounds, cfg.demo.images)
    write_atomic(out / "metrics.json", (json.dumps(figures, indent=2) + "\n").encode())
    log.info(
        "\nretrieval_train %.2f (chance %.2f): for that share of %d generated sounds the nearest training recording is "
        "the one of the picture\nfigures: %s\nopen the page: %s",
        figures["retrieval_train"],
        figures["retrieval_shuffled"],
        figures["sounds"],
        out / "metrics.json",
        (out / "index.html").resolve(),
    )
    return figures


@one_line
@hydra.main(version_base="1.3", config_path=CONF, config_name="demo")
def main(cfg: DictConfig) -> None:
    """Entry."""
    run(demo, cfg)


if __name__ == "__main__":
    main()
