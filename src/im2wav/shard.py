"""`im2wav shard data.root=... out=...`: a pairs folder as a few large files, for `data=shards`."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from im2wav.cli import CONF, one_line, register_resolvers, run

register_resolvers()


def shard(cfg: DictConfig) -> Path:
    """Write the missing shards; see `im2wav.prepare.shard_writer.write_shards`."""
    from im2wav.prepare.shard_writer import write_shards

    return write_shards(cfg.data.root, cfg.out, cfg.chunk_mb, cfg.num_workers, cfg.dry_run)


@one_line
@hydra.main(version_base="1.3", config_path=CONF, config_name="shard")
def main(cfg: DictConfig) -> None:
    """Run the command."""
    run(shard, cfg)


if __name__ == "__main__":
    main()
