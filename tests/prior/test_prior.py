from dataclasses import replace

import pytest
import torch

from helpers import CASES, SIZES, conditions, low_prior, up_prior
from im2wav.decoding.decoder import sample_codes
from im2wav.decoding.sampler import SamplingOptions, guide, uniforms
from im2wav.prior import Conditions, Prior, Timing
from im2wav.prior.conditioning import frame_of_position


@pytest.mark.parametrize(("make", "given"), CASES)
def test_logit_t_has_no_gradient_to_codes_from_t_on(make, given):
    prior = make()
    codes = torch.randint(16, (3, 64))
    embedded = []
    prior.code_embedding.register_forward_hook(
        lambda m, i, out: embedded.append(out.requires_grad_().retain_grad() or out)
    )
    for t in (0, 1, 7, 8, 40, 63):
        embedded.clear()
        prior(codes, given)[:, t].sum().backward()
        gradient = (
            torch.zeros(64)
            if embedded[0].grad is None
            else torch.cat([embedded[0].grad.abs().sum((0, 2)), torch.zeros(1)])
        )
        assert (gradient[t:] == 0).all()
        assert t == 0 or (gradient[:t] > 0).any()


def test_a_partial_sequence_has_the_logits_of_the_whole_one():
    prior, codes, given = low_prior(), torch.randint(16, (3, 64)), conditions()
    torch.testing.assert_close(prior(codes[:, :21], given), prior(codes, given)[:, :21], rtol=1e-4, atol=1e-5)


def test_one_doubled_batch_equals_two_passes():
    prior, codes, given = low_prior(), torch.randint(16, (3, 64)), conditions()
    both = prior(codes.repeat(2, 1), Conditions.cat([given, given.null_like()]))
    two = 3 * prior(codes, given) - 2 * prior(codes, given.null_like())
    torch.testing.assert_close(guide(both, 3.0), two, rtol=1e-4, atol=1e-4)


def test_null_hides_the_image_and_nothing_else():
    prior, codes, given = low_prior(), torch.randint(16, (3, 64)), conditions()
    other = replace(given, clip=given.clip + 1)
    torch.testing.assert_close(prior(codes, given.null_like()), prior(codes, other.null_like()))
    assert not torch.allclose(prior(codes, given), prior(codes, other))
    later = replace(given, timing=Timing(given.timing.total, given.timing.offset + 5e4, given.timing.duration))
    assert not torch.allclose(prior(codes, given.null_like()), prior(codes, later.null_like()))


@pytest.mark.parametrize(("make", "given"), CASES)
def test_greedy_sampling_equals_the_uncached_loop(make, given):
    prior, options = make(), SamplingOptions(guidance_scale=3.0, top_k=1)
    codes = torch.zeros(3, 64, dtype=torch.long)
    with torch.no_grad():
        for t in range(64):  # the slow way is the specification
            logits = prior(codes, given)[:, t]
            if prior.can_be_guided:
                logits = 3 * logits - 2 * prior(codes, given.null_like())[:, t]
            codes[:, t] = logits.argmax(1)
    uniform = uniforms([1, 2, 3], 64, "low")
    assert (sample_codes(prior, given, uniform, options) == codes).all()
    for prefix in (1, 8, 29, 64):
        assert (sample_codes(prior, given, uniform, options, prefix=codes[:, :prefix]) == codes).all()


def test_frames_belong_to_positions_by_even_spacing_and_half_to_even_rounding():
    assert frame_of_position(5, 3).tolist() == [0, 0, 1, 2, 2]
    assert frame_of_position(4, 1).tolist() == [0, 0, 0, 0]
    assert frame_of_position(2048, 123)[[0, -1]].tolist() == [0, 122]


def test_timing_bins_by_hand():
    tables = low_prior().conditioner.timing
    assert tables.bin("relative", torch.tensor([0.0, 0.5, 0.999, 1.0])).tolist() == [0, 32, 63, 63]
    assert tables.bin("absolute", torch.tensor([0.0, 149_999.0, 150_001.0, 1e9])).tolist() == [0, 0, 1, 63]
    assert tables.bin("total", torch.tensor([5_000.0, 160_000.0])).tolist() == [0, 0]


def test_fresh_weights_have_the_official_spread():
    torch.manual_seed(0)
    prior = Prior(
        512, 256, {"width": 256, "depth": 3, "blocks": 16}, {"timing": True, "frames": True, "guidance": True}
    )
    layer = prior.transformer.layers[0]
    for weight, std in (
        (prior.code_embedding.weight, 0.014),
        (prior.position_embedding, 0.007),
        (layer.qkv.weight, 0.014),
        (layer.mlp_out.weight, 0.014),
        (prior.conditioner.timing.tables["relative"].weight, 0.007),
    ):
        assert weight.std().item() == pytest.approx(std, rel=0.05)


def test_official_sizes_have_the_official_numbers_of_parameters():
    with torch.device("meta"):
        low = Prior(conditioning={"frames": True, "timing": True, "guidance": True})
        up = Prior(context_length=8192, conditioning={"upsampler": {}})
    assert sum(p.numel() for p in low.parameters()) == 157_344_768
    assert sum(p.numel() for p in up.parameters()) == 203_056_640


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Prior(16, 65, SIZES), "blocks=8"),
        (lambda: Prior(16, 64, {**SIZES, "heads": 3}), "heads=3"),
        (
            lambda: low_prior()(torch.zeros(3, 65, dtype=torch.long), conditions()),
            r"\[3, 65\]: expected \[B, n\] with n <= 64",
        ),
        (
            lambda: low_prior()(torch.zeros(3, 4, dtype=torch.long), Conditions(torch.zeros(3, 1, 7))),
            "use the image encoder",
        ),
        (
            lambda: low_prior()(torch.zeros(3, 4, dtype=torch.long), Conditions(torch.zeros(3, 1, 6))),
            "requires conditions.timing",
        ),
        (lambda: up_prior()(torch.zeros(3, 4, dtype=torch.long), conditions()), "conditions.codes_low"),
        (
            lambda: up_prior()(
                torch.zeros(3, 4, dtype=torch.long),
                replace(conditions(), codes_low=torch.zeros(3, 3, dtype=torch.long)),
            ),
            "3 coarse codes",
        ),
        (
            lambda: up_prior()(torch.zeros(3, 4, dtype=torch.long), conditions(coarse=True).null_like()),
            "guidance is not available",
        ),
        (lambda: sample_codes(low_prior(), conditions(), uniforms([1, 2, 3], 65, "low"), SamplingOptions()), "context"),
    ],
)
def test_what_does_not_fit_is_rejected(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(("make", "given"), CASES)
def test_errors_in_the_known_codes_change_what_later_codes_see_and_not_what_is_learnt(make, given):
    prior, codes = make(), torch.randint(16, (3, 64))
    known = prior.with_errors(codes, [1, 2, 3], 0.3)
    assert 0.15 < float((known != codes).float().mean()) < 0.45
    assert torch.equal(known[1:2], prior.with_errors(codes[1:2], [2], 0.3))  # of the item alone
    logits = prior(codes, given, known)
    torch.testing.assert_close(logits, prior(known, given))  # errors included
    expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), codes) / torch.tensor(2.0).log()
    torch.testing.assert_close(prior.training_bits(codes, given, [1, 2, 3], errors=0.3), expected)
    plain = prior.training_bits(codes, given, [1, 2, 3])
    torch.testing.assert_close(plain, prior.bits(codes, given), rtol=0, atol=0)
