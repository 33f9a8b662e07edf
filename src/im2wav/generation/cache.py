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
    The buffer is [2, B, H, rows kept * block, D], a row's place being its number modulo the rows kept; for `column`
    [2, B, H, block, rows, D], so that the rows of one column lie side by side.
    """

    def __init__(self, kind: Kind, batch: int, heads: int, length: int, width: int, block: int, like: Tensor):
        self.kind: Kind = kind
        self.block, self.rows = block, -(-length // block)
        self.kept = self.rows if kind == "column" else ROWS_KEPT[kind]
        places = (block, self.rows) if kind == "column" else (self.kept * block,)
        self.buffer = like.new_zeros(2, batch, heads, *places, width)

    def clear(self) -> None:
        """Forget everything."""
        self.buffer.zero_()  # before row 0, `previous_row` meets zeros

    def fill(self, kv: Tensor, rows: Tensor) -> None:
        """Write positions 0 to n - 1 of the sequences `rows` [b]: kv [2, b, H, n, D]."""
        length = kv.shape[3]
        for row in range(max(0, -(-length // self.block) - self.kept), -(-length // self.block)):
            part = kv[:, :, :, row * self.block : (row + 1) * self.block]
            if self.kind == "column":
                self.buffer[:, rows, :, : part.shape[3], row] = part
            else:
                first = row % self.kept * self.block
                self.buffer[:, rows, :, first : first + part.shape[3]] = part

    def attend(self, q: Tensor, kv: Tensor, position: int) -> Tensor:
        """Write kv [2, B, H, 1, D] at `position` and let q [B, H, 1, D] attend: [B, H, 1, D]."""
        row, column = divmod(position, self.block)
        if self.kind == "column":
            self.buffer[:, :, :, column, row] = kv[:, :, :, 0]
            keys, values = self.buffer[:, :, :, column, : row + 1]
        else:
            first = row % self.kept * self.block
            self.buffer[:, :, :, first + column] = kv[:, :, :, 0]
            other = self.block - first  # where the row before lies, of the two that are kept
            seen = slice(column + 1) if self.kind == "row" else slice(other, other + self.block)
            keys, values = self.buffer[:, :, :, seen]
        return F.scaled_dot_product_attention(q, keys, values)

    def attend_at(self, q: Tensor, kv: Tensor, position: Tensor) -> Tensor:
        """`attend` at a position [1] that lies on the device: the same work wherever it is, as a CUDA graph needs."""
        row, column = position // self.block, position % self.block
        if self.kind == "column":
            self.buffer.flatten(3, 4).index_copy_(3, column * self.rows + row, kv)
            keys, values = self.buffer.index_select(3, column).squeeze(3)
            seen = torch.arange(self.rows, device=q.device) <= row
        else:
            place = torch.arange(self.kept * self.block, device=q.device)
            self.buffer.index_copy_(3, row % self.kept * self.block + column, kv)
            keys, values = self.buffer
            seen = place <= column if self.kind == "row" else place // self.block != row % self.kept
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=seen[None])
