"""Output heads that draw several codes of one position, one after another.

Source: the depth transformer of RQ-Transformer (Lee et al., 2022), here one small MLP for each codebook.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from im2wav.layers import LayerNorm, code_table


class DepthHead(nn.Module):
    """Distribution of the code of one codebook: hidden state [..., W] -> logits [..., K]."""

    def __init__(self, codebook_size: int, width: int):
        super().__init__()
        self.norm = LayerNorm(width)
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, codebook_size)

    def forward(self, h: Tensor) -> Tensor:
        """Return the logits."""
        return self.out(F.silu(self.hidden(self.norm(h))))


class DepthHeads(nn.Module):
    """Distributions of the Q codes of a position, each given the hidden state and the codes before it.

    Args:
        codebooks: Q.
        codebook_size: K.
        width: of the hidden state, W.
    """

    def __init__(self, codebooks: int, codebook_size: int, width: int):
        super().__init__()
        self.heads = nn.ModuleList(DepthHead(codebook_size, width) for _ in range(codebooks))
        self.embeddings = nn.ModuleList(code_table(codebook_size, width, 0.1) for _ in range(codebooks - 1))

    def forward(self, h: Tensor, codes: Tensor) -> Tensor:
        """Logits [B, n, Q, K] of known codes [B, n, Q], from hidden states h [B, n, W]."""
        logits = []
        for number, head in enumerate(self.heads):
            logits.append(head(h))
            if number < len(self.embeddings):
                h = h + self.embeddings[number](codes[..., number]).to(h.dtype)
        return torch.stack(logits, 2)
