"""Priors with several codes for each position: the autoregressive one, and the one that fills codebooks in parallel."""

import math
from dataclasses import replace

import pytest
import torch

from helpers import conditions, low_prior, sharpened
from im2wav.decoding import SamplingOptions, make_decoder, sample_codes
from im2wav.decoding.sampler import uniforms
from im2wav.prior import Conditions, MaskedPrior, Prior

TRANSFORMER = {"width": 32, "depth": 3, "heads": 2, "attention_ratio": 1.0, "init_scale": 1.0}
CONDITIONING = {"clip_dim": 6, "map_width": 8, "frames": True, "guidance": True}
LENGTH = 20


def depth_prior() -> Prior:
    torch.manual_seed(1)
    options = {**CONDITIONING, "timing": True}
    return sharpened(Prior(16, LENGTH, {**TRANSFORMER, "attention": "causal"}, options, codebooks=3)).eval()


def masked_prior() -> MaskedPrior:
    torch.manual_seed(1)
    sizes = {**TRANSFORMER, "attention": "bidirectional"}
    return sharpened(MaskedPrior(16, LENGTH, sizes, CONDITIONING, codebooks=5, known_codebooks=2)).eval()


def given(batch: int = 3) -> Conditions:
    torch.manual_seed(4)
    return replace(conditions(batch), codes_low=torch.randint(16, (batch, LENGTH, 2)))


def test_a_code_depends_on_all_before_it_in_time_and_depth_and_on_none_after():
    prior, codes = depth_prior(), torch.randint(16, (1, LENGTH, 3))
    before = prior(codes, conditions(1))
    for place, number in ((7, 0), (7, 1), (7, 2)):
        other = codes.clone()
        other[0, place, number] = (other[0, place, number] + 1) % 16
        changed = (prior(other, conditions(1)) - before).abs().amax(-1)[0] > 1e-6  # [T, Q]
        assert not changed[:place].any()
        assert changed[place + 1 :].all()
        assert changed[place].tolist() == [k > number for k in range(3)]


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_cached_decoding_draws_from_the_logits_of_the_whole_sequence(scale):
    prior, seen = depth_prior(), conditions()
    uniform, options = uniforms([1, 2, 3], LENGTH, "low", shape=(3,)), SamplingOptions(scale)
    codes = sample_codes(prior, seen, uniform, options)
    assert codes.shape == (3, LENGTH, 3)
    logits = scale * prior(codes, seen) + (1 - scale) * prior(codes, seen.null_like())
    cumulative = logits.double().softmax(-1).cumsum(-1)
    chosen = torch.searchsorted(cumulative, uniform[..., None] * cumulative[..., -1:], right=True)[..., 0]
    assert (chosen == codes).float().mean() > 0.99  # but for rounding at the border of two codes
    decoder = make_decoder(prior)
    torch.testing.assert_close(decoder.score(seen, codes), prior(codes, seen), atol=1e-4, rtol=1e-4)


def test_codes_do_not_depend_on_the_batch_and_continue_a_prefix():
    for prior, seen, shape in ((depth_prior(), conditions(), (3,)), (masked_prior(), given(), (5,))):
        uniform, options = uniforms([1, 2, 3], LENGTH, "x", shape=shape), SamplingOptions(2.0)
        decoder = make_decoder(prior)
        codes = sample_codes(decoder, seen, uniform, options)
        alone = [sample_codes(decoder, seen.take(slice(i, i + 1)), uniform[i : i + 1], options) for i in range(3)]
        assert torch.equal(torch.cat(alone), codes)
        again = sample_codes(decoder, seen, uniform, options, codes[:, :8])
        assert torch.equal(again[:, :8], codes[:, :8])
    causal = make_decoder(depth_prior())
    uniform = uniforms([1, 2, 3], LENGTH, "x", shape=(3,))
    codes = sample_codes(causal, conditions(), uniform, SamplingOptions(2.0))
    assert torch.equal(sample_codes(causal, conditions(), uniform, SamplingOptions(2.0), codes[:, :8]), codes)


def test_the_masked_prior_keeps_the_known_codebooks_and_sees_both_sides():
    prior, seen = masked_prior(), given(1)
    codes = torch.cat([seen.codes_low, torch.randint(16, (1, LENGTH, 3))], -1)
    drawn = sample_codes(prior, seen, uniforms([1], LENGTH, "x", shape=(5,)), SamplingOptions(2.0))
    assert torch.equal(drawn[..., :2], seen.codes_low)
    decoder, uniform = make_decoder(prior), uniforms([1], 12, "x", shape=(5,))
    states = []
    for following in (codes[:, 12:], (codes[:, 12:] + 1) % 16):
        state = decoder.start(seen, uniform, SamplingOptions(2.0), codes[:, :8], following=following)
        states.append(state.steps())
        assert torch.equal(state.codes[:, :8], codes[:, :8])
    assert not torch.equal(states[0], states[1])


def test_one_pass_for_each_codebook_draws_from_the_logits_of_forward():
    prior, seen = masked_prior(), given()
    uniform = uniforms([1, 2, 3], LENGTH, "x", shape=(5,))
    codes = sample_codes(prior, seen, uniform, SamplingOptions(1.0, passes=1))
    cumulative = prior(codes, seen).double().softmax(-1).cumsum(-1)
    wanted = uniform[..., 2:, None] * cumulative[..., -1:]
    assert (torch.searchsorted(cumulative, wanted, right=True)[..., 0] == codes[..., 2:]).float().mean() > 0.99


