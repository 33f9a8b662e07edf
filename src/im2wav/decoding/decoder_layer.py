"""A layer of a prior's transformer for decoding, with the KV cache of factored attention; and its output heads.

Shapes: R rows of the network, B sequences, W width, A width of attention, H heads, D width of a head, n positions, K
codes, Q codebooks; keys and values travel together as kv [2, R, H, n, D]. The kinds of attention are those of
`im2wav.prior.transformer`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from im2wav.decoding.linear import Linear, give_back_freed_memory
from im2wav.prior import CodePrior, Prior
from im2wav.prior.depth import DepthHead
from im2wav.prior.transformer import Kind, Layer, attend

# rows of positions that a kind of attention sees; `column` sees all
ROWS_KEPT = {"row": 1, "previous_row": 2}
# CUDA's fused attention copies a mask whose rows do not start at a multiple of 16 elements
MASK_ALIGNMENT = 16


class Place(NamedTuple):
    """Cache places of one position for one kind of attention, as tensors on the device.

    Attributes:
        target: place of the position's key and value, [1].
        column: the position's column, [1].
        mask: added to the attention scores, 0 for visible places of the cache and -inf for the others, [1, places].
    """

    target: Tensor
    column: Tensor
    mask: Tensor


class PlaceTable:
    """The `Place` of every position. Two operations per step look it up for all layers.

    Args:
        kinds: kinds of attention in the transformer.
        length: positions of the context, T.
        block: positions in a row.
        like: tensor with the device, and the dtype of queries and masks.
    """

    def __init__(self, kinds: Sequence[Kind], length: int, block: int, like: Tensor):
        position = torch.arange(length, device=like.device)
        row, column, rows = position // block, position % block, -(-length // block)
        self.kinds = tuple(dict.fromkeys(kinds))
        targets: list[Tensor] = [column]
        masks: list[Tensor] = []
        self.spans: list[tuple[int, int]] = []  # columns of `masks` by kind
        for kind in self.kinds:
            kept = rows if kind == "column" else ROWS_KEPT[kind] * block
            place = torch.arange(kept, device=like.device)
            if kind == "column":
                targets.append(column * rows + row)
                visible = place <= row[:, None]
            elif kind == "row":
                targets.append(column)
                visible = place <= column[:, None]
            else:
                targets.append(row % 2 * block + column)
                visible = place // block != row[:, None] % 2
            first = sum(mask.shape[1] for mask in masks)
            self.spans.append((first, first + kept))
            masks.append(F.pad(visible, (0, -kept % MASK_ALIGNMENT)))
        self.targets = torch.stack(targets, 1)  # [T, 1 + kinds]: columns, then targets
        hidden = torch.cat(masks, 1).logical_not()
        self.masks = like.new_zeros(hidden.shape).masked_fill_(hidden, -torch.inf)  # [T, aligned places of all kinds]

    def at(self, position: Tensor) -> Mapping[Kind, Place]:
        """Look up a position [1]."""
        column, *targets = self.targets.index_select(0, position).unbind(1)
        mask = self.masks.index_select(0, position)
        return {
            kind: Place(target, column, mask[:, first:end])
            for kind, target, (first, end) in zip(self.kinds, targets, self.spans, strict=True)
        }


class LayerCache:
    """The KV cache of one layer, allocated once and written by position.

    `row` keeps the current row, `previous_row` the current and the previous one, `column` all.
    The buffer is [2, R, H, places, D]. A position of row r and column c has the place (r mod rows kept) * block + c;
    for `column` c * rows + r, so that the positions of a column are contiguous.
    """

    def __init__(self, kind: Kind, batch: int, heads: int, length: int, width: int, block: int, like: Tensor):
        self.kind: Kind = kind
        self.block, self.rows = block, -(-length // block)
        self.kept = self.rows if kind == "column" else ROWS_KEPT[kind]
        self.buffer = like.new_zeros(2, batch, heads, self.kept * block, width)

    def clear(self) -> None:
        """Set all keys and values to zero."""
        self.buffer.zero_()  # `previous_row` of row 0 sees zeros

    def fill(self, kv: Tensor, rows: Tensor) -> None:
        """Write positions 0 to n - 1 of the sequences `rows` [b]: kv [2, b, H, n, D]."""
        length = kv.shape[3]
        for row in range(max(0, -(-length // self.block) - self.kept), -(-length // self.block)):
            part = kv[:, :, :, row * self.block : (row + 1) * self.block]
            if self.kind == "column":
                self.buffer.unflatten(3, (self.block, self.rows))[:, rows, :, : part.shape[3], row] = part
            else:
                first = row % self.kept * self.block
                self.buffer[:, rows, :, first : first + part.shape[3]] = part

    def places(self, position: int) -> tuple[int, int, int]:
        """The place of `position`, the first place that it attends to, and their number."""
        row, column = divmod(position, self.block)
        if self.kind == "column":
            return column * self.rows + row, column * self.rows, row + 1
        first = row % self.kept * self.block
        if self.kind == "row":
            return column, 0, column + 1
        return first + column, self.block - first, self.block  # the other of the two rows

    def store(self, kv: Tensor, position: int) -> tuple[Tensor, Tensor, int]:
        """Write kv [2, R, H, 1, D] at `position`.

        Returns:
            Keys and values [R, H, n, D] of the row or column that it attends to, and how many of the n it sees.
        """
        place, first, count = self.places(position)
        self.buffer.narrow(3, place, 1).copy_(kv)
        keys, values = self.buffer.narrow(3, first, self.rows if self.kind == "column" else self.block).unbind(0)
        return keys, values, count

    def attend(self, q: Tensor, kv: Tensor, position: int) -> Tensor:
        """Write kv [2, R, H, 1, D] at `position` and let q [R, H, 1, D] attend: [R, H, 1, D].

        Not the fused kernel: on a CPU it is not batch-invariant.
        """
        keys, values, count = self.store(kv, position)
        keys, values = keys[:, :, :count], values[:, :, :count]
        return (q @ keys.mT).mul_(q.shape[-1] ** -0.5).softmax(-1) @ values

    def attend_at(self, q: Tensor, kv: Tensor, place: Place) -> Tensor:
        """`attend` at a position on the device: the same operations at every position, for CUDA graphs."""
        self.buffer.index_copy_(3, place.target, kv)
        if self.kind == "column":
            keys, values = self.buffer.unflatten(3, (self.block, self.rows)).index_select(3, place.column).squeeze(3)
        else:
            keys, values = self.buffer.unbind(0)
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=place.mask)


# a number, or for positions on the device an entry of `PlaceTable`
Position = int | Mapping[Kind, Place]

GELU = 1.702  # quick_gelu(x) = x sigmoid(1.702 x) = silu(1.702 x) / 1.702: the weights around it contain the factor


class Norm:
    """A layer norm in fp32."""

    def __init__(self, norm: nn.LayerNorm):
        self.weight, self.bias = (x.to(torch.float32, copy=True) for x in (norm.weight, norm.bias))
        self.eps = norm.eps

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., W] -> [..., W]."""
        return torch.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)

    def plain(self) -> tuple[Tensor, Tensor]:
        """Weight and bias [W]."""
        return self.weight, self.bias


