"""`im2wav tokenize data.root=... codec=...`: write the codes of whole clips once, for `data.codes=cache`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from im2wav.cli import command, run

if TYPE_CHECKING:
    from im2wav.data.windows import CodesFolder


def tokenize(cfg: DictConfig) -> CodesFolder:
    """Write the codes that are missing; see `im2wav.prepare.code_cache.write_codes`."""
    from im2wav.checkpoint import load
    from im2wav.decoding.linear import pick_device
    from im2wav.prepare.code_cache import write_codes

    codec: Any = load(cfg.codec, "vqvae").net
    return write_codes(codec.to(pick_device(cfg.device, mps=False)), cfg)


@command("tokenize")
def main(cfg: DictConfig) -> None:
    """Run the command."""
    run(tokenize, cfg)


if __name__ == "__main__":
    main()