def test_each_position_is_drawn_in_one_of_the_passes_and_later_passes_see_it(monkeypatch):
    prior, seen = masked_prior(), given(1)
    decoder, shown = make_decoder(prior), []
    logits = type(decoder).logits

    def spy(self, codes, known, level, condition):
        shown.append(
            (level, int(known[:, level].sum()), bool(known[:, :level].all()), bool(known[:, level + 1 :].any()))
        )
        return logits(self, codes, known, level, condition)

    monkeypatch.setattr(type(decoder), "logits", spy)
    sample_codes(decoder, seen, uniforms([1], LENGTH, "x", shape=(5,)), SamplingOptions(1.0, passes=3))
    counts = [0, *(round(LENGTH * (1 - math.cos(math.pi / 2 * k / 3))) for k in (1, 2))]
    assert shown == [(level, count, True, False) for level in (2, 3, 4) for count in counts]


def test_masks_depend_on_the_seed_of_the_item_and_the_loss_on_masked_codes_only():
    prior, seen = masked_prior(), given()
    level, known, asked = prior._masks(LENGTH, range(300))
    assert set(level.tolist()) == {2, 3, 4}
    assert asked.any(1).float().mean() > 0.95
    assert known.all(2).any(1).float().mean() > 0.2  # continuation and inpainting
    rows = torch.arange(300)
    assert known[..., :2].all()
    assert not (known[rows, :, level] & asked).any()
    assert (known[rows, :, level] | asked).all()
    again = prior._masks(LENGTH, [7, 5])
    assert torch.equal(again[1], known[[7, 5]])
    assert torch.equal(again[2], asked[[7, 5]])
    codes = torch.cat([seen.codes_low, torch.randint(16, (3, LENGTH, 3))], -1)
    level, known, asked = prior._masks(LENGTH, [1, 2, 3])
    loss = prior.training_bits(codes, seen, [1, 2, 3])
    unseen = ~known
    unseen[torch.arange(3), :, level] &= ~asked  # neither seen nor asked for
    assert unseen.any()
    other = torch.where(unseen, (codes + 1) % 16, codes)
    assert torch.equal(loss, prior.training_bits(other, seen, [1, 2, 3]))
    assert loss.isfinite()
    assert not torch.equal(loss, prior.training_bits(torch.where(known, (codes + 1) % 16, codes), seen, [1, 2, 3]))


def test_uniform_logits_have_as_many_bits_as_the_codebook():
    for prior, seen, count in ((depth_prior(), conditions(), 3), (masked_prior(), given(), 5)):
        with torch.no_grad():
            for parameter in prior.parameters():
                parameter.zero_()
        codes = torch.randint(16, (3, LENGTH, count))
        assert prior.bits(codes, seen).item() == pytest.approx(4.0)
        assert prior.training_bits(codes, seen, [1, 2, 3]).item() == pytest.approx(4.0)


def test_sizes_that_cannot_be_are_refused():
    for options, text in (
        ({"known_codebooks": 5}, "known_codebooks=5"),
        ({"transformer": {**TRANSFORMER, "attention": "causal"}}, "attention=bidirectional"),
        ({"transformer": {**TRANSFORMER, "attention": "sparse"}}, "attention=sparse"),
    ):
        with pytest.raises(ValueError, match=text):
            MaskedPrior(**{"codebooks": 5, "transformer": {**TRANSFORMER, "attention": "bidirectional"}, **options})
    with pytest.raises(ValueError, match="expected"):
        depth_prior()(torch.zeros(1, LENGTH, 2, dtype=torch.long), conditions(1))


@pytest.mark.parametrize("make", [low_prior, depth_prior, masked_prior])
def test_weights_of_positions_weigh_their_loss(make):
    """All alike is the mean; a position of weight 0 gives no gradient to its target, the others share the loss."""
    prior = make()
    length, seeds = prior.context_length, [1]
    shape = (1, length, *prior.code_shape)
    codes, seen = torch.randint(16, shape), conditions(1)
    if prior.code_shape and len(prior.targets(codes[0, 0])) < shape[-1]:
        seen = replace(seen, codes_low=codes[..., :2])
    plain = prior.training_bits(codes, seen, seeds)
    torch.testing.assert_close(prior.training_bits(codes, seen, seeds, torch.full((length,), 3.0)), plain)
    first, rest = torch.zeros(length), torch.ones(length)
    first[: length // 2], rest[: length // 2] = 1, 0
    heavy = prior.training_bits(codes, seen, seeds, rest + 6 * first)
    low, high = sorted(prior.training_bits(codes, seen, seeds, w).item() for w in (first, rest))
    assert low <= heavy.item() <= high
    if not isinstance(prior, MaskedPrior):  # it has each item's own number of masked positions
        bits = prior.item_bits(codes, seen).flatten(2).mean(2) if prior.code_shape else prior.item_bits(codes, seen)
        expected = (bits * (rest + 6 * first)).sum(1).mean() / (rest + 6 * first).sum()
        torch.testing.assert_close(heavy, expected)
