"""Model folders, local or on the Hub: three networks as safetensors, and config.json with the image encoder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download, try_to_load_from_cache

from im2wav.checkpoint import KINDS, Loaded, check_same_origin, find_weights, load, save
from im2wav.files import cache_folder, write_atomic
from im2wav.network import check_hub, first_line, is_reachable

CONFIG = "config.json"


def find_folder(name: str, cache: Path | None = None, **hub: Any) -> Path:
    """The folder of a model, downloaded if necessary.

    Args:
        name: a folder, `official` for the official weights, or an id on the Hub.
        cache: folder for the official weights; IM2WAV_CACHE, or ~/.cache/im2wav, if None.
        hub: options of `huggingface_hub.snapshot_download`.

    Raises:
        ValueError: no such folder, and the download failed.
    """
    if name == "official":
        from im2wav.official import fetch

        return fetch(cache or cache_folder())
    if Path(name).is_dir():
        return Path(name)
    where = {key: hub[key] for key in ("revision", "cache_dir") if key in hub}
    try:
        # cached files start as fast as offline where the Hub does not answer
        if isinstance(try_to_load_from_cache(name, CONFIG, **where), str):
            hub["local_files_only"] = hub.get("local_files_only") or not is_reachable(constants.ENDPOINT, 1.0)
        elif not hub.get("local_files_only"):
            check_hub()
        names = [CONFIG, *(f"{kind}.safetensors" for kind in KINDS.values())]
        return Path(snapshot_download(name, allow_patterns=names, **hub))
    except Exception as error:  # of many types, from the network layer
        raise ValueError(f"{name} is no folder, and could not be fetched from the Hub ({first_line(error)})") from error


def load_folder(folder: Path) -> tuple[dict[str, Loaded], dict[str, Any]]:
    """The three networks by name, and the options of the image encoder, including its `name`.

    Raises:
        ValueError: a network is missing or broken.
    """
    loaded = {name: load(path, KINDS[name]) for name, path in find_weights(folder).items()}
    encoder: dict[str, Any] = {}
    if (folder / CONFIG).is_file():
        encoder = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("image_encoder", {})
        if other := sorted(set(encoder) - {"name", "dim"}):  # the folder may be somebody else's: no paths from it
            raise ValueError(
                f"{folder / CONFIG}: image_encoder has {', '.join(other)}, expected name and dim; set other options "
                "in from_pretrained(encoder={...})"
            )
    return loaded, {"name": loaded["low"].data["encoder"], **encoder}


def save_folder(loaded: Mapping[str, Loaded], folder: Path, dtype: str = "fp32") -> Path:
    """Write a model folder.

    Args:
        loaded: the networks by name.
        folder: is created.
        dtype: of the weights, fp32 or fp16, see `im2wav.checkpoint.save`.

    Raises:
        ValueError: networks that do not belong together, or the folder cannot be written.
    """
    check_same_origin(**loaded)
    folder.mkdir(parents=True, exist_ok=True)
    for name, kind in KINDS.items():
        save(loaded[name], folder / f"{kind}.safetensors", dtype)
    data = loaded["low"].data
    config: dict[str, Any] = {"image_encoder": {"name": data["encoder"], "dim": data["dim"]}}
    config |= {KINDS[name]: {"config": dict(x.config)} for name, x in loaded.items()}  # for people
    write_atomic(folder / CONFIG, (json.dumps(config, indent=2) + "\n").encode())
    return folder
