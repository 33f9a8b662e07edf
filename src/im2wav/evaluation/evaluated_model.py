"""The networks of an evaluated model: generate its audio, reconstruct references, and evaluate codec and priors."""

import gc
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torchaudio.functional
from torch import Tensor

from im2wav.checkpoint import KINDS, check_same_origin, find_weights, load
from im2wav.data.pairs import PairsFolder
from im2wav.data.windows import Batch, WindowDataset, collate
from im2wav.decoding.sampler import given_sampling
from im2wav.evaluation.audio_files import AudioFileSet
from im2wav.evaluation.figures import Plan, mean_figure
from im2wav.evaluation.metrics import code_usage, log_stft_distance, si_sdr
from im2wav.files import file_sha256, write_atomic
from im2wav.hub import find_folder
from im2wav.inference.command import Build, Outputs, generate_files, read_numbers
from im2wav.inference.inputs import input_of
from im2wav.inference.jobs import Job
from im2wav.media.encoder import ENCODERS
from im2wav.prior import Conditions, Timing

# options of `sample` -> its config
MakeConfig = Callable[[Sequence[str]], Any]


def model_files(cfg: Any) -> dict[str, Path]:
    """Files of the evaluated model; with `codec=FILE`, only the codec."""
    if cfg.mode == "codec":
        return {"codec": Path(cfg.codec)}
    return find_weights(find_folder(str(cfg.model_dir), Path(cfg.paths.cache)))


def generate_audio(
    cfg: Any, images: Mapping[str, Path], numbers: Mapping[str, int], out: Path, make_config: MakeConfig, build: Build
) -> bool:
    """Generate audio for images like the command `sample`: out/up/NAME_00.wav and so on. Existing files are kept.

    Args:
        cfg: options of the command: model, sampler, seed, batch_size, device and further options of sample.
        images: photo or video by name.
        numbers: how many audio files to generate, by name.
        out: folder of the audio files.
        make_config: composes the config of `sample`.
        build: instantiates a config node.

    Returns:
        Whether this process evaluates the audio: of several devices, one does.

    Raises:
        ValueError: generation failed, or the folder contains audio of another model or other options.
    """
    files = model_files(cfg)
    options = [f"sampler.{k}={v}" for k, v in given_sampling(cfg.sampler).items()]
    options += [f"seed={cfg.seed}", *cfg.sample]
    state = {"files": {name: file_sha256(path) for name, path in files.items()}, "options": options}
    settings, text = out / "settings.json", json.dumps(state, indent=1, sort_keys=True) + "\n"
    if settings.is_file() and settings.read_text() != text:
        raise ValueError(
            f"{out} contains audio of another model or other options ({settings}): set another out=DIR, or remove it"
        )
    todo = [name for name, count in numbers.items() if not _is_done(out, name, count)]
    if todo:
        given = [*_window_options(files), f"batch_size={cfg.batch_size}", f"device={cfg.device}"]
        sample, jobs = make_config([*given, *options]), []
        sample.update({"out": str(out), **{name: str(path) for name, path in files.items()}})
        for count in sorted({numbers[name] for name in todo}):
            sample.num_samples = count
            items = [replace(input_of(images[name]), name=name) for name in todo if numbers[name] == count]
            jobs.append(Job(items, read_numbers(sample)))
        write_atomic(settings, text.encode())
        generate_files(sample, build, jobs)
        gc.collect()  # a model and its function that makes the encoder refer to each other
        torch.cuda.empty_cache()  # does nothing without CUDA
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def _window_options(files: Mapping[str, Path]) -> list[str]:
    """Options of `sample` for one window of a model, for longer videos as well."""
    low, codec = load(files["low"], "low_prior"), load(files["codec"], "vqvae")
    nets: Any = {"low": low.net, "codec": codec.net}
    encoder = low.data.get("encoder")
    if encoder not in ENCODERS:  # it selects a file of conf/encoder
        raise ValueError(f"{files['low']} was trained with encoder={encoder}: expected one of {', '.join(ENCODERS)}")
    samples = nets["low"].context_length * nets["codec"].hop_lengths["low"]
    seconds = samples / low.data.get("sample_rate", 16000)
    return [f"encoder={encoder}", f"seconds={seconds}", "mux=false"]


