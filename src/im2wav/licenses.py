"""`python -m im2wav.licenses`: the licences of im2wav, of the files that it ships and of the packages that it needs."""

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from im2wav.cli import command, run

log = logging.getLogger(__name__)


def licenses(cfg: DictConfig) -> dict[str, Any]:
    """List the licences as a table or as JSON, and print them or write them to a file; returns them."""
    from im2wav.files import json_bytes, write_atomic
    from im2wav.notices import as_table, find_licences

    found = find_licences(list(cfg.extras))
    content = json_bytes(found) if cfg.format == "json" else f"{as_table(found)}\n".encode()
    if cfg.out:
        write_atomic(Path(cfg.out), content)
    log.info("%s", cfg.out or content.decode().rstrip())
    return found


@command("licenses")
def main(cfg: DictConfig) -> None:
    """Run the command."""
    run(licenses, cfg)


if __name__ == "__main__":
    main()
