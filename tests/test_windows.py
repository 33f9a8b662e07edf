import json
from dataclasses import replace

import pytest
import torch

from im2wav.codec import AudioCodec
from im2wav.decoding import SamplingOptions
from im2wav.inference.block_decoder import BlockDecoder, decode_wave, measure_reach
from im2wav.inference.code_buffer import Composition, draw, generate
from im2wav.inference.drafts import draft_and_refine
from im2wav.inference.request import Clip, Models, Request
from im2wav.inference.sliding_windows import plan_windows, window_starts
from im2wav.inference.streaming import stream
from im2wav.prior import Conditions, Prior

OPTIONS = SamplingOptions()


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    codec = AudioCodec(width=4, depth=1, code_dim=4, codebook_size=16)
    codec(torch.randn(1, 1, 4096))
    sizes = {"width": 16, "depth": 3, "blocks": 4, "init_scale": 5.0}
    low = Prior(16, 32, sizes, {"clip_dim": 4, "map_width": 4, "frames": True, "timing": True, "guidance": True})
    up = Prior(16, 128, sizes, {"clip_dim": 4, "map_width": 4, "upsampler": {"width": 4, "depth": 2}})
    return Models(codec.eval(), low.eval(), up.eval())


def clip(frames=30, fps=10.0, seed=0):
    return Clip(torch.randn(frames, 4, generator=torch.Generator().manual_seed(seed)), fps)


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


def test_each_window_goes_on_from_the_codes_before_it(models):
    low = Prior(
        16,
        32,
        {"width": 16, "depth": 3, "blocks": 4, "init_scale": 5.0},
        {"clip_dim": 4, "map_width": 4, "guidance": True},
    ).eval()
    picture = clip(1)
    item = Composition(replace(models, low=low), Request(picture, 1, samples=80 * 32, overlap=0.5))
    draw(item.models, [item], "low", OPTIONS, 1)
    codes, uniform, conditions = item.codes["low"], item.uniform["low"], Conditions(picture.embeddings[None])
    for start in (0, 16, 32, 48):  # what a window adds is what its own logits and random numbers say
        window, known = codes[None, start : start + 32], 0 if start == 0 else 16
        with torch.no_grad():
            both = [low(window, c) for c in (conditions, conditions.null_like())]
        logits = (3 * both[0] - 2 * both[1])[0, known:].double().softmax(-1).cumsum(-1)
        drawn = torch.searchsorted(logits, uniform[start + known : start + 32, None], right=True).squeeze(-1)
        assert (drawn == window[0, known:]).float().mean() > 0.98


@pytest.mark.parametrize("frames", [1, 30])
def test_sounds_longer_than_the_timing_tables_and_than_the_video(models, frames):
    requests = [Request(clip(frames, seed=s), s, samples=n, total=2000) for s, n in ((1, 2048), (2, 5000), (3, 5000))]
    together = generate(models, requests, OPTIONS)
    assert [len(g.wav["up"]) for g in together] == [2048, 5000, 5000]
    assert len(together[1].codes["low"]) == 157
    for request, one in zip(requests, together, strict=True):
        (alone,) = generate(models, [request], OPTIONS, batch_size=1)
        for level in ("low", "up"):
            assert (alone.codes[level] == one.codes[level]).all()
            assert (alone.wav[level] == one.wav[level]).all()


def test_a_sound_shorter_than_a_window_is_its_beginning(models):
    whole, short = generate(models, [Request(clip(), 1), Request(clip(), 1, samples=300)], OPTIONS)
    assert len(short.wav["up"]) == len(short.wav["low"]) == 300
    assert (short.codes["up"] == whole.codes["up"][:38]).all()


def test_frames_of_a_window_are_those_shown_in_it():
    video = Clip(torch.arange(40.0).view(40, 1), 10.0)
    request = Request(video)
    seen = lambda *x: request.conditions(video, *x).clip.flatten().tolist()  # noqa: E731
    assert seen(16000, 8000) == [10, 11, 12, 13, 14, 15]
    assert seen(60000, 8000) == [37, 38, 39, 39, 39, 39]
    assert len(seen(0, 65536)) == 41
    assert len(request.conditions(Clip(video.embeddings[:1]), 60000, 8000).clip[0]) == 1
    timeline = Clip(torch.tensor([[7.0], [8.0]]), 10.0, torch.tensor([0] * 12 + [1] * 5))
    assert request.conditions(timeline, 16000, 3200).clip.flatten().tolist() == [7, 7, 8]
    assert request.conditions(timeline, 19200, 8000).clip.flatten().tolist() == [8] * 6
    assert request.conditions(timeline, 14400, 8000).clip.flatten().tolist() == [7, 7, 7, 8, 8, 8]


