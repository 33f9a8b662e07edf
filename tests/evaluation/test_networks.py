"""The paper's networks load files of their published layout and do what is published of them.

The weights themselves cannot be fetched in a test: small files of the same names and shapes stand in for them.
"""

import math

import pytest
import torch

from conftest import ASSETS, config, write_wav
from im2wav.evaluation.embedding_networks import OFFSET, Vggish, VggishNet, Wav2Clip, Wav2ClipNet, examples, mel_matrix
from im2wav.evaluation.networks import FILES
from im2wav.evaluation.taggers import Passt, PasstNet, passt_log_mel

WIDTH = 64  # of the small PaSST; the published one has 768


def small(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """A random tensor of any shape that takes little room in a file: one row, repeated."""
    row = torch.randn(shape[-1:], generator=generator) / math.sqrt(max(shape[-1:], default=1) * 4)
    return row.expand(shape) if len(shape) > 1 else row


def state_like(net: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: small(tuple(value.shape), generator) if value.is_floating_point() else value
        for name, value in net.state_dict().items()
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory, clip_file):
    """A folder with the four files, in the layouts that are published."""
    folder = tmp_path_factory.mktemp("weights")
    with torch.device("meta"):
        shapes = VggishNet()
    generator = torch.Generator().manual_seed(0)
    state = {name: small(tuple(value.shape), generator) for name, value in shapes.state_dict().items()}
    torch.save(state, folder / FILES["vggish"].name)
    wav2clip = state_like(Wav2ClipNet(), 1) | {  # what the file holds besides
        "audio_encoder.spectrogram.window": torch.ones(512),
        "audio_encoder.fc.weight": torch.zeros(309, 512),
        "audio_encoder.fc.bias": torch.zeros(309),
        "image_transform.sequential.0.weight": torch.zeros(512, 512),
    }
    wav2clip = {k: v.abs() + 0.5 if k.endswith("running_var") else v for k, v in wav2clip.items()}
    torch.save(wav2clip, folder / FILES["wav2clip"].name)
    torch.manual_seed(2)
    torch.save(PasstNet(WIDTH, 2, 1).state_dict(), folder / FILES["passt"].name)
    (folder / FILES["clip"].name).symlink_to(clip_file[0])
    return folder


def test_the_layouts_are_the_published_ones():
    with torch.device("meta"):
        passt, vgg = PasstNet(), VggishNet()
    assert {name: tuple(value.shape) for name, value in vgg.state_dict().items()} == {
        **{
            f"features.{place}.{kind}": shape
            for place, (a, b) in {
                0: (1, 64),
                3: (64, 128),
                6: (128, 256),
                8: (256, 256),
                11: (256, 512),
                13: (512, 512),
            }.items()
            for kind, shape in (("weight", (b, a, 3, 3)), ("bias", (b,)))
        },
        **{
            f"embeddings.{place}.{kind}": shape
            for place, (a, b) in {0: (12288, 4096), 2: (4096, 4096), 4: (4096, 128)}.items()
            for kind, shape in (("weight", (b, a)), ("bias", (b,)))
        },
    }
    names = {name: tuple(value.shape) for name, value in passt.state_dict().items()}
    assert len([n for n in names if n.startswith("blocks.")]) == 12 * 12
    expected = {
        "cls_token": (1, 1, 768),
        "dist_token": (1, 1, 768),
        "new_pos_embed": (1, 2, 768),
        "freq_new_pos_embed": (1, 768, 12, 1),
        "time_new_pos_embed": (1, 768, 1, 99),
        "patch_embed.proj.weight": (768, 1, 16, 16),
        "blocks.11.attn.qkv.weight": (2304, 768),
        "blocks.11.attn.qkv.bias": (2304,),
        "blocks.11.attn.proj.weight": (768, 768),
        "blocks.11.mlp.fc1.weight": (3072, 768),
        "blocks.11.mlp.fc2.bias": (768,),
        "blocks.11.norm1.weight": (768,),
        "blocks.11.norm2.bias": (768,),
        "norm.weight": (768,),
        "head.0.weight": (768,),
        "head.1.weight": (527, 768),
        "head_dist.weight": (527, 768),
    }
    assert {name: names[name] for name in expected} == expected
    assert sum(value.numel() for value in passt.state_dict().values()) == pytest.approx(86.0e6, rel=0.02)


def test_vggish_sees_log_mel_examples_of_a_second():
    seconds, rate = 4.096, 16000
    wav = 0.5 * torch.sin(2 * math.pi * 1000 * torch.arange(int(seconds * rate)) / rate)
    found = examples(wav)
    assert found.shape == (4, 1, 96, 64)
    assert examples(wav[:100]).shape == (1, 1, 96, 64)
    edges = 700 * (torch.exp(torch.linspace(*(1127 * math.log(1 + f / 700) for f in (125, 7500)), 66) / 1127) - 1)
    nearest = (edges[1:-1] - 1000).abs().argmin()
    assert found[0, 0].mean(0).argmax() == nearest
    bands = mel_matrix(rate)
    assert bands.shape == (257, 64)
    assert bands[0].abs().sum() == 0
    assert bands.sum(1)[10:200].min() > 0.99  # neighbouring triangles add up to 1
    assert pytest.approx(math.exp(examples(torch.zeros(16000)).min().item())) == OFFSET


def test_passt_sees_a_thousand_spectra_of_ten_seconds():
    wav = 0.3 * torch.randn(320000, generator=torch.Generator().manual_seed(0))
    picture = passt_log_mel(wav)
    assert picture.shape == (128, 1000)
    assert PasstNet(WIDTH, 1, 1).patch_embed["proj"](picture[None, None]).shape[2:] == (12, 99)
    assert passt_log_mel(torch.zeros(320000)).unique().item() == pytest.approx((math.log(1e-5) + 4.5) / 5)
    louder = passt_log_mel(10 * wav) - picture
    assert louder.median().item() == pytest.approx(math.log(100) / 5, abs=1e-3)


def test_the_networks_hear(files):
    wav = 0.1 * torch.randn(65536, generator=torch.Generator().manual_seed(0))
    outputs = Vggish(files, check=False).analyse(wav)
    assert outputs.rows.shape == (4, 128)
    assert outputs.rows.min() < 0  # no ReLU at the end
    passt = Passt(files, check=False)
    one, padded = passt.analyse(wav.repeat(2)), passt.analyse(torch.nn.functional.pad(wav.repeat(2), (0, 400000)))
    assert one.rows.shape == (1, WIDTH)
    assert one.logits.shape == one.scores.shape == (1, 527)
    assert torch.equal(one.logits, padded.logits)  # ten seconds, the rest silence
    clip = Wav2Clip(files, check=False)
    assert clip.analyse(wav).rows.shape == (1, 512)
    assert torch.allclose(clip.analyse(wav).rows, clip.analyse(3 * wav).rows, atol=1e-3)  # it normalises each sound


def test_the_paper_suite_through_the_command(files, tmp_path):
    from im2wav.evaluate import evaluate

    generated, reference = tmp_path / "generated", tmp_path / "reference"
    for folder, seed in ((generated, 0), (reference, 1)):
        folder.mkdir()
        generator = torch.Generator().manual_seed(seed)
        for name in ("owl_03", "cat_03", "bird_02", "cow_04"):
            write_wav(folder / f"{name}.wav", (0.1 * torch.randn(32000, generator=generator)).numpy())
    options = [f"generated={generated}", f"reference={reference}", f"images={ASSETS / 'images'}"]
    options += ["suite=all", f"weights_dir={files}", "check_weights=false", f"out={tmp_path / 'out'}"]
    report = evaluate(config("evaluate", *options, "resamples=20", "resamples_fd=2", "examples=0"))
    row = report["rows"]["generated"]
    for name in ("fd/vggish", "fd/passt", "kl/passt", "is/passt", "agree@1/passt", "cs/wav2clip", "fd/yamnet"):
        assert row[name]["value"] is not None
    assert "cs/wav2clip" in report["rows"]["shuffled"]
    assert "cs/wav2clip" in report["rows"]["real"]  # CS of the references
    assert set(report["networks"]) == {"yamnet", "passt", "vggish", "wav2clip"}
    with pytest.raises(ValueError, match="4 of 4 have none: bird_02"):
        evaluate(config("evaluate", *options[:2], *options[3:]))
    with pytest.raises(ValueError, match="expected 302903fa8c4a"):
        evaluate(config("evaluate", *options, "check_weights=true"))


def test_files_of_another_kind_are_rejected(files, tmp_path):
    name = FILES["vggish"].name
    with pytest.raises(ValueError, match=f"lacks {name}; download it from"):
        Vggish(tmp_path, check=False)
    (tmp_path / name).write_text("no weights")
    with pytest.raises(ValueError, match=r"expected 10086976"):
        Vggish(tmp_path)
    with pytest.raises(ValueError, match="cannot be read as a state dict"):
        Vggish(tmp_path, check=False)
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / name)
    with pytest.raises(ValueError, match="does not match the network"):
        Vggish(tmp_path, check=False)
    torch.save([1], tmp_path / name)
    with pytest.raises(ValueError, match="contains a list, expected a state dict"):
        Vggish(tmp_path, check=False)
    torch.save({"a": torch.zeros(1)}, tmp_path / FILES["passt"].name)
    with pytest.raises(ValueError, match="is not a PaSST checkpoint"):
        Passt(tmp_path, check=False)
