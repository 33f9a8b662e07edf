import csv
import shutil

import pytest
import torch
from hydra.errors import InstantiationException
from omegaconf import OmegaConf

from conftest import TINY, TINY_NET, command, config, logged_values, tiny_config
from im2wav.checkpoint import load, load_net, net_sha256, save
from im2wav.train import train
from im2wav.training.module import find_parts
from im2wav.training.optimizer import warmup

OVERFIT = {
    "vqvae": ["trainer.max_steps=100", "model.optimizer.lr=0.003", "model.scheduler.steps=5"],
    "low_prior": [
        "trainer.max_steps=120",
        "model.optimizer.lr=0.01",
        "+model.net.transformer.init_scale=5",
        "model.scheduler.steps=5",
        "model.condition_dropout=0.1",
    ],
    "up_prior": [
        "trainer.max_steps=120",
        "model.optimizer.lr=0.01",
        "+model.net.transformer.init_scale=5",
        "model.scheduler.steps=5",
    ],
}


@pytest.mark.parametrize(
    "model",
    [pytest.param("vqvae", marks=pytest.mark.slow), "low_prior", pytest.param("up_prior", marks=pytest.mark.slow)],
)
def test_each_model_overfits_a_batch(pairs, trained, tmp_path, model):
    cfg = tiny_config(
        model,
        pairs,
        tmp_path,
        *OVERFIT[model],
        f"codec={trained}/base/vqvae/last.ckpt",
        "callbacks.ema=null",
        "data.crop=start",
    )
    result = train(cfg)
    losses = logged_values(tmp_path)
    assert sum(losses[-5:]) / 5 < 0.6 * losses[0], losses[::10]
    assert result["train/loss"] == pytest.approx(losses[-1], rel=1e-4)


def test_checkpoints_are_plain_and_hold_the_averaged_weights(trained):
    for model in ("vqvae", "low_prior", "up_prior"):
        path = trained / "base" / model / "last.ckpt"
        checkpoint = torch.load(path, weights_only=True)
        assert checkpoint["kind"] == model
        assert checkpoint["data"]["encoder"] == "efficientnet_lite2"
        averaged, raw = checkpoint["state_dict"], checkpoint["current_model_state"]
        assert any((averaged[k] != raw[k]).any() for k in averaged)
        net = load_net(path, model)
        assert not net.training
        for name, value in net.state_dict().items():
            assert (value == averaged[f"net.{name}"]).all()
    codec = load_net(trained / "base/vqvae/last.ckpt")
    state = torch.load(trained / "base/vqvae/last.ckpt", weights_only=True)
    for level, book in codec.codebooks.items():  # averages of averages would be wrong
        assert (book.code_usage == state["current_model_state"][f"net.codebooks.{level}.code_usage"]).all()
    assert load(trained / "base/low_prior/last.ckpt").codec_sha256 == net_sha256(codec)


def test_a_run_continues_where_it_stopped(pairs, tmp_path):
    overrides = ["data.windows_per_epoch=5", "trainer.limit_val_batches=0", "model.scheduler.steps=1"]
    whole = train(tiny_config("vqvae", pairs, tmp_path / "whole", *overrides, "trainer.max_steps=4"))
    train(tiny_config("vqvae", pairs, tmp_path / "parts", *overrides, "trainer.max_steps=2"))
    parts = train(tiny_config("vqvae", pairs, tmp_path / "parts", *overrides, "trainer.max_steps=4", "ckpt_path=last"))
    assert parts["trainer"].global_step == 4
    one, other = (torch.load(r["checkpoint"], weights_only=True) for r in (whole, parts))
    assert one["bandwidth"] == other["bandwidth"]
    for name, value in one["state_dict"].items():  # codebooks too, whose restarts are drawn at random
        assert (other["state_dict"][name] == value).all(), name


def test_a_finished_run_is_not_overwritten_by_accident(trained, pairs):
    with pytest.raises(ValueError, match="resume=auto to resume it"):
        train(tiny_config("vqvae", pairs, trained / "base" / "vqvae"))


