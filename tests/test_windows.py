import json

import pytest
import torch

from im2wav.codec import AudioCodec
from im2wav.generation import Request, SamplingOptions, generate
from im2wav.generation.sampling import uniforms
from im2wav.generation.windows import sample_windows, window_starts
from im2wav.prior import Conditions, Prior


def nets():
    torch.manual_seed(0)
    codec = AudioCodec(width=4, depth=1, code_dim=4, codebook_size=16)
    codec(torch.randn(1, 1, 4096))
    sizes = {"width": 16, "depth": 3, "blocks": 4, "init_scale": 5.0}
    low = Prior(16, 32, sizes, {"clip_dim": 4, "map_width": 4, "frames": True, "timing": True, "guidance": True})
    up = Prior(16, 128, sizes, {"clip_dim": 4, "map_width": 4, "upsampler": {"width": 4, "depth": 2}})
    return codec.eval(), low.eval(), up.eval()


def test_starts_by_hand_and_as_official(shared):
    assert window_starts(10, 4, 3) == [0, 3, 6]
    assert window_starts(4, 4, 2) == [0]
    assert window_starts(11, 4, 4) == [0, 4, 7]
    functions = json.loads((shared / "golden/tiny/functions.json").read_text())
    for total, length, hop, expected in functions["get_starts"]:
        assert window_starts(total, length, hop) == expected
    for bad in ((3, 4, 2), (8, 4, 0), (8, 4, 5)):
        with pytest.raises(ValueError, match="codes"):
            window_starts(*bad)


def test_each_window_goes_on_from_the_codes_before_it():
    _, low, _ = nets()
    low.conditioner.timing = None
    clip = torch.randn(2, 1, 4)
    uniform = uniforms([1, 2], 80, "low")
    codes = sample_windows(low, lambda start: Conditions(clip), uniform, SamplingOptions(), 16)
    for start in (0, 16, 32, 48):  # what a window adds is what its own logits and random numbers say
        window, known = codes[:, start : start + 32], 0 if start == 0 else 16
        with torch.no_grad():
            both = [low(window, c) for c in (Conditions(clip), Conditions(clip).null_like())]
        logits = (3 * both[0] - 2 * both[1])[:, known:].double().softmax(-1).cumsum(-1)
        drawn = torch.searchsorted(logits, uniform[:, start + known : start + 32, None], right=True).squeeze(-1)
        assert (drawn == window[:, known:]).float().mean() > 0.98


@pytest.mark.parametrize("frames", [1, 30])
def test_sounds_longer_than_the_timing_tables_and_than_the_video(frames):
    codec, low, up = nets()
    clip = torch.randn(2, frames, 4)
    request = Request(clip, [1, 2], fps=10.0, samples=5000, total=2000)
    generated = generate(codec, low, up, request, SamplingOptions())
    assert generated.wav["up"].shape == (2, 1, 5024)  # up to a whole low code
    assert generated.codes["low"].shape == (2, 157)
    alone = generate(codec, low, up, Request(clip[1:], [2], 10.0, 5000, total=2000), SamplingOptions())
    assert (alone.codes["up"][0] == generated.codes["up"][1]).all()
    assert (alone.wav["up"][0] == generated.wav["up"][1]).all()


def test_frames_of_a_window_are_those_shown_in_it():
    clip = torch.arange(40.0).view(1, 40, 1)
    request = Request(clip, [0], fps=10.0)
    assert request.conditions(16000, 8000, None).clip.flatten().tolist() == [10, 11, 12, 13, 14, 15]
    assert request.conditions(60000, 8000, None).clip.flatten().tolist() == [37, 38, 39, 39, 39, 39]
    assert request.conditions(0, 65536, None).clip.shape[1] == 41
    assert Request(clip[:, :1], [0]).conditions(60000, 8000, None).clip.shape[1] == 1


@pytest.mark.parametrize(("samples", "overlap"), [(100, 0.5), (2000, 1.0), (2000, -0.1)])
def test_bad_requests_are_refused(samples, overlap):
    with pytest.raises(ValueError, match="at least a window of 1024 samples"):
        generate(*nets(), Request(torch.zeros(1, 1, 4), [0], samples=samples, overlap=overlap), SamplingOptions())