class DecoderLayer:
    """A layer of the transformer with its own copy of the weights; the residual stream is fp32."""

    def __init__(self, layer: Layer, linear: Callable[..., Linear]):
        self.kind, self.block, self.heads = layer.kind, layer.block, layer.heads
        self.norm_attention = Norm(layer.norm_attention)
        self.norm_mlp = Norm(layer.norm_mlp)
        self.qkv = linear(layer.qkv.weight, layer.qkv.bias)
        self.attention_out = linear(layer.attention_out.weight, layer.attention_out.bias)
        self.mlp_in = linear(layer.mlp_in.weight * GELU, layer.mlp_in.bias * GELU, silu=True)
        self.mlp_out = linear(layer.mlp_out.weight / GELU, layer.mlp_out.bias)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return sum(linear.nbytes for linear in (self.qkv, self.attention_out, self.mlp_in, self.mlp_out))

    def attend(self, qkv: Tensor, cache: LayerCache, position: Position) -> Tensor:
        """Store keys and values of qkv [R, 3 A], and attend: [R, A]. A is the width of attention."""
        qkv = qkv.to(cache.buffer.dtype).view(len(qkv), 3, self.heads, 1, -1).transpose(0, 1)
        if isinstance(position, int):
            out = cache.attend(qkv[0], qkv[1:], position)
        else:
            out = cache.attend_at(qkv[0], qkv[1:], position[self.kind])
        return out.view(qkv.shape[1], -1)

    def step(self, x: Tensor, cache: LayerCache, position: Position) -> Tensor:
        """One position of every sequence, x [R, W] -> [R, W], in place to save operations."""
        x.add_(self.attention_out(self.attend(self.qkv(self.norm_attention(x)), cache, position)))
        return x.add_(self.mlp_out(self.mlp_in(self.norm_mlp(x))))

    def prefill(self, x: Tensor, cache: LayerCache | None = None, rows: Tensor | None = None) -> Tensor:
        """Positions 0 to n - 1 of the sequences `rows` [b] at once, x [b, n, W] -> [b, n, W]; fills a KV cache."""
        batch = len(x)
        qkv = self.qkv(self.norm_attention(x).flatten(0, 1))
        qkv = qkv if cache is None else qkv.to(cache.buffer.dtype)
        q, k, v = rearrange(qkv, "(b t) (three h d) -> three b h t d", b=batch, three=3, h=self.heads)
        if cache is not None and rows is not None:
            cache.fill(torch.stack([k, v]), rows)
        out = rearrange(attend(self.kind, q, k, v, self.block), "b h t d -> (b t) (h d)")
        x = x.flatten(0, 1) + self.attention_out(out)
        return (x + self.mlp_out(self.mlp_in(self.norm_mlp(x)))).unflatten(0, (batch, -1))


