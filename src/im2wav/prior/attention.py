"""Factored attention over a sequence reshaped into rows of `block` positions.

Position p lies in row r = p // block and column c = p % block. Layers alternate between three kinds:

    row           p attends to columns <= c of its row
    column        p attends to rows <= r of its column
    previous_row  p attends to all of row r - 1; the output of row 0 is zero

`mask` is the specification. `attend` is the fast path: plain scaled-dot-product attention after a reshape, which
fused kernels serve. `im2wav.decoding.kv_cache` is the incremental path. All three are equal, and tests hold them to it.
Shapes: q, k, v are [B, H, T, D] (batch, heads, positions, width of a head).
Source: sparse transformer (Child et al., 2019) as factored by Jukebox (Dhariwal et al., 2020).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

Kind = Literal["row", "column", "previous_row"]
KINDS: tuple[Kind, ...] = ("row", "column", "previous_row")


def mask(kind: Kind, length: int, block: int, device: torch.device | None = None) -> Tensor:
    """Boolean attention mask [length, length]: entry [p, s] is true if position p attends to position s."""
    p = torch.arange(length, device=device)
    row, column = p // block, p % block
    if kind == "row":
        return (row[:, None] == row) & (column[:, None] >= column)
    if kind == "column":
        return (column[:, None] == column) & (row[:, None] >= row)
    return row[:, None] - 1 == row


def attend_dense(kind: Kind, q: Tensor, k: Tensor, v: Tensor, block: int) -> Tensor:
    """Reference implementation: attention with the boolean mask, [B, H, T, D]. Quadratic in T; for tests, benchmarks.

    It does not call the fused kernel of `attend`, so that the two implementations are independent.
    """
    allowed = mask(kind, q.shape[2], block, q.device)
    scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(~allowed, torch.finfo(q.dtype).min)
    return (scores.softmax(-1) * allowed).to(v.dtype) @ v  # positions without keys get zeros


def attend(kind: Kind, q: Tensor, k: Tensor, v: Tensor, block: int) -> Tensor:
    """Fast path: equal to `attend_dense`, [B, H, T, D], without the [T, T] matrix."""
    batch, _, length, _ = q.shape
    padding = -length % block
    if padding:  # incomplete last row: padding comes last, so that no real position attends to it
        q, k, v = (F.pad(x, (0, 0, 0, padding)) for x in (q, k, v))
    if kind == "column":
        q, k, v = (rearrange(x, "b h (r c) d -> (b c) h r d", c=block) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out = rearrange(out, "(b c) h r d -> b h (r c) d", b=batch)
    else:
        if kind == "previous_row":  # row 0 attends to zeros, whose mean is zero
            k, v = (F.pad(x, (0, 0, block, 0))[:, :, :-block] for x in (k, v))
        q, k, v = (rearrange(x, "b h (r c) d -> (b r) h c d", c=block) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=kind == "row")
        out = rearrange(out, "(b r) h c d -> b h (r c) d", b=batch)
    return out[:, :, :length]
