import json
from dataclasses import replace

import pytest
import torch

from im2wav.codec import AudioCodec
from im2wav.codec.codec import BlockDecoder, decode_wave
from im2wav.decoding import SamplingOptions
from im2wav.decoding.decoder import Networks
from im2wav.inference.generate import count_codes, draw_level, generate, stream
from im2wav.inference.inputs import Input
from im2wav.inference.request import CodeBuffer, Request, Window, plan_windows, window_starts
from im2wav.prior import Conditions, Prior


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    codec = AudioCodec(width=4, depth=1, code_dim=4, codebook_size=16)
    codec(torch.randn(1, 1, 4096))
    sizes = {"width": 16, "depth": 3, "blocks": 4, "init_scale": 5.0}
    low = Prior(16, 32, sizes, {"clip_dim": 4, "map_width": 4, "frames": True, "timing": True, "guidance": True})
    up = Prior(16, 128, sizes, {"clip_dim": 4, "map_width": 4, "upsampler": {"width": 4, "depth": 2}})
    return Networks(codec.eval(), low.eval(), up.eval())


def clip(frames=30, fps=10.0, seed=0):
    embeddings = torch.randn(frames, 4, generator=torch.Generator().manual_seed(seed))
    return Input("clip", "video", embeddings=embeddings, fps=fps)


def generate_all(buffers, batch_size=16):
    return [audio for (audio,) in generate([[buffer] for buffer in buffers], batch_size=batch_size)]


def generate_one(networks, request):
    return generate_all([CodeBuffer(networks, request)])[0]


def test_starts_by_hand():
    assert window_starts(10, 4, 3) == [0, 3, 6]
    assert window_starts(4, 4, 2) == [0]
    assert window_starts(11, 4, 4) == [0, 4, 7]
    for bad in ((3, 4, 2), (8, 4, 0), (8, 4, 5)):
        with pytest.raises(ValueError, match="codes"):
            window_starts(*bad)


def test_starts_as_official(shared):
    functions = json.loads((shared / "golden/tiny/functions.json").read_text())
    assert len(functions["get_starts"]) > 3
    for total, length, hop, expected in functions["get_starts"]:
        assert window_starts(total, length, hop) == expected


def test_plans_by_hand():
    assert plan_windows(10, 4, 3, [(0, 10)]) == [(0, 0, 4), (3, 4, 7), (6, 7, 10)]
    assert plan_windows(10, 4, 3, [(2, 5), (9, 10)]) == [(0, 2, 4), (3, 4, 5), (6, 9, 10)]
    assert plan_windows(4, 4, 2, [(2, 3), (0, 1)]) == [(0, 0, 1), (0, 2, 3)]


def test_each_window_continues_the_codes_before_it(networks):
    low = Prior(
        16,
        32,
        {"width": 16, "depth": 3, "blocks": 4, "init_scale": 5.0},
        {"clip_dim": 4, "map_width": 4, "guidance": True},
    ).eval()
    image = clip(1)
    buffer = CodeBuffer(replace(networks, low=low), Request(image, 1, samples=80 * 32))
    draw_level([buffer], "low", 1)
    codes, uniform, conditions = buffer.codes["low"], buffer.uniform["low"], Conditions(image.embeddings[None])
    for start in (0, 16, 32, 48):  # the new codes of a window follow from its logits and random numbers
        window, known = codes[None, start : start + 32], 0 if start == 0 else 16
        with torch.no_grad():
            both = [low(window, c) for c in (conditions, conditions.null_like())]
        logits = (3 * both[0] - 2 * both[1])[0, known:].double().softmax(-1).cumsum(-1)
        drawn = torch.searchsorted(logits, uniform[start + known : start + 32, None], right=True).squeeze(-1)
        assert (drawn == window[0, known:]).float().mean() > 0.98


