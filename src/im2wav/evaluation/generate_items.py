"""Generate the audio of an evaluated model, resumably, and evaluate its codec and priors."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torchaudio.functional
from torch import Tensor

from im2wav.checkpoint import check_same_origin, load
from im2wav.cli import quoted, verb
from im2wav.data.pairs import PairsFolder
from im2wav.evaluation.audio_files import AudioFileSet
from im2wav.evaluation.code_metrics import batches, codec_figures, prior_figures
from im2wav.evaluation.figures import Plan
from im2wav.files import file_sha256, write_atomic
from im2wav.hub import KINDS, find_weights


def generate_audio(cfg: Any, images: Mapping[str, Path], numbers: Mapping[str, int], out: Path) -> None:
    """Generate audio for images with `im2wav.sample`: out/up/NAME_00.wav and so on. Existing files are kept.

    Args:
        cfg: options of the command: model, sampler, seed, batch_size, device and further options of sample.
        images: name -> photo or video.
        numbers: name -> how many audio files to generate.
        out: folder of the audio files.

    Raises:
        ValueError: generation failed, or the folder contains audio of another model or other options.
    """
    files = model_files(cfg)
    low, codec = load(files["low"], "low_prior"), load(files["codec"], "vqvae")
    nets: Any = {"low": low.net, "codec": codec.net}
    window = nets["low"].context_length * nets["codec"].hop_lengths["low"]  # samples, for longer videos as well
    encoder, seconds = low.data.get("encoder"), window / low.data.get("sample_rate", 16000)
    options = [f"{name}={quoted(path)}" for name, path in files.items()]
    options += [f"sampler.{k}={v}" for k, v in cfg.sampler.items() if not k.startswith("_")]
    options += [f"seed={cfg.seed}", *cfg.sample]
    state = {"files": {name: file_sha256(path) for name, path in files.items()}, "options": options[len(files) :]}
    settings, text = out / "settings.json", json.dumps(state, indent=1, sort_keys=True) + "\n"
    if settings.is_file() and settings.read_text() != text:
        raise ValueError(
            f"{out} contains audio of another model or other options ({settings}): set another out=DIR, or remove it"
        )
    write_atomic(settings, text.encode())
    for number in sorted(set(numbers.values())):
        names = [name for name, count in numbers.items() if count == number]
        todo = [name for name in names if not _done(out, name, number)]
        if not todo:
            continue
        folder = out / "inputs" / str(number)
        _link_images({name: images[name] for name in todo}, folder)
        arguments = [f"input={quoted(folder)}", f"out={quoted(out)}", f"num_samples={number}", f"encoder={encoder}"]
        arguments += [f"seconds={seconds}", "mux=false"]
        arguments += [f"batch_size={cfg.batch_size}", f"device={cfg.device}", *options]
        verb("sample", *arguments)
    shutil.rmtree(out / "inputs", ignore_errors=True)


def _done(out: Path, name: str, number: int) -> bool:
    return all((out / level / f"{name}_{k:02d}.wav").is_file() for level in ("up", "low") for k in range(number))


def _link_images(images: Mapping[str, Path], folder: Path) -> None:
    """Create a folder of links (or copies) to the images, named by item."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, path in images.items():
        target = folder / f"{name}{path.suffix.lower()}"
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.symlink(path.resolve(), target)
        except OSError:
            shutil.copyfile(path, target)


def model_files(cfg: Any) -> dict[str, Path]:
    """Files of the evaluated model; with `codec=FILE`, only the codec.

    Raises:
        ValueError: one is missing.
    """
    return {"codec": Path(cfg.codec)} if cfg.mode == "codec" else find_weights(Path(cfg.model_dir))


def reconstruct(reference: AudioFileSet, file: Path, device: str) -> AudioFileSet:
    """Codec reconstruction of the references from level `up`, cut to their length."""
    loaded = load(file, "vqvae")
    codec: Any = loaded.net.to(device)
    hop = codec.hop_lengths["low"]

    @torch.inference_mode()
    def process(wav: Tensor, rate: int) -> Tensor:
        own = int(loaded.data.get("sample_rate", rate))
        inside = torchaudio.functional.resample(wav, rate, own)
        padded = torch.nn.functional.pad(inside, (0, -len(inside) % hop))[None, None].to(device)
        decoded = codec.decode(codec.encode(padded)["up"], "up")[0, 0, : len(inside)].cpu().clamp(-1, 1)
        return torchaudio.functional.resample(decoded, own, rate)[: len(wav)]

    return replace(reference, title="codec", process=process)


def measure_codes(
    files: Mapping[str, Path], data: str | Path, split: str, seconds: float, plan: Plan, device: str
) -> dict[str, Any]:
    """Metrics of a codec and its priors, if any, on a pairs folder: `codec` and `priors`, by level.

    Uses the first window of each recording; for a codec without priors, the first `seconds`.

    Raises:
        ValueError: incompatible networks, embeddings of another encoder, or an empty split.
    """
    folder, loaded = PairsFolder(data), {name: load(path, KINDS[name]) for name, path in files.items()}
    nets: dict[str, Any] = {name: x.net.to(device) for name, x in loaded.items()}
    codec = nets["codec"]
    hop = codec.hop_lengths["low"]
    coarse = max(1, round(seconds * folder.info.sample_rate) // hop)
    if "low" in nets:
        check_same_origin(**loaded)
        about = loaded["low"].data
        folder.info.check_encoder(about["encoder"], about.get("weights_sha256"), f"model={files['low'].parent}")
        coarse = nets["low"].context_length

    def new_batches() -> Any:
        return batches(folder, split, coarse * hop, 4)

    figures = {"codec": codec_figures(codec, new_batches(), plan)}
    priors = {level: net for level, net in nets.items() if level != "codec"}
    return figures | ({"priors": prior_figures(codec, priors, new_batches(), plan)} if priors else {})