def test_experiments_are_chosen_with_and_without_a_plus(capfd):
    for sign in ("", "+"):
        assert command("train", f"{sign}experiment=demo/low_prior", "--cfg", "job") == 0
        assert "depth: 3" in capfd.readouterr().out


def test_a_bare_train_lists_the_models(capfd):
    assert command("train") == 2
    printed = "".join(capfd.readouterr())
    assert all(model in printed for model in ("vqvae", "low_prior", "up_prior"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["codec=none.ckpt"], r"none.ckpt does not exist, expected a vqvae checkpoint; train one with"),
        (["codec=RUNS/low_prior/last.ckpt"], "holds a low_prior, expected a vqvae"),
        (["codec=DATA/manifest.csv"], "is not a vqvae checkpoint"),
        (["codec=RUNS/vqvae/last.ckpt", "model.net.codebook_size=64"], "its codes.size is 32, the prior's is 64"),
        (["codec=RUNS/vqvae/last.ckpt", "model.net.context_length=64"], "is 128, the prior's is 64"),
        (["codec=RUNS/vqvae/last.ckpt", "model.condition_dropout=0"], "condition_dropout=0"),
        (["codec=RUNS/vqvae/last.ckpt", "model.early_weight=0"], "early_positions=0, early_weight=0: expected"),
        (["codec=RUNS/vqvae/last.ckpt", "model.code_errors=1"], "code_errors=1: expected 0 or more, and less than 1"),
        (["codec=RUNS/vqvae/last.ckpt", "encoder=clip_vit_b32"], "made with encoder=efficientnet_lite2"),
        (["codec=RUNS/vqvae/last.ckpt", "+model.net.transformer.colour=red"], "colour"),
        (["codec=RUNS/vqvae/last.ckpt", "model.freeze=[encoder]"], "has no part 'encoder': expected code_embedding"),
        (["ckpt_path=none.ckpt"], "ckpt_path=none.ckpt"),
        (["codec=RUNS/vqvae/last.ckpt", "data.root=nowhere"], "im2wav.embed"),
    ],
)
def test_what_cannot_work_is_rejected_before_data_is_read(pairs, trained, tmp_path, monkeypatch, overrides, message):
    from im2wav.data.pairs import PairsFolder

    def forbidden(*_):
        raise AssertionError("sounds were read")

    monkeypatch.setattr(PairsFolder, "read_wav", forbidden)
    overrides = [o.replace("RUNS", f"{trained}/base").replace("DATA", str(pairs)) for o in overrides]
    with pytest.raises((ValueError, InstantiationException), match=message):  # Hydra wraps what a constructor raises
        train(tiny_config("low_prior", pairs, tmp_path, *overrides))


def test_the_shell_gets_one_line_and_exit_code_2(pairs, tmp_path, capfd):
    assert command("train", "model=low_prior", "codec=none.ckpt", f"paths.runs={tmp_path}") == 2
    assert capfd.readouterr().err.startswith("error: none.ckpt does not exist")
    for argument, word in (("colour=red", "colour"), ("trainer.devices=[", "trainer.devices"), ("model=low", "vqvae")):
        assert command("train", "model=vqvae", argument) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert word in line
    assert command("train", "model=vqvae", "+model.net.colour=red", f"paths.runs={tmp_path}") == 2
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    assert "colour" in error
    assert command("train", "model=vqvae", f"data.root={pairs}", "paths.runs=/proc/x") == 2
    assert capfd.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("logger", ["csv", "tensorboard", "wandb"])
def test_loggers_need_no_account(pairs, tmp_path, monkeypatch, logger):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    train(tiny_config("vqvae", pairs, tmp_path, f"logger={logger}", "trainer.max_steps=1"))
    wanted = {
        "csv": "csv/version_0/metrics.csv",
        "tensorboard": "tensorboard/events*",
        "wandb": "wandb/offline-run*/*.wandb",
    }
    assert list(tmp_path.glob(wanted[logger]))


def test_a_prior_without_a_tokenizer_names_the_key(pairs, tmp_path):
    from im2wav.cli import instantiate

    cfg = tiny_config("low_prior", pairs, tmp_path)
    batch = next(iter(instantiate(cfg.data).train_dataloader()))
    with pytest.raises(ValueError, match="codec="):
        instantiate(cfg.model).training_step(batch, 0)


