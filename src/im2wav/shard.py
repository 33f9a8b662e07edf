"""`python -m im2wav.shard data.root=... out=...`: a pairs folder as a few large files, for `data=shards`."""

from __future__ import annotations

import logging
from pathlib import Path

import hydra
from omegaconf import DictConfig

from im2wav.cli import CONF, one_line, register_resolvers, run

log = logging.getLogger(__name__)
register_resolvers()


def shard(cfg: DictConfig) -> Path:
    """Write the shards that are missing.

    Raises:
        ValueError: no pairs folder, other shards in `out`, or a file that cannot be read or written.
    """
    from concurrent.futures import ThreadPoolExecutor

    from tqdm.auto import tqdm

    from im2wav.data.shards import ShardWriter

    writer = ShardWriter(cfg.data.root, cfg.out, cfg.chunk_mb)
    total = sum(int(sizes.sum()) for sizes in writer.sizes.values())
    without = len(writer.folder.pairs) - len(writer.pairs)
    chunks = sum(map(len, writer.plan.values()))
    about = f"{len(writer.pairs)} pairs in {chunks} chunks, {total / 1e9:.2f} GB"
    if cfg.dry_run:
        log.info("would write %s to %s; %d pairs without a sound stay behind", about, cfg.out, without)
        return Path(cfg.out)
    todo = writer.start()
    progress = tqdm(desc="shard", total=len(todo), unit="chunk", disable=None)
    with ThreadPoolExecutor(max(cfg.num_workers, 1)) as pool:  # threads: the work is reading and writing files
        try:
            for _ in pool.map(writer.write, todo):
                progress.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    progress.close()
    writer.finish()
    log.info("%s in %s (%d chunks now); %d pairs without a sound stay behind", about, cfg.out, len(todo), without)
    return Path(cfg.out)


@one_line
@hydra.main(version_base="1.3", config_path=CONF, config_name="shard")
def main(cfg: DictConfig) -> None:
    """Entry."""
    run(shard, cfg)


if __name__ == "__main__":
    main()
