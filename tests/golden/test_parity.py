"""Equality with the official implementation, from the golden file that ships with the tests (golden/README.md).

test_golden.py compares more, but needs ../shared. Here weights are rounded, which moves outputs by less than the
tolerance of 1e-4 of the largest official value; codes are compared exactly.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from archive import Group, pack, read, unpack
from torch import nn

from helpers import forced_logits
from im2wav.decoding.decoder import Decoder, sample_codes
from im2wav.decoding.sampler import SamplingOptions, filter_logits, uniforms
from im2wav.official import convert_checkpoint
from im2wav.prior import Conditions, Prior, Timing
from im2wav.prior.conditioning import ClipMap, TimingTables, frame_of_position

FILE = Path(__file__).parent / "official.npz"


@pytest.fixture(scope="module")
def golden() -> dict[str, Group]:
    return read(FILE)


@pytest.fixture(scope="module")
def official(golden, tmp_path_factory):
    """Networks by name, converted from checkpoints as the official trainer writes them."""

    def make(name: str) -> nn.Module:
        tensors, about = golden[name]
        model = {key: torch.zeros(shape) for key, shape in about["shapes"].items()}
        for key, value in tensors.items():
            model[key][about["rows"].get(key, slice(None))] = torch.from_numpy(value)
        if "prior.x_out.weight" in model:  # the official prior shares this tensor
            model["prior.x_out.weight"] = model["prior.x_emb.weight"]
        path = tmp_path_factory.mktemp("official") / f"{name}.pth.tar"
        torch.save({"hps": about["hps"], "model": model, "step": 3}, path)
        return convert_checkpoint(path).net

    return make


class Outputs:
    """Official outputs of one network as a batch of one."""

    def __init__(self, group: Group):
        self.tensors = group.tensors

    def __call__(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.tensors[name])[None]

    def codes(self, name: str) -> torch.Tensor:
        return self(name).long()


class RecordedMap(nn.Module):
    """Stands for an image map (too large to ship): gives the output that the official one gave."""

    def __init__(self, output: torch.Tensor):
        super().__init__()
        self.output = nn.Parameter(output, requires_grad=False)  # [1, ..., W]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output.expand(len(x), *self.output.shape[1:])


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Equal within 1e-4 of the largest official value."""
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * theirs.abs().max().item())


@pytest.fixture(scope="module")
def low(golden, official) -> tuple[Prior, Conditions, Outputs]:
    prior, outputs = official("low"), Outputs(golden["low_outputs"])
    prior.conditioner.start_map = RecordedMap(outputs("start_emb"))
    prior.conditioner.frame_map = RecordedMap(outputs("video_emb"))
    frames = outputs("video_emb").shape[1]
    conditions = Conditions(torch.zeros(1, frames, 512), Timing(*outputs("timing").T))
    return prior, conditions, outputs


@pytest.fixture(scope="module")
def up(golden, official) -> tuple[Prior, Conditions, Outputs]:
    prior, outputs = official("up"), Outputs(golden["up_outputs"])
    return prior, Conditions(torch.zeros(1, 1, 512), codes_low=outputs.codes("z_cond")), outputs


def test_the_golden_file_is_small():
    assert sum(path.stat().st_size for path in FILE.parent.glob("*.npz")) < 130_000


def test_the_codec_encodes_to_the_official_codes(golden, official):
    codec, outputs = official("vqvae"), Outputs(golden["vqvae_outputs"])
    codes = codec.encode(outputs("x")[:, None])["low"]
    seen = codes.shape[1] - 8  # the last ones see the end of the excerpt
    assert seen == 40
    assert torch.equal(codes[:, :seen], outputs.codes("codes")[:, :seen])


def test_the_codec_decodes_to_the_official_waveform(golden, official):
    outputs = Outputs(golden["vqvae_outputs"])
    theirs = outputs("decode")
    close(official("vqvae").decode(outputs.codes("codes"), "low")[:, 0, : theirs.shape[1]], theirs)


def test_an_image_map_gives_the_official_embedding(low):
    """One output of the map. Its input is reduced to one direction, that of the official input, which loses nothing."""
    *_, outputs = low
    projected = outputs("map.projected")[0]
    image_map = ClipMap(1, len(projected), 1, dropout=0.1).eval()
    with torch.no_grad():
        state = {
            "0.weight": projected[:, None],
            **{k: outputs(f"map.{k}")[0] for k in ("0.bias", "3.weight", "3.bias")},
        }
        image_map.load_state_dict(state)
        close(image_map(torch.ones(1, 1)), outputs("start_emb")[:, :1])


