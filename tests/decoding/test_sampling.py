import pytest
import torch

from im2wav.decoding.sampler import SamplingOptions, draw, filter_logits, guide, item_seed, uniforms

INF = float("inf")


def test_top_k_by_hand_keeps_ties():
    logits = torch.tensor([1.0, 3.0, 2.0, 3.0, 0.0])
    assert filter_logits(logits, top_k=1).tolist() == [-INF, 3, -INF, 3, -INF]
    assert filter_logits(logits, top_k=3).tolist() == [-INF, 3, 2, 3, -INF]
    assert filter_logits(logits, top_k=9).tolist() == logits.tolist()


def test_top_p_by_hand():
    logits = torch.tensor([0.1, 0.4, 0.2, 0.25, 0.05]).log()
    kept = [torch.isfinite(filter_logits(logits, top_p=p)).nonzero().flatten().tolist() for p in (0.05, 0.5, 0.7, 1.0)]
    assert kept == [[1], [1, 3], [1, 2, 3], [0, 1, 2, 3, 4]]


def test_draws_follow_the_distribution_and_never_what_was_filtered():
    logits = torch.tensor([[0.5, 0.125, 0.25, 0.125]]).log().repeat(20_000, 1)
    uniform = torch.rand(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    share = draw(logits, uniform, SamplingOptions()).bincount(minlength=4) / 20_000
    torch.testing.assert_close(share, torch.tensor([0.5, 0.125, 0.25, 0.125]), atol=0.01, rtol=0)
    edges = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert draw(torch.tensor([[-INF, 0.0, -INF], [0.0, 0.0, -INF]]), edges, SamplingOptions()).tolist() == [1, 1]
    assert draw(logits[:2], edges, SamplingOptions(top_k=1)).tolist() == [0, 0]


def test_the_up_prior_can_have_its_own_temperature():
    options = SamplingOptions(temperature=0.9, up_temperature=0.5)
    assert (options.of_level("low").temperature, options.of_level("up").temperature) == (0.9, 0.5)
    assert SamplingOptions(temperature=0.9).of_level("up").temperature == 0.9
    with pytest.raises(ValueError, match="up_temperature=-1: expected more than 0"):
        SamplingOptions(up_temperature=-1)


@pytest.mark.parametrize("overlap", [1.0, -0.1])
def test_windows_cannot_overlap_wholly_or_negatively(overlap):
    with pytest.raises(ValueError, match=f"overlap={overlap}: expected a fraction >= 0 and < 1"):
        SamplingOptions(overlap=overlap)


def test_a_low_temperature_sharpens():
    logits = torch.tensor([[1.0, 0.0]]).repeat(1000, 1)
    uniform = torch.linspace(0, 0.999, 1000, dtype=torch.float64)
    shares = [
        (draw(logits, uniform, SamplingOptions(temperature=t)) == 0).float().mean().item() for t in (0.2, 1.0, 5.0)
    ]
    assert shares[0] > 0.99 > shares[1] > 0.7 > shares[2] > 0.5


def test_guidance_by_hand():
    assert guide(torch.tensor([[2.0, 1.0], [1.0, 3.0]]), 3.0).tolist() == [[4.0, -3.0]]
    three = torch.tensor([[2.0, 1.0], [1.0, 3.0], [0.0, 4.0]])
    assert guide(three, 3.0, 0.5).tolist() == [[4.5, -3.5]]


def test_random_numbers_belong_to_the_item():
    one, both = uniforms([5], 10, "low"), uniforms([3, 5], 10, "low")
    assert (one[0] == both[1]).all()
    assert (one != uniforms([5], 10, "up")).any()
    assert item_seed(0, "dog", 1) != item_seed(0, "dog", 2) != item_seed(1, "dog", 2)


@pytest.mark.parametrize(
    "options", [{"temperature": 0}, {"top_k": -1}, {"top_p": 1.5}, {"top_k": 3, "top_p": 0.5}], ids=str
)
def test_bad_options_are_rejected(options):
    with pytest.raises(ValueError, match="="):
        SamplingOptions(**options)
