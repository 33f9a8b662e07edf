"""Decoding as in the official Im2Wav code, reimplemented as the baseline of the decoding benchmark.

The network runs at batch 1, once conditional and once unconditional, with torch linear layers. The KV cache grows by
concatenation and is cut to the positions that the attention kind needs. Source: the published code (Sheffer & Adi,
2022) and Jukebox, on which it is based.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from im2wav.decoding.sampler import SamplingOptions, draw
from im2wav.prior import Prior
from im2wav.prior.transformer import Layer, quick_gelu


class ConcatenatedKVCache:
    """A sequence with its growing KV cache."""

    def __init__(self, prior: Prior, condition: Tensor):
        self.prior, self.condition, self.position = prior, condition, 0
        self.kept: list[tuple[Tensor, Tensor] | None] = [None] * prior.transformer.config.depth

    def _attend(self, index: int, layer: Layer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        row, column = divmod(self.position, layer.block)
        old = self.kept[index]
        if old is not None:
            k, v = torch.cat([old[0], k], 1), torch.cat([old[1], v], 1)
        need = {"row": column + 1, "previous_row": layer.block + column + 1, "column": self.position + 1}[layer.kind]
        k, v = k[:, -need:], v[:, -need:]
        self.kept[index] = k, v
        if layer.kind == "previous_row":
            if not row:
                return torch.zeros_like(q)
            k, v = k[:, : layer.block], v[:, : layer.block]
        elif layer.kind == "column":
            k, v = k[:, column :: layer.block], v[:, column :: layer.block]
        weights = (q @ k.transpose(1, 2) * q.shape[2] ** -0.5).softmax(-1)
        return weights @ v

    def logits(self, x: Tensor) -> Tensor:
        """Logits [1, K] of the next code, given the embedding x [1, W] of the previous code."""
        prior, config = self.prior, self.prior.transformer.config
        x = (x + prior.position_embedding[self.position] + self.condition)[:, None]
        for index, layer in enumerate(prior.transformer.layers):
            assert isinstance(layer, Layer)
            q, k, v = layer.qkv(layer.norm_attention(x)).unflatten(2, (3, config.heads, -1)).transpose(1, 3).unbind(2)
            a = self._attend(index, layer, *(part.flatten(0, 1) for part in (q, k, v)))
            a = layer.attention_out(a.unflatten(0, (1, -1)).transpose(1, 2).flatten(2))
            x = x + a + layer.mlp_out(quick_gelu(layer.mlp_in(layer.norm_mlp(x + a))))
        self.position += 1
        return F.linear(x[:, 0] + self.condition, prior.code_embedding.weight)


class OfficialDecoder:
    """Sample codes of one item: a conditional and, with guidance, an unconditional pass."""

    def __init__(self, prior: Prior, guided: bool):
        self.prior, self.options = prior, SamplingOptions()
        zero = torch.zeros(1, prior.transformer.config.width, device=prior.position_embedding.device)
        self.sequences = [ConcatenatedKVCache(prior, zero) for _ in range(2 if guided else 1)]
        self.input, self.uniform = zero, torch.full((1,), 0.5, dtype=torch.float64, device=zero.device)

    @torch.inference_mode()
    def step(self) -> Tensor:
        """Sample the next code, [1]."""
        logits, *null = [sequence.logits(self.input) for sequence in self.sequences]
        if null:
            scale = self.options.guidance_scale
            logits = scale * logits + (1 - scale) * null[0]
        code = draw(logits, self.uniform, self.options)
        self.input = self.prior.code_embedding(code)
        return code