@pytest.mark.parametrize("frames", [1, 30])
def test_audio_longer_than_the_timing_tables_and_the_video(networks, frames):
    def buffers():
        return [
            CodeBuffer(networks, Request(clip(frames, seed=s), s, samples=n, recording=2000))
            for s, n in ((1, 2048), (2, 5000), (3, 5000))
        ]

    together = generate_all(buffers())
    assert [len(audio.wav) for audio in together] == [2048, 5000, 5000]
    assert len(together[1].codes["low"]) == 157
    for buffer, one in zip(buffers(), together, strict=True):
        (alone,) = generate_all([buffer], batch_size=1)
        for level in ("low", "up"):
            assert (alone.codes[level] == one.codes[level]).all()
            assert (alone.waveforms[level] == one.waveforms[level]).all()


def test_audio_shorter_than_a_window_is_its_beginning(networks):
    requests = [Request(clip(), 1), Request(clip(), 1, samples=300)]
    whole, short = generate_all([CodeBuffer(networks, request) for request in requests])
    assert len(short.waveforms["up"]) == len(short.waveforms["low"]) == 300
    assert (short.codes["up"] == whole.codes["up"][:38]).all()


def test_windows_beyond_the_training_length_are_conditioned_as_the_end_of_a_recording(networks):
    def timing(start, recording):
        buffer = CodeBuffer(networks, Request(clip(), recording=recording))
        found = buffer.conditions("low", Window(start, start, start + 32), buffer.request.input).timing
        return [int(value) for value in (found.total, found.offset, found.duration)]

    assert [timing(start, 2000) for start in (0, 16, 32, 28_125)] == [
        [2000, 0, 1024], [2000, 512, 1024], [2000, 976, 1024], [2000, 976, 1024]
    ]  # fmt: skip
    assert timing(0, 500) == [1024, 0, 1024]