def decoder_layers(prior: CodePrior, linear: Callable[..., Linear], consume: bool) -> list[DecoderLayer]:
    """The layers of a prior for decoding; `consume` frees the prior's own weights layer by layer."""
    layers: list[DecoderLayer] = []
    for layer in prior.transformer.layers:
        assert isinstance(layer, Layer)
        layers.append(DecoderLayer(layer, linear))
        if consume:
            layer.to_empty(device="meta")
            give_back_freed_memory()
    return layers


Pick = Callable[[Tensor, int | None], Tensor]  # logits [R, K] and the codebook (None if there is one) -> codes [B]


class TiedHead:
    """One code for each position; the output layer shares the weights of the code embedding."""

    def __init__(self, prior: Prior, linear: Callable[..., Linear]):
        self.table = prior.code_embedding.weight.float()
        self.out = linear(self.table, self.table.new_zeros(prior.codebook_size))

    def embed(self, codes: Tensor) -> Tensor:
        """Codes [...] -> inputs of the next position [..., W]."""
        return self.table[codes]

    def first_logits(self, h: Tensor) -> Tensor:
        """Logits [..., K] of the first code of a position."""
        return self.out(h)

    def score(self, h: Tensor, codes: Tensor) -> Tensor:
        """Logits of known codes [n]: h [r, n, W] -> [r, n, K]."""
        return self.out(h)

    def draw(self, h: Tensor, pick: Pick) -> Tensor:
        """Draw the codes of a position, [B], from h [R, W]."""
        return pick(self.out(h), None)


class DecoderHeads:
    """Several codes for each position, drawn one after another; see `im2wav.prior.depth.DepthHeads`."""

    def __init__(self, prior: Prior, linear: Callable[..., Linear]):
        assert prior.heads is not None
        self.size = prior.codebook_size
        self.tables: Sequence[Tensor] = prior.code_embedding.weight.float().split(self.size)
        self.after: list[Tensor] = [table.get_parameter("weight").float() for table in prior.heads.embeddings]
        self.parts: list[tuple[Norm, Linear, Linear]] = []
        for head in prior.heads.heads:
            assert isinstance(head, DepthHead)
            hidden, out = (linear(layer.weight, layer.bias) for layer in (head.hidden, head.out))
            self.parts.append((Norm(head.norm), hidden, out))

    def _logits(self, number: int, h: Tensor) -> Tensor:
        norm, hidden, out = self.parts[number]
        return out(F.silu(hidden(norm(h))))

    def embed(self, codes: Tensor) -> Tensor:
        """Codes [..., Q] -> inputs of the next position [..., W]."""
        parts = [table[one] for table, one in zip(self.tables, codes.unbind(-1), strict=True)]
        return torch.stack(parts).sum(0)

    def first_logits(self, h: Tensor) -> Tensor:
        """Logits [..., K] of the first code of a position."""
        return self._logits(0, h)

    def score(self, h: Tensor, codes: Tensor) -> Tensor:
        """Logits of known codes [n, Q]: h [r, n, W] -> [r, n, Q, K]."""
        logits = []
        for number in range(len(self.parts)):
            logits.append(self._logits(number, h))
            if number < len(self.after):
                h = h + self.after[number][codes[:, number]]
        return torch.stack(logits, 2)

    def draw(self, h: Tensor, pick: Pick) -> Tensor:
        """Draw the codes of a position, [B, Q], from h [R, W]."""
        codes: list[Tensor] = []
        for number in range(len(self.parts)):
            codes.append(pick(self._logits(number, h), number))
            if number < len(self.after):
                chosen = self.after[number][codes[-1].to(h.device)]
                h = h + chosen.repeat(len(h) // len(chosen), 1)
        return torch.stack(codes, -1)
