"""From the hidden states of a prior to codes, for decoding: logits in fp32, as rounding them changes codes.

R rows of the network, B sequences, n positions, W width, K codes, Q codebooks.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from im2wav.decoding.decoder_layer import Norm
from im2wav.decoding.linear import Linear
from im2wav.prior import Prior
from im2wav.prior.depth import DepthHead

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