@pytest.mark.parametrize("level", ["low", "up"])
def test_decoding_in_blocks_equals_decoding_at_once(networks, level):
    codes = torch.randint(0, 16, (700,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = networks.codec.decode(codes[None], level)[0, 0]
    reach = networks.codec.reach(level)
    for block in (1600, 10**6):
        torch.testing.assert_close(decode_wave(networks.codec, codes, level, block), whole.clamp(-1, 1))
    spoilt = codes.clone()
    spoilt[300] = (codes[300] + 1) % 16  # only samples within the receptive field change
    with torch.no_grad():
        other = networks.codec.decode(spoilt[None], level)[0, 0]
    hop = networks.codec.hop_lengths[level]
    changed = (whole - other).nonzero().flatten() // hop
    assert 300 - reach.after <= changed.min() < changed.max() <= 300 + reach.before
    assert reach.before < 20
    decoder = BlockDecoder(networks.codec, level, 700, 100 * hop)
    assert [len(list(decoder.push(codes, n))) for n in (100, 100 + reach.after, 500, 700)] == [0, 1, 3, 3]


@pytest.mark.parametrize(("samples", "overlap"), [(300, 0.5), (1024, 0.5), (18_000, 0.3), (18_000, 0.0)])
def test_streamed_audio_equals_generated_audio(networks, samples, overlap):
    request = Request(clip(), 5, samples=samples, sampling=SamplingOptions(overlap=overlap))
    whole = generate_one(networks, request)
    drawn, before = [], []
    buffer = CodeBuffer(networks, request)
    pieces = [before.append(len(drawn)) or piece for piece in stream(buffer, drawn.append)]
    assert (torch.cat(pieces) == whole.wav).all()
    assert len(pieces) == -(-samples // 16384)
    if len(pieces) > 1:  # the first one did not wait for the window to be full
        window = networks.window // 32 + networks.window // 8
        assert before[0] % window != 0
        assert before[0] < 16384 // 32 + 16384 // 8 + window


def test_joints_of_windows_are_inaudible(networks):
    """Energy and steps at the joints of windows are like elsewhere."""
    samples, window = 60 * 512 + 512, networks.window
    wav = generate_one(networks, Request(clip(), 7, samples=samples)).wav.double()
    joints = torch.arange(window, samples - 256, window // 2)
    energy = wav.square().unfold(0, 128, 1).mean(1)
    step = wav.diff().abs().unfold(0, 16, 1).amax(1)
    for measure, width in ((energy, 128), (step, 16)):
        at = measure[joints - width // 2]
        spread = measure.log().std() / len(joints) ** 0.5
        assert (at.log().mean() - measure.log().mean()).abs() < 4 * spread


def test_inpainting_keeps_the_rest(networks):
    request = Request(clip(), 1, samples=4096)
    first = generate_one(networks, request)
    again = replace(request, known_codes=first.codes, inpaint_interval=(1500, 2500))
    same, other = (generate_one(networks, replace(again, seed=seed)) for seed in (1, 2))
    streamed = stream(CodeBuffer(networks, again))
    assert (torch.cat(list(streamed)) == first.wav).all()
    for level, hop in (("low", 32), ("up", 8)):
        assert (same.codes[level] == first.codes[level]).all()  # the same seed draws the same codes
        kept = torch.ones(4096 // hop, dtype=torch.bool)
        kept[1500 // 32 * 32 // hop : -(-2500 // 32) * 32 // hop] = False
        assert (other.codes[level][kept] == first.codes[level][kept]).all()
        assert (other.codes[level][~kept] != first.codes[level][~kept]).float().mean() > 0.3


def test_audio_continuation_keeps_the_prompt(networks):
    request = Request(clip(), 1, samples=4096)
    first = generate_one(networks, request)
    prompt = {"low": first.codes["low"][:50], "up": first.codes["up"][:200]}
    continued = generate_one(networks, replace(request, known_codes=prompt))
    assert all((continued.codes[k] == first.codes[k]).all() for k in prompt)
    with pytest.raises(ValueError, match="1024 samples are requested, but 1600 are known"):
        CodeBuffer(networks, replace(request, known_codes=prompt, samples=1024))
    with pytest.raises(ValueError, match="expected an interval within the 1600 samples"):
        CodeBuffer(networks, replace(request, known_codes=prompt, inpaint_interval=(1500, 1700)))


def test_the_best_drafts_are_refined(networks):
    def groups(networks=networks):
        return [[CodeBuffer(networks, Request(clip(seed=g), seed)) for seed in range(4)] for g in range(2)]

    drawn = []
    drafts = generate(groups(), 2, on_step=drawn.append)
    assert sum(drawn) == count_codes(groups(), 2) == 8 * 32 + 4 * 128
    for group, buffers in zip(drafts, groups(), strict=True):
        assert sorted(d.rank for d in group) == [0, 1, 2, 3]
        by_rank = sorted(group, key=lambda d: d.rank)
        assert [d.gap for d in by_rank] == sorted((d.gap for d in group), reverse=True)
        assert ["up" in d.waveforms for d in by_rank] == [True, True, False, False]
        for draft, buffer in zip(group, buffers, strict=True):
            (plain,) = generate_all([buffer])
            assert all((draft.waveforms[k] == plain.waveforms[k]).all() for k in draft.waveforms)
            codes = plain.codes["low"][None]
            conditions = buffer.conditions("low", Window(0, 0, 32), buffer.request.input)
            with torch.no_grad():  # the definition, computed another way
                gap = networks.low.bits(codes, conditions.null_like()) - networks.low.bits(codes, conditions)
            assert draft.gap == pytest.approx(gap.item(), abs=1e-4)
    with pytest.raises(ValueError, match="keep=0"):
        generate(groups(), 0)
    with pytest.raises(ValueError, match="use num_samples instead"):
        generate(groups(replace(networks, low=networks.up)), 2)


def test_guidance_away_from_a_negative_image(networks):
    plain, ignored, same = (
        generate_one(networks, Request(clip(), 1, sampling=SamplingOptions(**options), negative=negative)).codes["low"]
        for negative, options in (
            (None, {"guidance_scale": 2.0}),
            (clip(1, seed=3), {"guidance_scale": 2.0, "negative_scale": 0.0}),
            (clip(), {"guidance_scale": 3.5, "negative_scale": 1.5}),  # away from the input itself
        )
    )
    assert (plain == ignored).all()
    assert (plain == same).float().mean() > 0.98
    pair = [CodeBuffer(networks, Request(clip(), seed, negative=clip(1, seed=3))) for seed in (1, 2)]
    together = generate_all(pair)
    alone = generate_one(networks, Request(clip(), 2, negative=clip(1, seed=3)))
    assert (alone.wav == together[1].wav).all()
    assert (together[0].codes["low"] != plain).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "0 samples of audio"),
        ({"inpaint_interval": (0, 100)}, "needs the audio: set inpaint=AUDIO"),
    ],
)
def test_bad_requests_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        Request(clip(), **options)


def test_independent_windows_share_a_batch(networks, monkeypatch):
    """Three items of five windows and one of two: one pass for all of the up level, the same codes as alone."""
    from im2wav.inference import generate as module

    sizes, real = [], module.draw_windows

    def counted(level, batch, on_step):
        sizes.append((level, len(batch)))
        real(level, batch, on_step)

    def buffers():
        return [
            CodeBuffer(networks, Request(clip(1, seed=s), s, samples=n * 1024, sampling=SamplingOptions(overlap=0.0)))
            for s, n in enumerate((5, 5, 5, 2))
        ]

    monkeypatch.setattr(module, "draw_windows", counted)
    together = generate_all(buffers(), batch_size=32)
    assert sizes.count(("up", 17)) == 1
    assert len(sizes) == 2
    monkeypatch.undo()
    for buffer, audio in zip(buffers(), together, strict=True):
        (alone,) = generate_all([buffer], batch_size=1)
        assert all((alone.codes[level] == audio.codes[level]).all() for level in ("low", "up"))


def test_requests_with_other_sampling_options_do_not_share_a_batch(networks):
    requests = [Request(clip(), 1, sampling=SamplingOptions(top_k=k)) for k in (0, 1, 4)]
    together = generate_all([CodeBuffer(networks, request) for request in requests])
    for request, audio in zip(requests, together, strict=True):
        assert (generate_one(networks, request).wav == audio.wav).all()
    assert (together[0].codes["low"] != together[1].codes["low"]).any()


@pytest.mark.parametrize("length", [20, 30, 45])  # frames of the video: 30 are the audio
def test_the_up_prior_gets_the_mean_of_its_window_or_of_the_whole_video(networks, length):
    """Frames by hand: 10 per second; windows of 128 codes of 8 samples, 0.064 s at this rate of 1,600 Hz: 0.64 s."""
    image = clip(length)
    for choice in ("window", "video"):
        options = SamplingOptions(up_condition=choice)
        request = Request(image, 1, samples=4800, sampling=options, sample_rate=1600)  # 3 s
        buffer = CodeBuffer(networks, request)
        for window in buffer.plan["up"]:
            first = int(window.start * 8 / 1600 * 10)
            frames = [min(first + k, length - 1) for k in range(7)] if choice == "window" else range(min(length, 31))
            shown = buffer.conditions("up", window, image).clip.mean(1)
            torch.testing.assert_close(shown, image.embeddings[list(frames)].mean(0, keepdim=True))
        low = [buffer.conditions("low", window, image).clip for window in buffer.plan["low"]]
        assert {clip.shape[1] for clip in low} == {7}  # the low prior gets the frames of its window in both cases


def test_the_up_condition_changes_only_the_up_codes_of_audio_longer_than_a_window(networks):
    strong = replace(clip(), embeddings=100 * clip().embeddings)  # these networks are not trained

    def both(samples):
        requests = (
            Request(strong, 3, samples=samples, sampling=SamplingOptions(up_condition=choice), sample_rate=1600)
            for choice in ("window", "video")
        )
        return [generate_one(networks, request) for request in requests]

    one, other = both(1024)
    assert torch.equal(one.codes["up"], other.codes["up"])
    one, other = both(4800)
    assert torch.equal(one.codes["low"], other.codes["low"])
    assert not torch.equal(one.codes["up"], other.codes["up"])
    pieces = list(stream(CodeBuffer(networks, other.request)))
    assert torch.equal(torch.cat(pieces), other.wav)


def test_the_up_condition_is_part_of_what_audio_depends_on():
    """Audio of versions without the option stays valid: it was made with `window`."""
    text = Input("a", "text", text="a dog")
    assert "up_condition" not in Request(text, samples=1).identity()["settings"]
    other = Request(text, samples=1, sampling=SamplingOptions(up_condition="video"))
    assert other.identity()["settings"]["up_condition"] == "video"
    with pytest.raises(ValueError, match="up_condition=both: expected window or video"):
        SamplingOptions(up_condition="both")
