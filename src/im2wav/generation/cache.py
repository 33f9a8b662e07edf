"""What a layer of factored attention must remember while codes are drawn one after the other.

Shapes: B sequences, H heads, D width of a head, n positions; keys and values travel together as kv [2, B, H, n, D].
The kinds of attention are those of `im2wav.prior.attention`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from im2wav.prior.attention import Kind

# rows of positions that a kind of attention still looks at; `column` looks at all
ROWS_KEPT = {"row": 1, "previous_row": 2}


class LayerCache:
    """Keys and values that one layer still needs, allocated once at their true size and written by position.

    `row` keeps the current row, `previous_row` the current one and the one before, `column` everything.
    The buffer is [2, B, H, places, D]. A position of row r and column c has the place (r mod rows kept) * block + c;
    for `column` c * rows + r, so that the positions of one column lie side by side.
    """

    def __init__(self, kind: Kind, batch: int, heads: int, length: int, width: int, block: int, like: Tensor):
        self.kind: Kind = kind
        self.block, self.rows = block, -(-length // block)
        self.kept = self.rows if kind == "column" else ROWS_KEPT[kind]
        self.buffer = like.new_zeros(2, batch, heads, self.kept * block, width)
        self.keys, self.values = self.buffer.unbind(0)

    def clear(self) -> None:
        """Forget everything."""
        self.buffer.zero_()  # before row 0, `previous_row` meets zeros

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
        """Where `position` is written, the first place that it attends to, and how many."""
        row, column = divmod(position, self.block)
        if self.kind == "column":
            return column * self.rows + row, column * self.rows, row + 1
        first = row % self.kept * self.block
        if self.kind == "row":
            return column, 0, column + 1
        return first + column, self.block - first, self.block  # the other one of the two rows kept

    def attend(self, q: Tensor, kv: Tensor, position: int) -> Tensor:
        """Write kv [2, B, H, 1, D] at `position` and let q [B, H, 1, D] attend: [B, H, 1, D].

        Written out: the fused kernel rounds a sequence by which thread it falls to, and so by its company.
        """
        place, first, count = self.places(position)
        self.buffer.narrow(3, place, 1).copy_(kv)
        scores = q @ self.keys.narrow(2, first, count).mT
        return scores.mul_(q.shape[-1] ** -0.5).softmax(-1) @ self.values.narrow(2, first, count)

    def attend_at(self, q: Tensor, kv: Tensor, position: Tensor) -> Tensor:
        """`attend` at a position [1] that lies on the device: the same work wherever it is, as a CUDA graph needs."""
        row, column = position // self.block, position % self.block
        if self.kind == "column":
            self.buffer.index_copy_(3, column * self.rows + row, kv)
            keys, values = self.buffer.unflatten(3, (self.block, self.rows)).index_select(3, column).squeeze(3)
            seen = torch.arange(self.rows, device=q.device) <= row
        else:
            place = torch.arange(self.kept * self.block, device=q.device)
            self.buffer.index_copy_(3, row % self.kept * self.block + column, kv)
            keys, values = self.keys, self.values
            seen = place <= column if self.kind == "row" else place // self.block != row % self.kept
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=seen[None])
