"""What decoding is compared with: the official implementation, and a decoder of the `transformers` library."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from im2wav.decoding import SamplingOptions
from im2wav.decoding.linear import DTYPES
from im2wav.decoding.sampler import draw
from im2wav.prior import Prior
from im2wav.prior.transformer import Layer, TransformerConfig, quick_gelu


class ConcatenatedKVCache:
    """A sequence with its growing KV cache, in the official Im2Wav code: the baseline of this benchmark.

    The network runs at batch 1 with torch linear layers. The KV cache grows by concatenation and is cut to the
    positions that the attention kind needs. Source: the published code (Sheffer & Adi, 2022), and Jukebox below it.
    """

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

    def __init__(self, prior: Prior):
        self.prior, self.options = prior, SamplingOptions()
        zero = torch.zeros(1, prior.transformer.config.width, device=prior.position_embedding.device)
        self.sequences = [ConcatenatedKVCache(prior, zero) for _ in range(2 if prior.can_be_guided else 1)]
        self.input, self.uniform = zero, torch.full((1,), 0.5, dtype=torch.float64, device=zero.device)

    @torch.inference_mode()
    def step(self) -> None:
        """Sample the next code."""
        logits, *null = [sequence.logits(self.input) for sequence in self.sequences]
        if null:
            scale = self.options.guidance_scale
            logits = scale * logits + (1 - scale) * null[0]
        self.input = self.prior.code_embedding(draw(logits, self.uniform, self.options))


class PeerDecoder:
    """MusicGen's decoder with random weights, one code at a time with its KV cache, as `generate` runs it.

    Its layers have the width of the prior and an MLP of the same width, without attention to a text; their number
    gives about as many weights. Greedy codes and no guidance formula, which both favour it.

    Args:
        config: sizes of the prior.
        codebook_size, length: of the prior.
        rows: sequences, 2 for one item with guidance.
        precision: fp32 or bf16.

    Raises:
        ValueError: `transformers` is not installed.
    """

    def __init__(self, config: TransformerConfig, codebook_size: int, length: int, rows: int, precision: str):
        try:
            from transformers import MusicgenDecoderConfig, MusicgenForCausalLM
        except ImportError as error:
            raise ValueError("measure.peer=true needs the transformers library: pip install 'im2wav[bench]'") from error
        width = config.width
        ours = config.depth * (4 * config.attention_width * width + 2 * int(config.mlp_ratio * width) * width)
        sizes: dict[str, Any] = {
            "hidden_size": width,
            "ffn_dim": width,
            "num_hidden_layers": max(1, round(ours / (6 * width**2))),
            "num_attention_heads": max(1, width // 64),
            "vocab_size": codebook_size,
            "num_codebooks": 1,
            "max_position_embeddings": length,
            "attn_implementation": "eager",
        }
        torch.manual_seed(0)
        net = MusicgenForCausalLM(MusicgenDecoderConfig(**sizes))
        self.net = net.eval().to(DTYPES[precision])
        layers: nn.Module = self.net.model.decoder.layers
        self.weights = sum(p.numel() for name, p in layers.named_parameters() if "encoder_attn" not in name)
        self.codes, self.length = torch.zeros(rows, 1, dtype=torch.long), length
        self.restart()

    def restart(self) -> None:
        """Begin with an empty KV cache."""
        self.cache: Any = None
        self.position = 0

    @torch.inference_mode()
    def step(self) -> None:
        """Decode the next code of every sequence."""
        if self.position == self.length:
            self.restart()
        out = self.net(input_ids=self.codes, cache=self.cache, use_cache=True)
        self.cache, self.position = out.cache, self.position + 1
        self.codes = out.logits[:, -1:].argmax(-1)
