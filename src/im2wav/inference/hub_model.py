"""Loading a model, saving it and its card in a folder, and uploading them to the Hugging Face Hub."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelHubMixin

from im2wav.adapter import apply_adapters
from im2wav.cards import is_edited, network_card, read_card, write_card
from im2wav.checkpoint import Loaded, base_name
from im2wav.decoding.decoder import Networks
from im2wav.decoding.linear import Compile
from im2wav.hub import find_adapters, find_folder, load_folder, remote_card, save_folder
from im2wav.media.encoder import build_encoder

if TYPE_CHECKING:
    from im2wav.inference.api import Im2Wav


class HubModel(ModelHubMixin):
    """A model that can be loaded, saved and shared.

    Attributes:
        loaded: the networks with their metadata, by name: codec, low and up.
        networks: the networks as they generate.
        card: text of the model card in the folder that the model was loaded from, if it has one.
    """

    loaded: dict[str, Loaded]
    networks: Networks
    card: str | None = None

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path = "starter",
        *,
        encoder: Mapping[str, Any] | None = None,
        device: str = "auto",
        precision: str = "auto",
        consume: bool = False,
        compile: Compile = False,
        adapters: Sequence[str] = (),
        **hub: Any,
    ) -> "Im2Wav":
        """Load a model.

        Args:
            pretrained_model_name_or_path: `starter`, a small model that is part of im2wav; `official` for the authors'
                weights; a folder from `save_pretrained` or `python -m im2wav.convert`; a folder of runs, such as
                runs/base; or an id on the Hugging Face Hub.
            encoder: options of the image encoder, such as {"weights": "/path/to/ViT-B-32.pt"}.
            device, precision, consume, compile: see the class.
            adapters: files of adapters or ids on the Hub, each with or without a weight, such as
                "dogs.safetensors@0.5".
            hub: for the Hub `revision`, `token`, `cache_dir`, `force_download`, `local_files_only`.

        Raises:
            ValueError: no such folder or id, one that cannot be read without access or without a connection, or
                networks that are missing or of different origin.
        """
        name = str(pretrained_model_name_or_path)
        folder = find_folder(name, **hub)
        loaded, saved = load_folder(folder)
        paths = find_adapters(adapters, **{key: hub[key] for key in ("token", "cache_dir") if key in hub})
        apply_adapters({loaded[name].kind: loaded[name].net for name in ("low", "up")}, paths)
        options = {**saved, **(encoder or {})}
        model: Any = cls(
            **loaded,
            make_encoder=lambda: build_encoder(**options),
            device=device,
            precision=precision,
            consume=consume,
            compile=compile,
        )
        if adapters:
            about = {"base": base_name(name, loaded["low"]), "adapters": [Path(text).name for text in adapters]}
            for key in ("low", "up"):
                model.loaded[key] = replace(loaded[key], training={**(loaded[key].training or {}), **about})
        else:
            model.card = read_card(folder)
        return model

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        name: str | None = None,
        license: str | None = None,
        figures: str | Path | None = None,
        datasets: Sequence[str] = (),
        **hub: Any,
    ) -> str | None:
        """Write a model folder: safetensors files, config.json, and a model card, README.md.

        A card that was edited is kept: that of this folder, or of the folder that the model was loaded from. The
        options below then only change its metadata.

        Args:
            save_directory: the folder.
            name: of the model in a new card: an id on the Hub; None: the name of the folder.
            license: licence of the model as an identifier of the Hub, such as cc-by-4.0.
            figures: folder that `python -m im2wav.evaluate` wrote; the card shows its table.
            datasets: names of the data sets that the model was trained on, as ids on the Hub or in words.
            hub: options of `huggingface_hub.ModelHubMixin.save_pretrained`, such as `push_to_hub=True`.

        Returns:
            The address of the commit with `push_to_hub=True`, otherwise None.

        Raises:
            ValueError: the model was loaded with `consume`, `figures` or the metadata of the card cannot be read, or
                the folder cannot be written.
        """
        if self.networks.consume:
            raise ValueError("this model was loaded with consume=true, which frees its weights: load it again without")
        options: dict[str, Any] = {"license": license, "figures": figures, "datasets": datasets}
        options |= hub.pop("model_card_kwargs", None) or {}  # of the other method
        name, kept = options.pop("name", name), options.pop("kept", self.card)
        write_card(Path(save_directory), self.loaded, name or Path(save_directory).resolve().name, kept, **options)
        return super().save_pretrained(save_directory, model_card_kwargs=options, **hub)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        license: str | None = None,
        figures: str | Path | None = None,
        datasets: Sequence[str] = (),
        **hub: Any,
    ) -> str:
        """Upload the model to the Hub: safetensors files, config.json, and a model card, README.md.

        A card of the repository that was edited is kept.

        Args:
            repo_id: id on the Hub, OWNER/NAME; is created if necessary.
            license, figures, datasets: see `save_pretrained`.
            hub: options of `huggingface_hub.ModelHubMixin.push_to_hub`, such as `private`, `token` and `branch`.

        Returns:
            The address of the commit.

        Raises:
            ValueError: see `save_pretrained`.
        """
        options: dict[str, Any] = {"license": license, "figures": figures, "datasets": datasets}
        options |= hub.pop("model_card_kwargs", None) or {}
        card = remote_card(repo_id, hub.get("token"), hub.get("branch"))
        options |= {"name": repo_id, "kept": card if card is not None and is_edited(card) else self.card}
        return super().push_to_hub(repo_id, model_card_kwargs=options, **hub)

    def generate_model_card(self, *args: Any, **options: Any) -> ModelCard:
        """The model card of `save_pretrained`, with `name`, `license`, `figures` and `datasets`."""
        return ModelCard(network_card(self.loaded, *args, **options))

    def _save_pretrained(self, save_directory: Path) -> None:
        save_folder(self.loaded, save_directory)