def test_schedule_by_hand():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = warmup(optimizer, steps=2, decay_steps=6, min_factor=0.1)
    rates = []
    for _ in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    expected = [0.5, 1.0, 1.0, 0.1 + 0.9 * 0.8535534, 0.55, 0.1 + 0.9 * 0.1464466, 0.1, 0.1]
    assert rates == pytest.approx(expected)


def test_a_schedule_that_cannot_be_is_rejected_before_anything_is_written(pairs, tmp_path):
    cfg = tiny_config("vqvae", pairs, tmp_path, "scheduler=cosine", "trainer.max_steps=2")
    with pytest.raises(ValueError, match=r"model.scheduler.decay_steps=2: must be larger than .*steps=100"):
        train(cfg)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [".lock"]


def test_the_default_configuration_is_the_official_size():
    cfg = config("train", "model=up_prior", "paths.output=x")
    assert (cfg.model.net.context_length, cfg.model.net.transformer.depth, cfg.data.num_samples) == (8192, 48, 65536)
    cfg = config("train", "model=low_prior", "trainer.devices=8", "paths.output=x")
    assert (cfg.model.net.context_length, cfg.trainer.devices) == (2048, 8)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("RUNS/vqvae/last.ckpt", "holds a vqvae, expected a low_prior"),
        ("DATA/manifest.csv", "is not a checkpoint of a training run"),
        ("OTHER", "codes of another VQ-VAE"),
    ],
)
def test_resuming_from_something_else_is_rejected(pairs, trained, tmp_path, path, message):
    other = torch.load(trained / "base/low_prior/last.ckpt", weights_only=True)
    torch.save({**other, "codec_sha256": "0" * 64}, tmp_path / "other.ckpt")
    path = (
        path.replace("RUNS", f"{trained}/base").replace("DATA", str(pairs)).replace("OTHER", f"{tmp_path}/other.ckpt")
    )
    codec = f"codec={trained}/base/vqvae/last.ckpt"
    with pytest.raises(ValueError, match=message):
        train(tiny_config("low_prior", pairs, tmp_path / "out", codec, f"ckpt_path={path}"))
    with pytest.raises(ValueError, match="already holds a trained model"):  # going on from elsewhere is no licence
        train(tiny_config("low_prior", pairs, trained / "base/low_prior", codec, f"ckpt_path={tmp_path}/other.ckpt"))


def test_a_run_without_a_step_is_no_success(pairs, tmp_path):
    with pytest.raises(ValueError, match="no step was made"):
        train(tiny_config("vqvae", pairs, tmp_path, "trainer.limit_train_batches=0"))


def test_a_fast_dev_run_leaves_nothing(pairs, tmp_path):
    train(tiny_config("vqvae", pairs, tmp_path, "debug=fdr"))
    assert not list(tmp_path.rglob("*.ckpt")) + list(tmp_path.rglob("*.csv"))


def test_a_run_keeps_its_resolved_configuration(trained):
    from omegaconf import OmegaConf

    assert OmegaConf.load(trained / "base/low_prior/config.yaml").model.net.transformer.width == 32


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"decay_steps": 6, "shape": "linear"}, [0.5, 1, 1, 0.75, 0.5, 0.25, 0, 0]),
        ({"decay_steps": 6, "shape": "linear", "hold": 0.5}, [0.5, 1, 1, 1, 1, 0.5, 0, 0]),
        ({}, [0.5, 1, 1, 1, 1, 1, 1, 1]),
    ],
    ids=["linear", "wsd", "constant"],
)
def test_other_schedules_by_hand(options, expected):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = warmup(optimizer, steps=2, **options)
    assert [schedule.lr_lambdas[0](step) for step in range(8)] == pytest.approx(expected)


@pytest.mark.parametrize("options", [{"shape": "round"}, {"hold": 1.0}])
def test_schedules_that_cannot_be_are_rejected(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        warmup(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), **options)


