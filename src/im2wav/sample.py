"""`python -m im2wav.sample input=photo.jpg|clip.mp4|FOLDER`: pictures and videos -> sounds."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from im2wav.cli import CONF, instantiate, one_line, pick_device, register_resolvers, run

if TYPE_CHECKING:
    import torch

    from im2wav.data.encoder import ImageEncoder

log = logging.getLogger(__name__)
KINDS = {"codec": "vqvae", "low": "low_prior", "up": "up_prior"}
register_resolvers()


def find_inputs(given: Path) -> list[Path]:
    """The photos and videos that `input` names, sorted.

    Raises:
        ValueError: it does not exist, is neither a photo nor a video, or holds none.
    """
    from im2wav.data.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES

    known = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    if given.is_dir():
        found = sorted(p for p in given.rglob("*") if p.suffix.lower() in known and not p.name.startswith("."))
    else:
        found = [given] if given.is_file() and given.suffix.lower() in known else []
    if not found:
        raise ValueError(f"input={given}: expected a photo, a video, or a folder of them ({', '.join(sorted(known))})")
    return found


def name_inputs(inputs: list[Path], given: Path) -> dict[Path, str]:
    """What the outputs of each input are called; inputs that differ in their suffix alone keep it.

    Raises:
        ValueError: two inputs would have the same name.
    """
    from im2wav.data.sources import item_name

    root = given if given.is_dir() else given.parent
    names = {path: item_name(path, root) for path in inputs}
    count = Counter(names.values())
    names = {p: f"{name}_{p.suffix[1:]}" if count[name] > 1 else name for p, name in names.items()}
    double = [name for name, n in Counter(names.values()).items() if n > 1]
    if double:
        raise ValueError(f"input={given}: several inputs would be called {double[0]!r}; rename them")
    return names


def embed_input(path: Path, encoder: ImageEncoder, fps: float, seconds: float) -> torch.Tensor:
    """Embeddings [F, D] of a photo, or of the frames of a video that belong to its first `seconds`.

    Raises:
        MediaError: it cannot be read.
    """
    import torch

    from im2wav.data import media

    if path.suffix.lower() in media.IMAGE_SUFFIXES:
        return encoder.encode([media.read_image(path)])
    wanted = int(seconds * fps) + 1
    clip: list[torch.Tensor] = []
    for frames in media.read_frames(path, fps):
        clip.append(encoder.encode(frames[: wanted - sum(map(len, clip))]))
        if sum(map(len, clip)) >= wanted:
            break
    return torch.cat(clip)


def load_models(cfg: DictConfig, device: str) -> dict[str, Any]:
    """The codec, both priors and the encoder, checked to belong together.

    Raises:
        ValueError: a wrong or missing checkpoint, or an encoder that the priors were not trained with.
    """
    from im2wav.checkpoint import check_same_origin, load
    from im2wav.data.pairs import DatasetInfo

    paths = {"codec": cfg.codec, "low": cfg.low, "up": cfg.up}
    if cfg.pretrained:
        from im2wav.official import fetch

        folder = fetch(Path(cfg.paths.cache)) if cfg.pretrained == "official" else Path(cfg.pretrained)
        paths = {name: folder / f"{kind}.safetensors" for name, kind in KINDS.items()}
    loaded = {name: load(paths[name], kind) for name, kind in KINDS.items()}
    check_same_origin(**loaded)
    data = dict(loaded["low"].data)
    total = round(data.pop("seconds") * data["sample_rate"])
    info = DatasetInfo(**data)
    info.check_encoder(cfg.encoder.name, None, f"the low prior {paths['low']}")
    encoder = instantiate(cfg.encoder).to(device)
    info.check_encoder(encoder.name, encoder.weights_sha256, f"the low prior {paths['low']}")
    return {**{name: x.net.to(device) for name, x in loaded.items()}, "encoder": encoder, "info": info, "total": total}


def sample(cfg: DictConfig) -> list[dict[str, Any]]:
    """Generate `num_samples` sounds for each input and write them as out/up/NAME_K.wav (and the draft, out/low/).

    Returns:
        For each sound: input, number, seed, and the paths of its wavs by level.

    Raises:
        ValueError: nothing could be generated, or bad options.
    """
    import torch
    from tqdm.auto import tqdm

    from im2wav.data.media import MediaError
    from im2wav.data.pairs import wav_bytes, write_atomic
    from im2wav.generation import Request, generate
    from im2wav.generation.sampling import item_seed

    options, inputs, out = instantiate(cfg.sampler), find_inputs(Path(cfg.input)), Path(cfg.out)
    if cfg.num_samples < 1 or cfg.batch_size < 1:
        raise ValueError(f"num_samples={cfg.num_samples}, batch_size={cfg.batch_size}: expected 1 or more")
    names = name_inputs(inputs, Path(cfg.input))
    device = pick_device(cfg.device)
    models = load_models(cfg, device)
    encoder, info, codec, low, up = (models[k] for k in ("encoder", "info", "codec", "low", "up"))
    window = low.context_length * codec.hop_lengths["low"]
    samples = window if cfg.seconds is None else round(cfg.seconds * info.sample_rate)
    seconds = samples / info.sample_rate
    if samples < window:
        raise ValueError(f"seconds={cfg.seconds}: the shortest sound is one window, {window / info.sample_rate:.3f} s")
    fps = info.fps or 1.0  # models that were trained on photos see a frame a second of a video
    jobs, failed = [], []
    for path in tqdm(inputs, desc="embed", unit="input", disable=None):
        try:
            clip = embed_input(path, encoder, fps, seconds)
        except MediaError as error:
            failed.append(str(error))
            log.warning("skipped: %s", error)
            continue
        jobs += [(names[path], k, clip, path) for k in range(cfg.num_samples)]
    if not jobs:
        raise ValueError(f"input={cfg.input}: none of {len(inputs)} inputs could be read; first: {failed[0]}")
    jobs.sort(key=lambda job: len(job[2]))  # inputs of the same number of frames share a batch
    results: list[dict[str, Any]] = []
    steps = sum(samples // hop for hop in codec.hop_lengths.values())
    for batch in _batches(jobs, cfg.batch_size):
        seeds = [item_seed(cfg.seed, name, k) for name, k, _, _ in batch]
        clip = torch.stack([job[2] for job in batch]).to(device)
        with tqdm(total=steps, desc=f"{len(results)}/{len(jobs)} sounds", unit="code", disable=None) as bar:
            request = Request(clip, seeds, fps, samples, cfg.overlap, models["total"], info.sample_rate)
            generated = generate(codec, low, up, request, options, on_step=bar.update)
        for row, (name, k, _, path) in enumerate(batch):
            files = {level: out / level / f"{name}_{k:02d}.wav" for level in generated.wav}
            for level, file in files.items():
                write_atomic(file, wav_bytes(generated.wav[level][row, 0].cpu(), info.sample_rate))
            results.append(
                {"input": str(path), "number": k, "seed": seeds[row], **{n: str(f) for n, f in files.items()}}
            )
    log.info("%d sounds of %.2f s in %s", len(results), seconds, out / "up")
    if failed:
        log.warning("%d of %d inputs could not be read", len(failed), len(inputs))
    return results


def _batches(jobs: list[Any], size: int) -> list[list[Any]]:
    """Cut jobs into batches of inputs that have the same number of frames."""
    batches: list[list[Any]] = []
    for job in jobs:
        if not batches or len(batches[-1]) == size or len(batches[-1][0][2]) != len(job[2]):
            batches.append([])
        batches[-1].append(job)
    return batches


@one_line
@hydra.main(version_base="1.3", config_path=CONF, config_name="sample")
def main(cfg: DictConfig) -> None:
    """Entry."""
    run(sample, cfg)


if __name__ == "__main__":
    main()
