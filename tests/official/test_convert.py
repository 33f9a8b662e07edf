"""Official files in: real golden checkpoints, and broken, malicious and foreign ones."""

import functools
import http.server
import json
import pickle
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import ASSETS, command, config, tiny_config, tone, write_wav
from im2wav.checkpoint import check_same_origin, load, load_net
from im2wav.data.pairs import PairsFolder
from im2wav.media.reading import read_audio
from im2wav.official import convert_checkpoint, fetch, folder
from im2wav.official.conversion import read

NAMES = {"vqvae.pth.tar": "a.bin", "low.pth.tar": "checkpoint_latest.pth.tar", "up.pth.tar": "c"}
COUNTS = {"vqvae": 448_770, "low": 157_344_768, "up": 203_056_640}  # parameters


@pytest.fixture(scope="module")
def official(shared, tmp_path_factory):
    """The golden checkpoints under names that say nothing, beside a file that is none."""
    place = tmp_path_factory.mktemp("official")
    for name, new in NAMES.items():
        shutil.copy(shared / "golden" / "tiny" / name, place / new)
    (place / "README").write_text("weights")
    return place


@pytest.fixture(scope="module")
def converted(official, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted")
    assert command("convert", f"official={official}", f"out={out}") == 0
    return out


def changed(official, path, change, name="c"):
    content = read(official / name)
    change(content)
    torch.save(content, path)
    return path


def test_converted_nets_equal_the_official_ones(official, converted):
    for kind, name in (("vqvae", "a.bin"), ("low_prior", "checkpoint_latest.pth.tar"), ("up_prior", "c")):
        ours, theirs = load_net(converted / f"{kind}.safetensors", kind), convert_checkpoint(official / name).net
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        assert all((value == theirs.state_dict()[key]).all() for key, value in ours.state_dict().items())
    parts = {"codec": "vqvae", "low": "low_prior", "up": "up_prior"}
    loaded = {key: load(converted / f"{kind}.safetensors") for key, kind in parts.items()}
    check_same_origin(**loaded)
    assert loaded["codec"].bandwidth["spec"] == pytest.approx(29.368, rel=1e-4)


def test_sampling_with_converted_weights(converted, clip_file, tmp_path):
    encoder = ["encoder=clip_vit_b32", f"encoder.weights={clip_file[0]}"]
    arguments = [f"pretrained={converted}", f"input={ASSETS / 'images/owl_03.jpg'}", f"out={tmp_path}", "seconds=1"]
    assert command("sample", *encoder, *arguments) == 0
    import soundfile

    for level in ("up", "low"):
        assert soundfile.info(tmp_path / level / "owl_03_00.wav").frames == 16000


def test_training_continues_from_converted_weights(converted, pairs, tmp_path):
    from im2wav.train import train

    start = f"ckpt_path={converted / 'vqvae.safetensors'}"
    result = train(tiny_config("vqvae", pairs, tmp_path, start, "trainer.max_steps=1", "model.optimizer.lr=0"))
    assert result["module"].bandwidth.spec == pytest.approx(29.368, rel=1e-4)
    theirs = load_net(converted / "vqvae.safetensors").encoders.state_dict()
    ours = load_net(result["checkpoint"]).encoders.state_dict()
    assert all((ours[key] == value).all() for key, value in theirs.items())
    with pytest.raises(ValueError, match="does not fit this configuration"):
        train(tiny_config("vqvae", pairs, tmp_path / "b", start, "model.net.width=16"))
    with pytest.raises(ValueError, match="holds a low_prior"):
        train(tiny_config("vqvae", pairs, tmp_path / "c", f"ckpt_path={converted / 'low_prior.safetensors'}"))


def test_half_precision_weights_are_read_as_they_are(official, tmp_path):
    def halve(content):
        for key, value in content["model"].items():
            if key.endswith(".w"):
                content["model"][key] = value.half()

    net = convert_checkpoint(changed(official, tmp_path / "half", halve)).net
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    ours = net.transformer.layers[0].qkv.weight
    theirs = read(official / "c")["model"]["prior.transformer._attn_mods.0.attn.c_attn.w"].half().float().t()
    assert (ours == theirs).all()


def test_what_does_not_fit_is_listed_whole(official, tmp_path):
    def spoil(content):
        model = content["model"]
        del model["y_emb.clip_map.sequential.3.bias"]
        model["prior.surprise"] = torch.zeros(1)
        model["prior.pos_emb.pos_emb"] = torch.zeros(3, 4)
        model["prior.x_out.weight"] = model["prior.x_out.weight"] + 1

    path = changed(official, tmp_path / "spoilt", spoil)
    with pytest.raises(ValueError, match="do not match the up_prior") as caught:
        convert_checkpoint(path)
    for part in (
        "missing: y_emb.clip_map.sequential.3.bias",
        "unexpected: prior.surprise",
        "misshapen: prior.pos_emb.pos_emb (3, 4) instead of (1024, 32)",
        "prior.x_out.weight differs",
    ):
        assert part in str(caught.value)

    path = changed(official, tmp_path / "other", lambda c: c["hps"].update(res_scale=True))
    with pytest.raises(ValueError, match="res_scale"):
        convert_checkpoint(path)
    path = changed(official, tmp_path / "short", lambda c: c["hps"].pop("n_ctx"))
    with pytest.raises(ValueError, match="lacks 'n_ctx'"):
        convert_checkpoint(path)


class Malicious:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (open, (str(self.trace), "w"))


def test_a_malicious_file_does_nothing(official, tmp_path):
    trace = tmp_path / "trace"
    path = changed(official, tmp_path / "bad", lambda c: c["hps"].update(bandwidth=Malicious(trace)))
    with pytest.raises(ValueError, match="is not an official Im2Wav checkpoint"):
        convert_checkpoint(path)
    assert command("convert", f"official={tmp_path}", f"out={tmp_path / 'out'}") == 2
    (tmp_path / "evil.pickle").write_bytes(pickle.dumps({"a": Malicious(trace)}))
    assert command("convert", f"pickles={tmp_path / 'evil.pickle'}", f"out={tmp_path / 'out'}") == 2
    assert not trace.exists()


def test_folders_that_do_not_serve(official, tmp_path, capfd):
    for given, message in ((tmp_path / "none", "is not a folder"), (tmp_path, "contains no official")):
        assert command("convert", f"official={given}", f"out={tmp_path / 'out'}") == 2
        assert message in capfd.readouterr().err
    for name in ("one", "two"):
        shutil.copy(official / "c", tmp_path / name)
    assert command("convert", f"official={tmp_path}", f"out={tmp_path / 'out'}") == 2
    assert "are both a up_prior" in capfd.readouterr().err
    assert command("convert", f"out={tmp_path / 'out'}") == 2
    assert "set official=DIR" in capfd.readouterr().err


# ---- embeddings


def unit(n, width=512):
    array = np.random.default_rng(0).normal(size=(n, width))
    return (array / np.linalg.norm(array, axis=1, keepdims=True)).astype(np.float16)


def test_official_video_embeddings_become_a_pairs_folder(tmp_path):
    (tmp_path / "video_CLIP").mkdir()
    for name in ("a.b", "c"):
        (tmp_path / "video_CLIP" / f"{name}.pickle").write_bytes(pickle.dumps({name: unit(300)}))
    write_wav(tmp_path / "a.b.wav", tone(10.0))
    arguments = [f"pickles={tmp_path / 'video_CLIP'}", f"wavs={tmp_path}", f"out={tmp_path / 'out'}"]
    assert command("convert", *arguments) == 0
    opened = PairsFolder(tmp_path / "out")
    assert (opened.info.encoder, opened.info.dim, opened.info.fps) == ("clip_vit_b32", 512, 30)
    assert [(p.id, p.frames, p.samples) for p in opened.pairs] == [("a.b", 300, 160000)]
    np.testing.assert_allclose(opened.read_clip(opened.pairs[0]), unit(300), atol=1e-3)
    assert "missing file" in (tmp_path / "out" / "skipped.csv").read_text()


def test_official_image_embeddings_become_a_pairs_folder(tmp_path):
    (tmp_path / "CLIP.pickle").write_bytes(pickle.dumps({"image": {"dog": unit(2), "cow": unit(1).astype(np.float32)}}))
    assert command("convert", f"pickles={tmp_path / 'CLIP.pickle'}", f"out={tmp_path / 'out'}") == 0
    opened = PairsFolder(tmp_path / "out")
    assert [(p.id, p.label, p.frames) for p in opened.pairs] == [
        ("cow_0", "cow", 1),
        ("dog_0", "dog", 1),
        ("dog_1", "dog", 1),
    ]
    assert opened.info.fps is None


@pytest.mark.parametrize("content", [b"nonsense", pickle.dumps({"a": 3}), pickle.dumps([1]), pickle.dumps({})])
def test_other_pickles_are_rejected(tmp_path, content):
    (tmp_path / "x.pickle").write_bytes(content)
    assert command("convert", f"pickles={tmp_path}", f"out={tmp_path / 'out'}") == 2
    assert not (tmp_path / "out").exists()


# ---- the authors' release, from a server on this machine


@pytest.fixture
def server(official, tmp_path):
    """Serves the golden files under the released ids."""
    place = tmp_path / "served"
    place.mkdir()
    for name, new in zip(folder.RELEASED, NAMES.values(), strict=True):
        shutil.copy(official / new, place / name)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(place))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield place, f"http://127.0.0.1:{httpd.server_port}/{{id}}"
        httpd.shutdown()


