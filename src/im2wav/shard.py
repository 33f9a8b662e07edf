"""`python -m im2wav.shard data.root=... out=...`: write a pairs folder as a few large files, for `data=shards`."""

from pathlib import Path

from omegaconf import DictConfig

from im2wav.cli import command, run


def shard(cfg: DictConfig) -> Path:
    """Write the missing shards; see `im2wav.prepare.shard_writer.write_shards`."""
    from im2wav.prepare.shard_writer import write_shards

    return write_shards(cfg.data.root, cfg.out, cfg.chunk_mb, cfg.num_workers, cfg.dry_run)


@command("shard")
def main(cfg: DictConfig) -> None:
    """Run the command."""
    run(shard, cfg)


if __name__ == "__main__":
    main()
