"""Every option has a description, a wrong value gives one line before data is read, and the examples of help work."""

import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict

from conftest import REPO, command, config
from im2wav.cli import CONF, SUMMARIES, register_resolvers, rewrite
from im2wav.config import COMMANDS
from im2wav.options import check_config, explain, in_range, read_comments, scalar_types, schema_fields


def choices_of(group: str) -> list[str]:
    return [f"{group}={path.stem}" for path in sorted((Path(CONF) / group).glob("*.yaml"))]


CASES = [
    *((name, []) for name in COMMANDS if name != "train"),
    *(("train", [model]) for model in choices_of("model")),
    *(
        ("train", ["model=low_prior", choice])
        for g in ("scheduler", "trainer", "logger", "data")
        for choice in choices_of(g)
    ),
    *(("bench", [choice]) for choice in choices_of("measure")),
    *(("embed", [f"source={choice.partition('=')[2]}"]) for choice in choices_of("source")),
    *(("embed", [choice]) for choice in choices_of("encoder")),
    *(("evaluate", [choice]) for choice in choices_of("mode")),
]


def composed(name: str, overrides: list[str]):
    register_resolvers()
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose(name, rewrite(name, overrides), return_hydra_config=True)
    choices = {str(key): str(value) for key, value in cfg.hydra.runtime.choices.items()}
    OmegaConf.set_readonly(cfg, False)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg, choices


def test_every_command_has_a_schema():
    assert {*COMMANDS, "evaluate"} == set(SUMMARIES)


@pytest.mark.parametrize(
    ("name", "overrides"), CASES, ids=lambda value: " ".join(value) if isinstance(value, list) else value
)
def test_every_option_has_a_description(name, overrides):
    cfg, choices = composed(name, overrides)
    rows = explain(cfg, choices, Path(CONF))
    assert rows
    assert not [path for path, _, text in rows if not text]
    known = {path for path, _, _ in rows}
    leaves = {
        path
        for path in dotted(OmegaConf.to_container(cfg, resolve=False))
        if not path.rpartition(".")[2].startswith("_")
    }
    assert {path for path in leaves if not any(path == one or path.startswith(f"{one}.") for one in known)} == set()


def dotted(node: dict, prefix: str = ""):
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


@pytest.mark.parametrize("name", sorted(SUMMARIES))
def test_help_describes_options_and_ends_with_three_commands_that_compose(name, capsys):
    assert command(name, "--help") == 0
    text, _, examples = capsys.readouterr().out.partition("\nExamples:\n")
    lines = examples.splitlines()
    assert len(lines) == 3
    for line in lines:
        start, *words = shlex.split(line)[2:]
        assert start == f"im2wav.{name}"
        words = [word for word in words if word != "-m"]
        words = [word.partition(",")[0] if word.startswith("sampler.") else word for word in words]
        cfg, _ = composed(name, words)
        check_config(cfg, Path(CONF))
    assert "\nConfig groups:\n" in text or name in ("convert", "licenses")
    assert all(
        f"\n  {path}=" in text
        for path, _ in schema_fields(OmegaConf.get_type(composed(name, ["model=vqvae"] if name == "train" else [])[0]))
    )


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("train", "seed=abc", "seed=abc: must be int"),
        ("train", "seed=-1", "seed=-1: must be >= 0"),
        ("train", "codes.size=1", "codes.size=1: must be >= 2"),
        ("train", "resume=yes", "resume=yes: must be one of auto (or null)"),
        ("train", "overwrite=maybe", "overwrite=maybe: must be true or false"),
        ("train", "trainer.max_steps=many", "trainer.max_steps=many: must be int"),
        ("train", "data.batch_size=0", "data.batch_size=0: must be >= 1"),
        ("train", "data.num_workers=few", "data.num_workers=few: must be int"),
        ("train", "model.net.codebook.decay=high", "model.net.codebook.decay=high: must be float"),
        ("train", "model.optimizer.lr=fast", "model.optimizer.lr=fast: must be float"),
        ("train", "callbacks.skip_non_finite.max_in_row=x", "callbacks.skip_non_finite.max_in_row=x: must be int"),
        ("train", "colour=red", "colour=red: no such option"),
        ("train", "+colour=red", "colour=red: no such option"),
        ("train", "data.colour=red", "data.colour=red: no such option"),
        ("embed", "num_workers=-1", "num_workers=-1: must be >= 1 (or null)"),
        ("embed", "fps=fast", "fps=fast: must be int or float"),
        ("embed", "max_failed=2", "max_failed=2.0: must be >= 0 and <= 1"),
        ("inspect", "cards=-1", "cards=-1: must be >= 0"),
        ("bench", "threads=0", "threads=0: must be >= 1 (or null)"),
        ("sample", "mux=maybe", "mux=maybe: must be one of true, false, auto"),
        ("sample", "num_samples=0", "num_samples=0: must be >= 1"),
        ("sample", "batch_size=0", "batch_size=0: must be >= 1 or auto"),
        ("sample", "batch_size=all", "batch_size=all: must be >= 1 or auto"),
        ("sample", "seconds=long", "seconds=long: must be float or null"),
        ("sample", "seconds=-1", "seconds=-1.0: must be > 0 (or null)"),
        ("sample", "format=aiff", "format=aiff: must be one of wav, flac, mp3, ogg, opus, m4a, mp4"),
        ("demo", "sampler.top_k=all", "sampler.top_k=all: must be int"),
        ("evaluate", "resamples=1", "resamples=1: must be >= 2"),
        ("evaluate", "split=dev", "split=dev: must be one of train, valid, test, all"),
        ("convert", "fps=x", "fps=x: must be int or float"),
    ],
)
def test_a_wrong_value_gives_one_line_before_data_is_read(name, given, said, pairs, tmp_path, monkeypatch, capfd):
    from im2wav.data.pairs import PairsFolder

    def forbidden(*_):
        raise AssertionError("audio was read")

    monkeypatch.setattr(PairsFolder, "read_wav", forbidden)
    more = {
        "train": ["model=vqvae", f"data.root={pairs}", f"paths.runs={tmp_path}"],
        "embed": [f"input={REPO}", f"out={tmp_path}"],
        "evaluate": [f"generated={tmp_path}", f"reference={tmp_path}"],
        "convert": ["out=x"],
    }
    assert command(name, *more.get(name, []), given) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: {said}")