def test_released_weights_are_fetched_and_converted_once(server, tmp_path):
    place, url = server
    out = fetch(tmp_path / "cache", url)
    assert sorted(p.name for p in out.iterdir()) == [
        "config.json",
        "low_prior.safetensors",
        "up_prior.safetensors",
        "vqvae.safetensors",
    ]
    assert load(out / "low_prior.safetensors").kind == "low_prior"
    for path in place.iterdir():
        path.unlink()
    assert fetch(tmp_path / "cache", url) == out  # nothing is asked for again


def test_files_that_were_fetched_by_hand_will_do(official, tmp_path):
    shutil.copytree(official, tmp_path / "official")
    assert fetch(tmp_path, "http://127.0.0.1:9/{id}") == tmp_path / "official-converted"


def test_the_authors_weights_are_heard_through_the_command_line(official, tmp_path):
    """pretrained=official, files fetched by hand; published embeddings stand in for CLIP, which cannot be fetched."""
    shutil.copytree(official, tmp_path / "cache" / "official")
    (tmp_path / "CLIP.pickle").write_bytes(pickle.dumps({"image": {"dog": unit(1)}}))
    assert command("convert", f"pickles={tmp_path / 'CLIP.pickle'}", f"out={tmp_path / 'pairs'}") == 0
    where = [f"paths.cache={tmp_path / 'cache'}", f"input={tmp_path / 'pairs'}", f"out={tmp_path / 'out'}"]
    assert command("sample", "pretrained=official", *where) == 0
    assert [path.name for path in (tmp_path / "out" / "up").glob("*.wav")] == ["dog_0_00.wav"]
    wav = read_audio(tmp_path / "out" / "up" / "dog_0_00.wav", 16000)
    low = load_net(tmp_path / "cache" / "official-converted" / "low_prior.safetensors", "low_prior")
    codec = load_net(tmp_path / "cache" / "official-converted" / "vqvae.safetensors", "vqvae")
    assert len(wav) == low.context_length * codec.hop_lengths["low"]
    assert wav.abs().max() > 0


