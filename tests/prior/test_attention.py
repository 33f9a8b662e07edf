import pytest
import torch

from im2wav.prior.transformer import KINDS, attend, attend_dense, mask


def qkv(length, heads=2, width=4, batch=3):
    torch.manual_seed(0)
    return [torch.randn(batch, heads, length, width, dtype=torch.float64, requires_grad=True) for _ in range(3)]


def test_masks_by_hand():
    rows = {kind: mask(kind, 6, 3).int().tolist() for kind in KINDS}
    assert rows["row"][4] == [0, 0, 0, 1, 1, 0]
    assert rows["column"][4] == [0, 1, 0, 0, 1, 0]
    assert rows["previous_row"][4] == [1, 1, 1, 0, 0, 0]
    assert rows["previous_row"][1] == [0] * 6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [24, 12, 17, 1])
def test_fast_attention_equals_the_dense_mask_forward_and_gradient(kind, length):
    tensors = qkv(length)
    weight = torch.randn(3, 2, length, 4, dtype=torch.float64)
    results = []
    for way in (attend, attend_dense):
        out = way(kind, *tensors, 6)
        results.append((out, *torch.autograd.grad((out * weight).sum(), tensors)))
    for fast, dense in zip(*results, strict=True):
        torch.testing.assert_close(fast, dense, rtol=1e-10, atol=1e-12)