def test_places_beyond_what_was_learnt_are_told_as_the_end_of_a_recording():
    request = Request(clip(), total=10_000)
    told = [
        [int(v) for v in (t.total, t.offset, t.duration)]
        for t in (request.conditions(request.clip, offset, 4000).timing for offset in (0, 6000, 8000, 900_000))
    ]
    assert told == [[10_000, 0, 4000], [10_000, 6000, 4000], [10_000, 6000, 4000], [10_000, 6000, 4000]]
    assert request.conditions(request.clip, 0, 40_000).timing.total == 40_000


@pytest.mark.parametrize("level", ["low", "up"])
def test_a_wave_in_blocks_is_the_wave(models, level):
    codes = torch.randint(0, 16, (700,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = models.codec.decode(codes[None], level)[0, 0]
    reach = measure_reach(models.codec, level)
    for block in (1600, 10**6):
        torch.testing.assert_close(decode_wave(models.codec, codes, level, reach, block), whole.clamp(-1, 1))
    spoilt = codes.clone()
    spoilt[300] = (codes[300] + 1) % 16  # what lies within the reach hears of it, nothing else
    with torch.no_grad():
        other = models.codec.decode(spoilt[None], level)[0, 0]
    hop = models.codec.hop_lengths[level]
    changed = (whole - other).nonzero().flatten() // hop
    assert 300 - reach.after <= changed.min() < changed.max() <= 300 + reach.before
    assert reach.before < 20
    decoder = BlockDecoder(models.codec, level, 700, reach, 100 * hop)
    assert [len(list(decoder.push(codes, n))) for n in (100, 100 + reach.after, 500, 700)] == [0, 1, 3, 3]


@pytest.mark.parametrize(("samples", "overlap"), [(300, 0.5), (1024, 0.5), (18_000, 0.3)])
def test_what_is_streamed_is_what_is_generated(models, samples, overlap):
    request = Request(clip(), 5, samples=samples, overlap=overlap)
    (whole,) = generate(models, [request], OPTIONS)
    drawn, before = [], []
    pieces = [before.append(len(drawn)) or piece for piece in stream(models, request, OPTIONS, drawn.append)]
    assert (torch.cat(pieces) == whole.wav["up"]).all()
    assert len(pieces) == -(-samples // 16384)
    if len(pieces) > 1:  # the first one did not wait for the window to be full
        window = models.window // 32 + models.window // 8
        assert before[0] % window != 0
        assert before[0] < 16384 // 32 + 16384 // 8 + window


def test_joints_of_windows_cannot_be_heard(models):
    """Energy and steps at the joints of windows are like elsewhere."""
    samples, window = 60 * 512 + 512, models.window
    (sound,) = generate(models, [Request(clip(), 7, samples=samples)], OPTIONS)
    wav = sound.wav["up"].double()
    joints = torch.arange(window, samples - 256, window // 2)
    energy = wav.square().unfold(0, 128, 1).mean(1)
    step = wav.diff().abs().unfold(0, 16, 1).amax(1)
    for measure, width in ((energy, 128), (step, 16)):
        at = measure[joints - width // 2]
        spread = measure.log().std() / len(joints) ** 0.5
        assert (at.log().mean() - measure.log().mean()).abs() < 4 * spread


def test_a_stretch_is_replaced_and_the_rest_kept(models):
    request = Request(clip(), 1, samples=4096)
    (first,) = generate(models, [request], OPTIONS)
    again = replace(request, given=first.codes, replace=(1500, 2500))
    same, other, streamed = *generate(models, [again, replace(again, seed=2)], OPTIONS), stream(models, again, OPTIONS)
    assert (torch.cat(list(streamed)) == first.wav["up"]).all()
    for level, hop in (("low", 32), ("up", 8)):
        assert (same.codes[level] == first.codes[level]).all()  # the same seed finds the same codes in the same places
        kept = torch.ones(4096 // hop, dtype=torch.bool)
        kept[1500 // 32 * 32 // hop : -(-2500 // 32) * 32 // hop] = False
        assert (other.codes[level][kept] == first.codes[level][kept]).all()
        assert (other.codes[level][~kept] != first.codes[level][~kept]).float().mean() > 0.3


def test_a_sound_goes_on(models):
    request = Request(clip(), 1, samples=4096)
    (first,) = generate(models, [request], OPTIONS)
    prefix = {"low": first.codes["low"][:50], "up": first.codes["up"][:200]}
    (on,) = generate(models, [replace(request, given=prefix)], OPTIONS)
    assert all((on.codes[k] == first.codes[k]).all() for k in prefix)
    with pytest.raises(ValueError, match=r"last 1024 samples, and 1600 are given"):
        generate(models, [replace(request, given=prefix, samples=1024)], OPTIONS)
    with pytest.raises(ValueError, match="expected a stretch within it"):
        generate(models, [replace(request, given=prefix, replace=(1500, 1700))], OPTIONS)


def test_the_best_drafts_are_refined(models):
    groups = [[Request(clip(seed=g), seed) for seed in range(4)] for g in range(2)]
    drafts = draft_and_refine(models, groups, 2, OPTIONS)
    for group, requests in zip(drafts, groups, strict=True):
        assert sorted(d.rank for d in group) == [0, 1, 2, 3]
        by_rank = sorted(group, key=lambda d: d.rank)
        assert [d.gap for d in by_rank] == sorted((d.gap for d in group), reverse=True)
        assert ["up" in d.sound.wav for d in by_rank] == [True, True, False, False]
        for draft, request in zip(group, requests, strict=True):
            (plain,) = generate(models, [request], OPTIONS)
            assert all((draft.sound.wav[k] == plain.wav[k]).all() for k in draft.sound.wav)
            codes, told = plain.codes["low"][None], request.conditions(request.clip, 0, 1024)
            with torch.no_grad():  # the definition, computed another way
                gap = models.low.bits(codes, told.null_like()) - models.low.bits(codes, told)
            assert draft.gap == pytest.approx(gap.item(), abs=1e-4)
    with pytest.raises(ValueError, match="keep=0"):
        draft_and_refine(models, groups, 0, OPTIONS)
    with pytest.raises(ValueError, match="use num_samples instead"):
        draft_and_refine(replace(models, low=models.up), groups, 2, OPTIONS)


def test_guided_away_from_a_picture(models):
    request = Request(clip(), 1)
    plain, ignored, same = (
        generate(models, [replace(request, negative=away)], SamplingOptions(**options))[0].codes["low"]
        for away, options in (
            (None, {"guidance_scale": 2.0}),
            (clip(1, seed=3), {"guidance_scale": 2.0, "negative_scale": 0.0}),
            (clip(), {"guidance_scale": 3.5, "negative_scale": 1.5}),  # away from what it is guided to
        )
    )
    assert (plain == ignored).all()
    assert (plain == same).float().mean() > 0.98
    pair = [replace(request, negative=clip(1, seed=3), seed=s) for s in (1, 2)]
    together = generate(models, pair, OPTIONS)
    (alone,) = generate(models, pair[1:], OPTIONS)
    assert (alone.wav["up"] == together[1].wav["up"]).all()
    assert (together[0].codes["low"] != plain).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"samples": 0}, "a sound of 0 samples"), ({"overlap": 1.0}, "overlap=1.0"), ({"overlap": -0.1}, "overlap=-0.1"),
     ({"replace": (0, 100)}, "for a sound that is given")],
)  # fmt: skip
def test_bad_requests_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Request(clip(), **options)


def test_windows_that_need_nothing_from_each_other_are_drawn_side_by_side(models, monkeypatch):
    """Three items of five windows and one of two: one pass for all of the up level, the same codes as alone."""
    from im2wav.inference import code_buffer as pipeline

    sizes, real = [], pipeline.draw_tasks

    def counted(models, tasks, options, on_step=None):
        sizes.append((tasks[0].level, len(tasks)))
        real(models, tasks, options, on_step)

    monkeypatch.setattr(pipeline, "draw_tasks", counted)
    lengths = (5, 5, 5, 2)
    requests = [Request(clip(1, seed=s), s, samples=n * 1024, overlap=0.0) for s, n in enumerate(lengths)]
    together = generate(models, requests, OPTIONS, batch_size=32)
    assert sizes.count(("up", 17)) == 1
    assert len(sizes) == 2
    monkeypatch.undo()
    for request, sound in zip(requests, together, strict=True):
        alone = generate(models, [request], OPTIONS, batch_size=1)[0]
        assert all((alone.codes[level] == sound.codes[level]).all() for level in ("low", "up"))