def _is_done(out: Path, name: str, count: int) -> bool:
    paths = (Outputs(out).path(level, name, k) for level in ("up", "low") for k in range(count))
    return all(path.is_file() for path in paths)


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


# a batch, and image embeddings of other items [B, F, D] for the shuffled baseline; None if there is only one item
EvaluationBatch = tuple[Batch, Tensor | None]


def batches(folder: PairsFolder, split: str, num_samples: int, size: int) -> Iterator[EvaluationBatch]:
    """Yield batches of the first window of each pair with audio, in manifest order; short audio is repeated.

    Raises:
        ValueError: no pair of the split has audio.
    """
    wanted = folder.pairs.where("split", lambda there: split in ("all", there))
    pairs = folder.pairs.take(wanted & (folder.pairs.column("samples") > 0))
    if not len(pairs):
        raise ValueError(
            f"{folder.root}: no pair with split={split} has audio; its splits are "
            f"{sorted(set(folder.pairs.strings('split')))} (split=all uses every pair)"
        )
    windows = WindowDataset(folder, pairs, num_samples, "loop")
    for start in range(0, len(pairs), size):
        rows = range(start, min(start + size, len(pairs)))
        others = [windows[((row - 1) % len(pairs), 0.0)].clip for row in rows]
        yield collate([windows[(row, 0.0)] for row in rows]), torch.stack(others) if len(pairs) > 1 else None


@torch.inference_mode()
def codec_figures(codec: Any, data: Iterable[EvaluationBatch], plan: Plan) -> dict[str, dict[str, Any]]:
    """By level: SI-SDR and log-STFT distance of the reconstruction, fraction of codes used, perplexity."""
    device = next(codec.parameters()).device
    items: list[str] = []
    values: dict[str, dict[str, list[Tensor]]] = {}
    counts: dict[str, Tensor] = {}
    for batch, _ in data:
        items += batch.id
        wav = batch.wav.to(device)
        for level, codes in codec.encode(wav).items():
            decoded = codec.decode(codes, level)
            found = values.setdefault(level, {"si_sdr_db": [], "log_stft_db": []})
            found["si_sdr_db"].append(si_sdr(wav[:, 0], decoded[:, 0]).cpu())
            found["log_stft_db"].append(log_stft_distance(wav[:, 0], decoded[:, 0]).cpu())
            occur = codes.cpu().flatten().bincount(minlength=codec.codebook_size)
            counts[level] = counts.get(level, 0) + occur
    return {
        level: {
            **{name: mean_figure(torch.cat(parts), items, plan).to_dict() for name, parts in found.items()},
            **{f"codes_{name}": value for name, value in code_usage(counts[level]).items()},
            "codebook_size": codec.codebook_size,
            "codes": int(counts[level].sum()),
        }
        for level, found in values.items()
    }


@torch.inference_mode()
def prior_figures(
    codec: Any, priors: Mapping[str, Any], data: Iterable[EvaluationBatch], plan: Plan
) -> dict[str, dict[str, Any]]:
    """By level: bits per code with the correct image, with another image, and unconditional if available."""
    device = next(codec.parameters()).device
    items: list[str] = []
    values: dict[str, dict[str, list[Tensor]]] = {level: {} for level in priors}
    for batch, other_clip in data:
        items += batch.id
        codes = codec.encode(batch.wav.to(device))
        timing = Timing(**{name: value.to(device) for name, value in batch.timing.items()})
        for level, prior in priors.items():
            conditions = Conditions(batch.clip.to(device), timing, codes["low"] if level == "up" else None)
            variants = {"condition": conditions}
            if other_clip is not None:
                variants["shuffled"] = replace(conditions, clip=other_clip.to(device))
            if prior.can_be_guided:
                variants["none"] = conditions.null_like()
            for variant, variant_conditions in variants.items():
                bits = prior.item_bits(codes[level], variant_conditions).flatten(1).mean(1)
                values[level].setdefault(variant, []).append(bits.cpu())
    figures: dict[str, dict[str, Any]] = {}
    for level, found in values.items():
        whole = {variant: torch.cat(parts) for variant, parts in found.items()}
        for variant in ("shuffled", "none"):
            if variant in found:  # bits saved by the correct image
                whole[f"gain_over_{variant}"] = whole[variant] - whole["condition"]
        figures[level] = {name: mean_figure(bits, items, plan).to_dict() for name, bits in whole.items()}
    return figures


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