def test_without_a_network_one_message_says_where_files_go(tmp_path):
    with pytest.raises(ValueError, match="manually") as caught:
        fetch(tmp_path, "http://127.0.0.1:9/{id}")
    assert all(name in str(caught.value) for name in folder.RELEASED)
    assert str(tmp_path / "official") in str(caught.value)


def test_a_page_instead_of_a_file_is_no_checkpoint(server, tmp_path):
    place, url = server
    (place / folder.RELEASED[0]).write_text("<html>quota exceeded</html>")
    with pytest.raises(ValueError, match="is not a checkpoint"):
        fetch(tmp_path / "cache", url)


def test_official_experiments_have_the_official_sizes():
    from im2wav.cli import instantiate

    for name, count in COUNTS.items():
        cfg = config("train", f"experiment=official/{name}", "paths.output=x")
        with torch.device("meta"):
            module = instantiate(cfg.model)
        assert sum(p.numel() for p in module.net.parameters()) == count
        assert cfg.data.num_samples == 65536


def test_official_experiments_have_as_many_parameters_as_the_official_models(shared):
    found = json.loads((shared / "golden/full/parameter_counts.json").read_text())
    assert {found[kind]["parameters"] for kind in found if "parameters" in found[kind]} >= set(COUNTS.values())


def test_full_size_names_are_those_of_the_official_files(shared):
    """Every key and shape of the official full-size state dicts, without their weights."""
    from im2wav.official import conversion

    hps = json.loads((shared / "golden/full/hps.json").read_text())
    text = (shared / "golden/full/state_dict_keys.txt").read_text()
    shapes = [dict(_shapes(part)) for part in text.split("\n#") if "(" in part]
    for name, kind in (("vqvae", "vqvae"), ("low", "low_prior"), ("up", "up_prior")):
        settings = hps[name]
        assert conversion.kind_of(settings) == kind
        made = (
            conversion.codec_config(settings) if kind == "vqvae" else conversion.prior_config(settings, kind, 512, 512)
        )
        with torch.device("meta"):
            net = conversion.KINDS[kind](**made)
        expected = next(
            s
            for s in shapes
            if ("encoders.0.level_blocks.0.model.0.0.weight" in s) == (kind == "vqvae")
            and ("conditioner_blocks.0.ln.weight" in s) == (kind == "up_prior")
            and len(s) > 50
        )
        given = {key: torch.empty(shape, device="meta") for key, shape in expected.items()}
        given.pop("prior.x_out.weight", None)  # the tie is tested on values elsewhere
        assert len(conversion.translate(net, given, settings, kind)) == len(given)


