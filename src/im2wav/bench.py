"""`python -m im2wav.bench measure=machine|...`: benchmarks, beside limits that are measured in the same run."""

from typing import Any

from omegaconf import DictConfig

from im2wav.cli import command, instantiate, run


def bench(cfg: DictConfig) -> list[Any]:
    """Run a benchmark, print its table and, if `out` is set, write it as JSON."""
    from im2wav.benchmarks.machine import run_benchmark

    return run_benchmark(cfg, instantiate)


@command("bench")
def main(cfg: DictConfig) -> None:
    """Run the command."""
    run(bench, cfg)


if __name__ == "__main__":
    main()
