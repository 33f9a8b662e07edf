"""Prior that fills codebooks in parallel passes, given the coarse ones and the image.

A position has Q codes, of which the first `known_codebooks` are given. Codebooks are filled one after another; the
codes of a codebook in one pass, or in a few, each of which sees the codes of the passes before. Sources: masked
parallel decoding, Chang et al. 2022 (MaskGIT); codebook by codebook, Borsos et al. 2023 (SoundStorm).
"""

import math
import random
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from im2wav.layers import LayerNorm, normal
from im2wav.prior.conditioning import Conditions
from im2wav.prior.transformer import CodePrior

KNOWN_SPAN = 0.3  # fraction of the training items in which a span of positions is known, as in continuation, inpainting


class MaskedPrior(CodePrior):
    """Bidirectional transformer over positions; the input of a position are its known codes and its conditions.

    Args:
        known_codebooks: codebooks that are given by `Conditions.codes_low`, 1 to Q - 1.
        args, options: see `CodePrior`.

    Raises:
        ValueError: the number of known codebooks, or a transformer that is not bidirectional.
    """

    codebooks: int

    def __init__(self, *args: Any, known_codebooks: int = 2, **options: Any):
        super().__init__(*args, **options)
        if not self.codebooks or not 0 < known_codebooks < self.codebooks:
            raise ValueError(f"known_codebooks={known_codebooks}: expected 1 to codebooks - 1 (of {self.codebooks})")
        if self.transformer.config.attention != "bidirectional":
            raise ValueError("a masked prior needs transformer.attention=bidirectional")
        width = self.transformer.config.width
        self.known_codebooks = known_codebooks
        self.mask_embedding = normal(self.codebooks, width, std=0.02 * self.transformer.config.init_scale)
        self.level_embedding = normal(self.codebooks, width, std=0.02 * self.transformer.config.init_scale)
        self.norm = LayerNorm(width)
        self.out_bias = nn.Parameter(torch.zeros(self.codebooks, self.codebook_size))

    def out(self, level: int) -> tuple[Tensor, Tensor]:
        """Weight [K, W], shared with the embedding, and bias [K] of the output layer of a codebook."""
        rows = slice(level * self.codebook_size, (level + 1) * self.codebook_size)
        return self.code_embedding.weight[rows], self.out_bias[level]

    def targets(self, codes: Tensor) -> Tensor:
        """The codes that are predicted: [B, n, Q - known_codebooks]."""
        return codes[..., self.known_codebooks :]

    def embed(self, codes: Tensor, known: Tensor) -> Tensor:
        """Input [B, n, W] for codes [B, n, Q], of which `known` [B, n, Q] are seen."""
        embedded = self.code_embedding(self.rows_of(codes))
        return torch.where(known[..., None], embedded, self.mask_embedding.to(embedded)).sum(2)

    def condition(self, conditions: Conditions, length: int) -> Tensor:
        """What is added to the inputs: [B, n, W].

        Raises:
            ValueError: incompatible conditions.
        """
        start, positions = self.conditioner(conditions, self.context_length)
        condition = start[:, None] + self.position_embedding
        return (condition if positions is None else condition + positions)[:, :length]

    def hidden(self, codes: Tensor, known: Tensor, level: Tensor | int, condition: Tensor) -> Tensor:
        """Hidden states [B, n, W] from which `out` predicts the codes of a codebook, `level` (of each item [B])."""
        of_level = self.level_embedding[level]
        of_level = of_level if of_level.ndim == 1 else of_level[:, None]
        return self.norm(self.transformer((self.embed(codes, known) + of_level + condition).to(condition.dtype)))

    def forward(self, codes: Tensor, conditions: Conditions) -> Tensor:
        """Logits [B, n, Q - known_codebooks, K] of codes [B, n, Q], each codebook in one pass from those before it.

        Raises:
            ValueError: too many codes, or incompatible conditions.
        """
        self.check_length(codes)
        condition = self.condition(conditions, codes.shape[1])
        logits = []
        for level in range(self.known_codebooks, self.codebooks):
            known = (torch.arange(self.codebooks, device=codes.device) < level).expand(codes.shape)
            h = self.hidden(codes, known, level, condition)
            logits.append(F.linear(h, *self.out(level)))
        return torch.stack(logits, 2)

    def training_bits(
        self,
        codes: Tensor,
        conditions: Conditions,
        seeds: Sequence[int],
        weights: Tensor | None = None,
        errors: float = 0.0,
    ) -> Tensor:
        """Mean over the items of the mean bits of masked codes of one codebook: a scalar; see `CodePrior`.

        Codebook, masked positions and a span of known positions are drawn from the seeds of the items. The fraction of
        masked positions is cos(pi u / 2) with u uniform in [0, 1).
        """
        self.check_length(codes)
        level, known, asked = (x.to(codes.device) for x in self._masks(codes.shape[1], seeds))
        seen = self.with_errors(codes, seeds, errors)
        h = self.hidden(seen, known, level, self.condition(conditions, codes.shape[1]))
        total = h.new_zeros(len(h))
        weights = h.new_ones(codes.shape[1]) if weights is None else weights
        for number in range(self.known_codebooks, self.codebooks):
            here = asked & (level == number)[:, None]  # [B, n]; without a synchronisation, also where it is all false
            logits = F.linear(h, *self.out(number)).flatten(0, 1).float()
            bits = F.cross_entropy(logits, codes[..., number].flatten(), reduction="none")
            total = total + (bits.view(here.shape) * here * weights).sum(1)
        return (total / (asked * weights).sum(1).clamp_min(1)).mean() / math.log(2)

    def _masks(self, length: int, seeds: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Codebook [B], known codes [B, n, Q] and positions that are asked for [B, n], of training items."""
        levels, knowns, asked = [], [], []
        for seed in seeds:
            draw = random.Random(seed)
            level = draw.randrange(self.known_codebooks, self.codebooks)
            count = max(1, math.ceil(math.cos(math.pi / 2 * draw.random()) * length))
            masked = torch.zeros(length, dtype=torch.bool)
            masked[draw.sample(range(length), count)] = True
            known = (torch.arange(self.codebooks) < level).repeat(length, 1)
            known[:, level] |= ~masked
            if draw.random() < KNOWN_SPAN:  # all codes of up to half of the positions, at the start or anywhere
                first = draw.choice((0, draw.randrange(length)))
                known[first : first + draw.randrange(1, length // 2 + 1)] = True
                masked &= ~known[:, level]  # possibly none is left to be asked for
            levels.append(level)
            knowns.append(known)
            asked.append(masked)
        return torch.tensor(levels), torch.stack(knowns), torch.stack(asked)