def test_frames_and_timing_condition_the_low_prior_as_the_official_one(low):
    prior, conditions, outputs = low
    start, positions = prior.conditioner(conditions, prior.context_length)
    close(start, outputs("start_emb"))
    close(positions[:, : outputs("x_cond").shape[1]], outputs("x_cond"))


@pytest.mark.parametrize("way", ["label", "null"])
def test_the_low_prior_gives_the_official_logits(low, way):
    prior, conditions, outputs = low
    given = conditions if way == "label" else conditions.null_like()
    theirs = outputs(f"{way}.logits")
    close(prior(outputs.codes("z"), given)[:, -theirs.shape[1] :], theirs)


def test_the_decoder_gives_the_official_logits_step_by_step(low):
    prior, conditions, outputs = low
    logits = forced_logits(Decoder(prior), outputs.codes("z"), conditions)  # the image, then none
    close(logits[:1], outputs("label.logits"))
    theirs = outputs("null.logits")
    close(logits[1:, -theirs.shape[1] :], theirs)


def test_guided_greedy_codes_are_the_official_ones(low):
    prior, conditions, outputs = low
    theirs = outputs.codes("greedy.codes")
    uniform = uniforms([0], theirs.shape[1], "any")
    codes = sample_codes(prior, conditions, uniform, SamplingOptions(guidance_scale=3.0, top_k=1))
    assert torch.equal(codes, theirs)
    unguided = sample_codes(prior, conditions, uniform, SamplingOptions(guidance_scale=1.0, top_k=1))
    assert not torch.equal(unguided, theirs)  # so it is guidance that the first assertion compares


def test_low_codes_condition_the_up_prior_as_the_official_one(up):
    prior, conditions, outputs = up
    _, positions = prior.conditioner(conditions, prior.context_length)
    close(positions[:, : outputs("x_cond").shape[1]], outputs("x_cond"))


def test_the_up_prior_gives_the_official_logits_from_its_last_layer(up):
    """The earlier layers are left out of the file; the last one attends to the block of 64 codes before."""
    prior, conditions, outputs = up
    hidden, theirs = outputs("layer_4"), outputs("logits")
    assert hidden.shape[1] > prior.transformer.block == 64
    _, positions = prior.conditioner(conditions, prior.context_length)
    last = prior.transformer.layers[5]
    assert last.kind == "previous_row"
    logits = (last(hidden) + positions[:, : hidden.shape[1]]) @ prior.code_embedding.weight.t()
    close(logits[:, -theirs.shape[1] :], theirs)


def test_frames_by_position(golden):
    tables = {name: x for name, x in golden["functions"].tensors.items() if name.startswith("frames.")}
    assert len(tables) == 7
    for name, frames in tables.items():
        length, count = map(int, name.removeprefix("frames.").split(","))
        assert frame_of_position(length, count).tolist() == frames.tolist(), name


def test_timing_bins(golden, low):
    functions, tables = golden["functions"], low[0].conditioner.timing
    assert isinstance(tables, TimingTables)
    assert len(functions.about["timing"]) == 5
    for i, case in enumerate(functions.about["timing"]):
        timing = Timing(*(torch.tensor([float(case[key])]) for key in ("total", "offset", "length")))
        bins = tables.bins_of(timing, case["n_time"])
        assert bins["total"].item() == case["total_bin"]
        for name in ("absolute", "relative"):
            assert bins[name][0].tolist() == functions.tensors[f"timing.{i}.{name}"].tolist(), (case, name)


def test_top_k_and_top_p_keep_the_official_codes(golden):
    tensors = golden["functions"].tensors
    kept = {name.removeprefix("kept."): x for name, x in tensors.items() if name.startswith("kept.")}
    assert len(kept) == 3
    for name, theirs in kept.items():
        k, p = name.split("_")
        ours = filter_logits(torch.from_numpy(tensors["logits"]), int(k[1:]), float(p[1:]))
        assert ours.isfinite().tolist() == theirs.astype(bool).tolist(), name


def test_packed_tensors_are_within_half_a_step():
    normal = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    found = unpack(*pack({"whole": (np.array([[-40_000, 0, 40_000]]), 1.0), "normal": (normal, 0.001)}))
    assert found["whole"].tolist() == [[-40_000, 0, 40_000]]
    assert np.abs(found["normal"] - normal).max() <= 0.00051
    with pytest.raises(ValueError, match="step is too small"):
        pack({"normal": (normal, 1e-8)})
