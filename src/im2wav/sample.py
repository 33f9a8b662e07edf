"""`python -m im2wav.sample input=photo.jpg|clip.mp4|FOLDER`: photos and videos -> generated audio."""

import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from im2wav.cli import command, instantiate, run


def read_jobs(cfg: DictConfig) -> list[Any]:
    """The inputs that `input` names, as jobs; a table has a job for each row."""
    from im2wav.inference.command import read_numbers
    from im2wav.inference.inputs import with_prompt
    from im2wav.inference.jobs import Job, read_job_table

    numbers = read_numbers(cfg)
    if not isinstance(cfg.input, DictConfig) and Path(str(cfg.input)).suffix.lower() == ".csv":
        return read_job_table(Path(str(cfg.input)), numbers, cfg.prompt, cfg.prompt_weight)
    return [Job([with_prompt(item, cfg.prompt, cfg.prompt_weight) for item in read_inputs(cfg)], numbers)]


def read_inputs(cfg: DictConfig) -> list[Any]:
    """The inputs that `input` names."""
    from im2wav.inference.command import is_distributed
    from im2wav.inference.inputs import find_inputs, list_inputs, text_input, timeline_input

    if not isinstance(cfg.input, DictConfig):
        path = str(cfg.input)
        if path == "-" and is_distributed(cfg):
            raise ValueError("input=- works with one process only: set a folder, or trainer.devices=1")
        return list_inputs(sys.stdin) if path == "-" else find_inputs(Path(path))
    keys = [str(key) for key, value in cfg.input.items() if value is not None]
    if len(keys) != 1:
        raise ValueError(
            "set input=PATH (a photo, a video, a folder, a pairs folder, a table of jobs, or - for a list on stdin), "
            "or input.timeline=[dog.jpg@0,car.jpg@3], or input.text='a dog barks'"
            + (f"; not {' and '.join(keys)} together" if keys else "")
        )
    return [text_input(str(cfg.input.text)) if cfg.input.timeline is None else timeline_input(list(cfg.input.timeline))]


def sample(cfg: DictConfig) -> list[dict[str, Any]]:
    """Generate audio for all inputs; see `im2wav.inference.command.generate_files`."""
    from im2wav.inference.command import generate_files

    return generate_files(cfg, instantiate, read_jobs(cfg))


@command("sample")
def main(cfg: DictConfig) -> None:
    """Run the command."""
    run(sample, cfg)


if __name__ == "__main__":
    main()
