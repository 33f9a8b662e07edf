"""Model folders, local or on the Hub: three networks as safetensors, config.json with the image encoder, and a card."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi, constants, errors, snapshot_download, try_to_load_from_cache

from im2wav.cards import CARD, HUB_ID, adapter_card, is_edited, updated_card
from im2wav.checkpoint import KINDS, STARTER, Loaded, check_same_origin, find_weights, load, save
from im2wav.files import cache_folder, write_atomic
from im2wav.network import check_hub, first_line, is_reachable

CONFIG = "config.json"
ADAPTER = "adapter.safetensors"


def find_folder(name: str, cache: Path | None = None, **hub: Any) -> Path:
    """The folder of a model, downloaded if necessary.

    Args:
        name: `starter` for the model of the package, `official` for the official weights, a folder, or an id on the
            Hub.
        cache: folder for the official weights; IM2WAV_CACHE, or ~/.cache/im2wav, if None.
        hub: options of `huggingface_hub.snapshot_download`.

    Raises:
        ValueError: no such folder, and the download failed.
    """
    if name == "starter":
        return STARTER
    if name == "official":
        from im2wav.official import fetch

        return fetch(cache or cache_folder())
    if Path(name).is_dir():
        return Path(name)
    return _fetch(name, [CARD, CONFIG, *(f"{kind}.safetensors" for kind in KINDS.values())], CONFIG, **hub)


def find_adapters(given: Sequence[str], **hub: Any) -> list[str]:
    """Adapters as files: those that are ids on the Hub are downloaded if necessary; weights (`@0.5`) are kept.

    Args:
        given: files or ids, each with or without a weight: `dogs.safetensors`, `me/dogs@0.5`.
        hub: see `find_folder`.

    Raises:
        ValueError: an id whose adapter could not be downloaded.
    """
    paths = []
    for text in given:
        name, at, weight = text.rpartition("@") if "@" in text else (text, "", "")
        if HUB_ID.fullmatch(name) and not Path(name).exists() and not name.endswith(Path(ADAPTER).suffix):
            name = str(_fetch(name, [ADAPTER], ADAPTER, **hub) / ADAPTER)
        paths.append(f"{name}{at}{weight}")
    return paths


def _fetch(name: str, patterns: Sequence[str], first: str, **hub: Any) -> Path:
    """The files of a repository, downloaded if necessary; `first` is one that it always has."""
    where = {key: hub[key] for key in ("revision", "cache_dir") if key in hub}
    try:
        # cached files start as fast as offline where the Hub does not answer
        if isinstance(try_to_load_from_cache(name, first, **where), str):
            is_offline = hub.get("local_files_only") or constants.HF_HUB_OFFLINE
            hub["local_files_only"] = is_offline or not is_reachable(constants.ENDPOINT, 1.0)
        elif not hub.get("local_files_only"):
            check_hub()
        return Path(snapshot_download(name, allow_patterns=list(patterns), **hub))
    except Exception as error:  # of many types, from the network layer
        raise ValueError(f"{name} is no folder, and {_reason(name, error, hub)}") from error


def _reason(name: str, error: Exception, hub: Mapping[str, Any]) -> str:
    """Why a repository could not be fetched, and what to do."""
    log_in = "log in with `hf auth login`, or set HF_TOKEN or token="
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if isinstance(error, errors.HFValidationError):
        return "no id on the Hub, which has the form OWNER/NAME: correct it"
    if isinstance(error, errors.GatedRepoError):
        return (
            f"the model of this name on the Hub is gated: accept its conditions at {constants.ENDPOINT}/{name}, and "
            f"{log_in}"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the Hub shows no model of this name: correct it; if the model is private, {log_in}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the model of this name on the Hub has no revision={hub.get('revision')}: choose another"
    if status == 401:
        return f"the Hub rejects the token: {log_in}"
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled) and (
        constants.HF_HUB_OFFLINE or hub.get("local_files_only")
    ):
        return "it is not in the cache of the Hub: run this once with a connection, without HF_HUB_OFFLINE=1"
    return f"could not be fetched from the Hub ({first_line(error)})"


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


def remote_card(repo_id: str, token: str | bool | None = None, revision: str | None = None) -> str | None:
    """The text of the card of a repository on the Hub; None if it has none, or does not exist."""
    api = HfApi(token=token)
    try:
        return Path(api.hf_hub_download(repo_id, CARD, revision=revision)).read_text(encoding="utf-8")
    except (errors.RepositoryNotFoundError, errors.EntryNotFoundError, errors.RevisionNotFoundError):
        return None


def push_adapter(
    path: str | Path,
    repo_id: str,
    *,
    base_model: str | None = None,
    license: str | None = None,
    figures: str | Path | None = None,
    datasets: Sequence[str] = (),
    private: bool | None = None,
    token: str | bool | None = None,
) -> str:
    """Upload an adapter and its card to the Hub.

    Args:
        path: the file, adapter.safetensors of a training run.
        repo_id: id on the Hub, OWNER/NAME; is created if necessary. A card of it that was edited is kept.
        base_model: the model that the adapter was trained on; None: as recorded in the file.
        license, figures, datasets: see `im2wav.cards.network_card`.
        private: whether a new repository is private; None: as the owner's settings say.
        token: access token; None: that of `hf auth login` or of HF_TOKEN.

    Returns:
        The address of the commit.

    Raises:
        ValueError: the file is not an adapter, or `figures` cannot be read.
    """
    card = adapter_card(Path(path), repo_id, base_model, license, figures, datasets)
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    kept = remote_card(repo_id, token)
    if kept is not None and is_edited(kept):
        card = updated_card(kept, repo_id, license, figures, datasets)
    with TemporaryDirectory() as folder:
        (Path(folder) / ADAPTER).write_bytes(Path(path).read_bytes())
        (Path(folder) / CARD).write_text(card, encoding="utf-8")
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Add an adapter of im2wav"))