@pytest.mark.parametrize(
    ("key", "value"),
    [("data.colour", 3), ("trainer.foo", 1), ("paths.x", 2), ("model.net.bar", 1), ("callbacks.ema.zz", 1)],
)
def test_a_key_that_no_class_of_a_group_takes_is_unknown(key, value):
    cfg = config("train", "model=vqvae", f"+{key}={value}", "paths.output=x")
    with pytest.raises(ValueError, match=f"{key}={value}: no such option"):
        check_config(cfg, Path(CONF))


def test_optional_arguments_that_no_file_of_a_group_names_are_known():
    cfg = config(
        "train", "model=vqvae", "+trainer.max_time=00:01:00", "data.split_fractions.train=0.7", "paths.output=x"
    )
    check_config(cfg, Path(CONF))


def test_required_options_are_named_with_their_description(capfd):
    assert command("embed") == 2
    assert capfd.readouterr().err.startswith("error: input=... is required: a folder of videos")


def test_numbers_or_words_are_told_apart():
    config("train", "model=vqvae", "data.batch_size=auto", "callbacks.ema.decay=official")
    for value in ("auto", 4):
        cfg = config("train", "model=vqvae", f"data.batch_size={value}", "callbacks.ema.decay=official")
        check_config(cfg, Path(CONF))
        assert cfg.data.batch_size == value
    assert scalar_types(int | str | None) == {int, str}
    assert not in_range(0, {"above": 0})
    assert in_range(0, {"minimum": 0, "maximum": 0})


def test_comments_below_a_comment_go_on():
    text = "a: 1   # first\n       # second\nb:\n  c: 2\n# not of c\n"
    assert read_comments(text) == {"a": "first second", "b": "", "b.c": ""}


def test_a_local_config_sets_options(tmp_path, monkeypatch):
    local = Path(CONF) / "local"
    if local.exists():
        pytest.skip("this checkout has its own conf/local")
    local.mkdir()
    try:
        (local / "default.yaml").write_text("# @package _global_\npaths:\n  runs: /elsewhere\n")
        assert composed("train", ["model=vqvae"])[0].paths.runs == "/elsewhere"
        assert composed("embed", [])[0].paths.runs == "/elsewhere"
    finally:
        (local / "default.yaml").unlink()
        local.rmdir()


def test_options_that_a_notebook_composes_resolve(monkeypatch):
    from hydra.core.hydra_config import HydraConfig

    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)  # only commands have Hydra's run folder
    cfg = config("train", "model=vqvae", "paths.runs=mine")
    OmegaConf.resolve(cfg)
    assert cfg.paths.output == cfg.trainer.default_root_dir == "mine/notebook"