def _shapes(part):
    for line in part.splitlines():
        fields = line.split("\t")
        if len(fields) >= 2 and fields[1].startswith("("):
            yield fields[0], tuple(int(x) for x in fields[1].strip("()").split(",") if x.strip())


def test_paths_need_no_particular_type(converted):
    assert load(str(converted / "vqvae.safetensors")).kind == load(Path(converted) / "vqvae.safetensors").kind


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("up", {"class_free_guidance_prob": 0.2, "heads": 2}),
        ("up", {"cond_c_res": 0, "cond_width": 24, "cond_depth": 3, "cond_dilation_cycle": None}),
        ("low", {"video_clip_emb": False, "prior_depth": 4}),
        ("low", {"class_free_guidance_prob": -1, "heads": 4, "blocks": 8, "l_bins": 48, "t_bins": 16}),
        ("low", {"m_attn": 0.5, "m_mlp": 2.0, "prior_width": 64}),
        ("vqvae", {"downs_t": (2, 1), "strides_t": (2, 4), "width": 12, "depth": 3, "m_conv": 2.0, "l_bins": 64}),
    ],
)
def test_any_size_and_kind_comes_in_by_its_hps(official, tmp_path, name, changes):
    """Nets of other sizes, given official names and written as an official file, come back the same."""
    from im2wav.official import conversion

    file = {"vqvae": "a.bin", "low": "checkpoint_latest.pth.tar", "up": "c"}[name]
    hps = {**read(official / file)["hps"], **changes}
    kind = conversion.kind_of(hps)
    made = conversion.codec_config(hps) if kind == "vqvae" else conversion.prior_config(hps, kind, 512, 512)
    net = conversion.KINDS[kind](**made)
    state = {}
    for key, value in net.state_dict().items():
        if kind == "vqvae":
            other = conversion.codec_name(key, made["strides"])
        else:
            other = conversion.prior_name(key, bool(hps["cond_c_res"]))
        if other is not None:
            state[other] = value.t().contiguous() if other.endswith(".w") else value
    if kind != "vqvae":
        state["prior.x_out.weight"] = state["prior.x_emb.weight"]
    torch.save({"hps": hps, "model": state, "opt": {}, "step": 7}, tmp_path / "file")
    back = convert_checkpoint(tmp_path / "file")
    assert (back.kind, back.step) == (kind, 7)
    for key, value in back.net.state_dict().items():
        if "code_" not in key.rsplit(".", 1)[-1] and "initialised" not in key:
            assert (value == net.state_dict()[key]).all(), key
    if kind != "vqvae":
        assert back.net.can_be_guided == (hps["class_free_guidance_prob"] >= 0)