def test_weight_decay_spares_norms_biases_and_embeddings(pairs, tmp_path):
    from im2wav.cli import instantiate
    from im2wav.training.optimizer import parameter_groups

    for model in ("low_prior", "up_prior", "vqvae"):
        module = instantiate(tiny_config(model, pairs, tmp_path).model)
        names = {id(p): name for name, p in module.named_parameters()}
        decayed, others = ({names[id(p)] for p in group["params"]} for group in parameter_groups(module))
        assert decayed | others == set(names.values())
        assert all(name.endswith("weight") and "norm" not in name and "embedding" not in name for name in decayed)
        assert not any("mlp_in.weight" in name or "start_map.0.weight" in name for name in others)
        if model == "low_prior":
            tables = {"code_embedding.weight", "position_embedding", "null_frame", "timing.tables.total.weight"}
            assert all(any(name.endswith(t) for name in others) for t in tables)
        (everything,) = parameter_groups(module, decay_everything=True)
        assert len(everything["params"]) == len(names)
        assert "weight_decay" not in everything


@pytest.mark.parametrize(
    ("model", "frozen"),
    [("vqvae", ("encoders", "codebooks")), ("low_prior", ("transformer.layers.0", "code_embedding"))],
)
def test_frozen_parts_stay_as_they_are(pairs, trained, tmp_path, model, frozen):
    start = load(trained / "base" / model / "last.ckpt")
    save(start, tmp_path / "start.safetensors")
    options = [f"ckpt_path={tmp_path / 'start.safetensors'}", f"model.freeze=[{','.join(frozen)}]"]
    options += [
        f"codec={trained}/base/vqvae/last.ckpt",
        "trainer.max_steps=3",
        "+trainer.val_check_interval=1",  # which changes to eval mode
    ]
    train(tiny_config(model, pairs, tmp_path / "run", *options))
    after = load(tmp_path / "run" / "last.ckpt").net.state_dict()
    equal = {name: torch.equal(value, after[name]) for name, value in start.net.state_dict().items()}
    kept = {name for name in equal if name.startswith(frozen)}
    assert {name for name in kept if not equal[name]} == set()
    assert not any(equal[name] for name in equal.keys() - kept if name.endswith(("weight", "bias")))


def test_a_network_without_anything_to_train_is_rejected():
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
    assert find_parts(net, ()) == []
    with pytest.raises(ValueError, match="nothing of the network is left to train"):
        find_parts(net, ["0"])


def test_condition_dropout_depends_on_seed_step_and_item_alone(pairs, tmp_path):
    from im2wav.cli import instantiate

    module = instantiate(tiny_config("low_prior", pairs, tmp_path).model)

    def dropped(ids):
        return module.dropped(ids).tolist()

    ids = [str(i) for i in range(1000)]
    whole = dropped(ids)
    assert 0.45 < sum(whole) / 1000 < 0.55
    assert dropped(ids[::2]) == whole[::2]
    module.seed = 2
    assert dropped(ids) != whole


def test_a_run_folder_holds_log_and_hydra_config_and_the_test_split_is_evaluated(pairs, tmp_path, capfd):
    from im2wav.data.pairs import PairsFolder

    root = tmp_path / "pairs"
    shutil.copytree(pairs, root)
    with (root / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    words = ["model=vqvae", f"data.root={root}", *TINY, *TINY_NET["vqvae"], "trainer.max_steps=2", "test=true"]
    words += [f"paths.runs={tmp_path}", "callbacks.progress=null", "tags=[small,quick]"]
    assert command("train", *words) == 2
    assert "has no pair in the split `test`" in capfd.readouterr().err
    next(row for row in rows if row["split"] == "train")["split"] = "test"
    with (root / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert "test" in {pair.split for pair in PairsFolder(root).pairs}
    assert command("train", *words) == 0
    folder = tmp_path / "base" / "vqvae"
    assert "[INFO] done: " in (folder / "train.log").read_text()
    assert "test=true" in (folder / ".hydra" / "overrides.yaml").read_text()
    assert OmegaConf.load(folder / "config.yaml").tags == ["small", "quick"]
    logged = (folder / "csv" / "version_0" / "metrics.csv").read_text()
    assert "test/loss" in logged
    assert "testing" in (folder / "train.log").read_text()
    assert "best.ckpt" in (folder / "train.log").read_text()
