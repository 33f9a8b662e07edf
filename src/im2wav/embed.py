"""`python -m im2wav.embed input=FOLDER out=data/pairs`: videos, or pictures and sounds -> a pairs folder."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from im2wav.cli import CONF, instantiate, one_line, pick_device, register_resolvers, run

if TYPE_CHECKING:
    from im2wav.data.encoder import ImageEncoder
    from im2wav.data.pairs import DatasetInfo
    from im2wav.data.sources import Source

log = logging.getLogger(__name__)
SAMPLE_RATE = 16000  # Hz; the models know no other
register_resolvers()


def embed_source(source: Source, cfg: DictConfig, encoder: ImageEncoder, out: Path) -> dict[str, Any]:
    """Write the wav and the embeddings of one source; returns its row of the manifest.

    Raises:
        MediaError: it cannot be used.
    """
    import numpy as np
    import torch

    from im2wav.data import media
    from im2wav.data.pairs import npy_bytes, wav_bytes, write_atomic

    wav = None
    if source.audio is not None:
        wav = media.read_audio(source.audio, SAMPLE_RATE)
    elif source.video is not None:
        wav = media.read_video_audio(source.video, SAMPLE_RATE)
    if wav is not None:
        media.check_loudness(wav, cfg.silence, source.audio or source.path)
        if cfg.loudness is not None:
            wav = media.set_loudness(wav, cfg.loudness)
    if source.video is not None:
        chunks = media.read_frames(source.video, cfg.fps, cfg.batch_size)
        clip = torch.cat([encoder.encode(frames) for frames in chunks])
    else:
        clip = encoder.encode([media.read_image(source.path)])
    files = {"wav": f"wav/{source.id}.wav" if wav is not None else "", "clip": f"clip/{source.id}.npy"}
    if wav is not None:
        write_atomic(out / files["wav"], wav_bytes(wav, SAMPLE_RATE))
    write_atomic(out / files["clip"], npy_bytes(clip.numpy().astype(np.float16)))
    size = {"samples": 0 if wav is None else len(wav), "frames": len(clip), "source": str(source.path)}
    return {"id": source.id, "label": source.label, "split": source.split, "group": source.group, **files, **size}


def open_dataset(out: Path, info: DatasetInfo) -> dict[str, dict[str, Any]]:
    """Begin a pairs folder, or go on with one that the same encoder made: its rows by id.

    Raises:
        ValueError: it was made by another encoder or at another rate, or cannot be written.
    """
    from im2wav.data.media import read_table
    from im2wav.data.pairs import COLUMNS, DatasetInfo

    if not (out / "dataset.json").is_file():
        info.write(out)
        return {}
    before = DatasetInfo.read(out)
    before.check_encoder(info.encoder, info.weights_sha256, f"out={out}")
    for name in ("fps", "sample_rate", "loudness"):
        old, new = getattr(before, name), getattr(info, name)
        if old != new:
            raise ValueError(
                f"out={out} has {name}={old}, now {name}={new} is asked for: use the same, or another folder"
            )
    manifest = out / "manifest.csv"
    rows = read_table(manifest, set(COLUMNS)) if manifest.is_file() else []
    return {row["id"]: row for row in rows if all((out / row[k]).is_file() for k in ("wav", "clip") if row[k])}


def _done(source: Source, rows: dict[str, dict[str, Any]], out: Path) -> bool:
    """Whether an earlier run embedded a source; what the manifest now says of it is taken over.

    Raises:
        ValueError: the id belongs to another source.
    """
    row = rows.get(source.id)
    if row is None:
        return False
    if row["source"] != str(source.path):
        raise ValueError(
            f"out={out} already has a pair {source.id!r}, made from {row['source']}, and now {source.path} is given: "
            "rename one of them, or use another folder"
        )
    row.update(label=source.label, split=source.split, group=source.group)
    return bool(row["wav"]) == bool(source.audio or source.video)


def embed(cfg: DictConfig) -> float:
    """Embed all sources of `input`; what an earlier run finished is kept.

    Returns:
        The share of sources that could not be used; skipped.csv lists them.
    """
    from tqdm.auto import tqdm

    from im2wav.data.media import MediaError, read_table
    from im2wav.data.pairs import COLUMNS, DatasetInfo, table_bytes, write_atomic
    from im2wav.data.sources import find_sources

    sources, out = find_sources(Path(cfg.input)), Path(cfg.out)
    encoder: ImageEncoder = instantiate(cfg.encoder).to(pick_device(cfg.device))
    fps = cfg.fps if any(s.video for s in sources) else None  # null for photos alone
    info = DatasetInfo(encoder.name, encoder.dim, encoder.weights_sha256, fps, loudness=cfg.loudness)
    rows = open_dataset(out, info)
    todo = [s for s in sources if not _done(s, rows, out)]
    mine = {s.id for s in sources}
    report = out / "skipped.csv"
    skipped: list[dict[str, str]] = []
    before = [row for row in read_table(report, {"id"}) if row["id"] not in mine] if report.is_file() else []

    def save() -> None:
        write_atomic(out / "manifest.csv", table_bytes(COLUMNS, [rows[name] for name in sorted(rows)]))
        write_atomic(report, table_bytes(("id", "reason", "detail"), [*before, *skipped]))

    for number, source in enumerate(tqdm(todo, desc="embed", unit="item", disable=None), 1):
        try:
            rows[source.id] = embed_source(source, cfg, encoder, out)
        except MediaError as error:
            skipped.append({"id": source.id, "reason": error.reason, "detail": error.detail})
        if number % 100 == 0:
            save()
    save()
    share = len(skipped) / len(sources)
    reasons = ", ".join(f"{n} {reason}" for reason, n in Counter(s["reason"] for s in skipped).most_common())
    log.info(
        "%d of %d embedded in %s%s",
        len(sources) - len(skipped),
        len(sources),
        out,
        f"; skipped {len(skipped)}: {reasons} (see {out / 'skipped.csv'})" if skipped else "; nothing skipped",
    )
    return share


@one_line
@hydra.main(version_base="1.3", config_path=CONF, config_name="embed")
def main(cfg: DictConfig) -> None:
    """Entry; exit code 1 where more than `max_bad` of the inputs had to be skipped."""
    if run(embed, cfg) > cfg.max_bad:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
