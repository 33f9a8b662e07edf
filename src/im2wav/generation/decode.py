"""Drawing codes from a prior, one position after the other.

A `Decoder` is a prior made ready for it: weights in the precision and the layout that are read fastest. A `Decoding` is
a batch of sequences being drawn: caches and everything else that changes, allocated once. The specification of both is
the plain, uncached `Prior.forward`; tests hold them to it.

Letters: B sequences, T positions of the context, K codebook size, W width, R rows of the net (2 B with guidance).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from im2wav.generation.cache import LayerCache
from im2wav.generation.precision import Linear, linear_maker, pick_precision
from im2wav.generation.sampling import SamplingOptions, draw, guide
from im2wav.prior import Conditions, Prior
from im2wav.prior.attention import attend
from im2wav.prior.transformer import Layer

GELU = 1.702  # quick_gelu(x) = x sigmoid(1.702 x) = silu(1.702 x) / 1.702: the factor goes into the weights around it


class DecoderLayer:
    """A layer of the transformer with weights of its own; the residual stream stays fp32."""

    def __init__(self, layer: Layer, linear: Callable[..., Linear]):
        self.kind, self.block, self.heads = layer.kind, layer.block, layer.heads
        self.norm_attention = _norm(layer.norm_attention)
        self.norm_mlp = _norm(layer.norm_mlp)
        self.qkv = linear(layer.qkv.weight, layer.qkv.bias)
        self.attention_out = linear(layer.attention_out.weight, layer.attention_out.bias)
        self.mlp_in = linear(layer.mlp_in.weight * GELU, layer.mlp_in.bias * GELU, silu=True)
        self.mlp_out = linear(layer.mlp_out.weight / GELU, layer.mlp_out.bias)

    def step(self, x: Tensor, cache: LayerCache, position: int | Tensor) -> Tensor:
        """One position of every sequence, x [R, W] -> [R, W]."""
        qkv = self.qkv(self.norm_attention(x)).unflatten(1, (3, self.heads, 1, -1))
        kv = qkv[:, 1:].transpose(0, 1)
        way = cache.attend if isinstance(position, int) else cache.attend_at
        x = x + self.attention_out(way(qkv[:, 0], kv, position).flatten(1))  # type: ignore[arg-type]
        return x + self.mlp_out(self.mlp_in(self.norm_mlp(x)))

    def prefill(self, x: Tensor, cache: LayerCache, rows: Tensor) -> Tensor:
        """Positions 0 to n - 1 of the sequences `rows` [b] at once, x [b, n, W] -> [b, n, W]."""
        batch = len(x)
        qkv = self.qkv(self.norm_attention(x).flatten(0, 1))
        q, k, v = rearrange(qkv, "(b t) (three h d) -> three b h t d", b=batch, three=3, h=self.heads)
        cache.fill(torch.stack([k, v]), rows)
        out = rearrange(attend(self.kind, q, k, v, self.block), "b h t d -> (b t) (h d)")
        x = x.flatten(0, 1) + self.attention_out(out)
        return (x + self.mlp_out(self.mlp_in(self.norm_mlp(x)))).unflatten(0, (batch, -1))


def _norm(norm: nn.LayerNorm) -> Callable[[Tensor], Tensor]:
    weight, bias = norm.weight.float(), norm.bias.float()
    return lambda x: F.layer_norm(x, weight.shape, weight, bias, norm.eps)


class Decoder:
    """A prior made ready to draw codes.

    Args:
        prior: in eval mode.
        precision: fp32, bf16, int8 (CPUs only), or auto: fp32 on a CPU, bf16 on a GPU.
        consume: free the transformer's own weights layer by layer, so that memory holds them once. The prior can then
            no longer be called; its embeddings and its conditioner stay, and the decoder uses them.

    Raises:
        ValueError: a precision that the device cannot do.
    """

    def __init__(self, prior: Prior, precision: str = "fp32", consume: bool = False):
        self.device = prior.code_embedding.weight.device
        self.precision = pick_precision(precision, self.device)
        self.context_length, self.codebook_size = prior.context_length, prior.codebook_size
        self.can_be_guided = prior.can_be_guided
        self.conditioner = prior.conditioner
        self.code_embedding = prior.code_embedding.weight.float()
        self.position_embedding = prior.position_embedding.float()
        self.sizes, self.block = prior.transformer.config, prior.transformer.block
        with torch.inference_mode():
            linear = linear_maker(self.precision, self.device)
            self.layers: list[DecoderLayer] = []
            for layer in prior.transformer.layers:
                assert isinstance(layer, Layer)
                self.layers.append(DecoderLayer(layer, linear))
                if consume:
                    layer.to_empty(device="meta")
            # logits in full precision: rounding them costs more than their few bytes
            self.head = linear_maker("fp32", self.device)(
                self.code_embedding, self.code_embedding.new_zeros(self.codebook_size)
            )

    @torch.inference_mode()
    def start(
        self,
        conditions: Conditions,
        uniform: Tensor,
        options: SamplingOptions,
        prefix: Tensor | None = None,
        negative: Conditions | None = None,
    ) -> "Decoding":
        """Begin to draw B sequences.

        Args:
            conditions: for B sequences.
            uniform: a random number in [0, 1) for each sequence and position, [B, n]; n is at most the context length.
            options: guidance, temperature, filters.
            prefix: codes [B, P] that are given; they stand at the beginning.
            negative: what the sequences are guided away from.

        Raises:
            ValueError: n exceeds the context, the prefix is longer than n, or conditions that do not fit.
        """
        return Decoding(self, conditions, uniform, options, prefix, negative)

    @torch.inference_mode()
    def score(self, conditions: Conditions, codes: Tensor) -> Tensor:
        """Logits [B, n, K] of codes [B, n] that are known, as `Prior.forward` gives them, without guidance.

        Raises:
            ValueError: too many codes, or conditions that do not fit.
        """
        plain = SamplingOptions(guidance_scale=1.0)
        decoding = Decoding(self, conditions, codes.new_zeros(codes.shape, dtype=torch.float64), plain)
        rows = torch.arange(len(codes), device=codes.device)
        return torch.stack([self.head(decoding.run_known(row[None], codes[row])[0]) for row in rows])


class Decoding:
    """B sequences that are being drawn.

    Attributes:
        codes: [B, n]; the first `position` of them are there.
        position: how many codes are there.
    """

    def __init__(
        self,
        decoder: Decoder,
        conditions: Conditions,
        uniform: Tensor,
        options: SamplingOptions,
        prefix: Tensor | None = None,
        negative: Conditions | None = None,
    ):
        batch, length = uniform.shape
        given = 0 if prefix is None else prefix.shape[1]
        if length > decoder.context_length or given > length:
            raise ValueError(
                f"{length} codes with a prefix of {given}: the context has {decoder.context_length} positions"
            )
        if negative is not None and not decoder.can_be_guided:
            raise ValueError("a negative needs a prior that can be guided (conditioning.guidance=true)")
        self.decoder, self.options, self.uniform = decoder, options, uniform
        self.negative_scale = None if negative is None else options.negative_scale
        self.guided = decoder.can_be_guided and (options.guidance_scale != 1 or negative is not None)
        self.codes = torch.zeros(batch, length, dtype=torch.long, device=decoder.device)
        self.position = 0
        self._embed_conditions(conditions, negative)
        self._allocate()
        if prefix is not None and given:
            self._prefill(prefix)

    def _embed_conditions(self, conditions: Conditions, negative: Conditions | None) -> None:
        """Start and position embeddings, item by item: the same whatever stands beside it in the batch."""
        decoder, batch = self.decoder, len(self.codes)
        items = [conditions.take(slice(i, i + 1)) for i in range(batch)]
        items += [item.null_like() for item in items] if self.guided else []
        items += [negative.take(slice(i, i + 1)) for i in range(batch)] if negative is not None else []
        self.input = self.codes.new_empty(len(items), decoder.sizes.width, dtype=torch.float32)  # [R, W]
        self.positions = decoder.position_embedding.new_zeros(len(items), 1, 1)
        for row, item in enumerate(items):
            start, positions = decoder.conditioner(item, decoder.context_length)
            self.input[row] = start[0]
            if positions is not None:
                if not row:
                    self.positions = positions.new_empty(len(items), *positions.shape[1:], dtype=torch.float32)
                self.positions[row] = positions[0]

    def _allocate(self) -> None:
        decoder = self.decoder
        dtype = torch.bfloat16 if decoder.precision == "bf16" else torch.float32
        like = torch.empty(0, dtype=dtype, device=decoder.device)
        heads, width = decoder.sizes.heads, decoder.sizes.attention_width // decoder.sizes.heads
        size = (len(self.input), heads, decoder.context_length, width, decoder.block)
        self.caches = [LayerCache(layer.kind, *size, like=like) for layer in decoder.layers]

    def _prefill(self, prefix: Tensor) -> None:
        """Run all positions of the prefix at once, item by item for the same reason as above."""
        batch, given = prefix.shape
        self.codes[:, :given] = prefix
        for item in range(batch):
            self.run_known(torch.arange(item, len(self.input), batch, device=prefix.device), prefix[item])
        self.feed(prefix[:, -1])
        self.position = given

    def run_known(self, rows: Tensor, codes: Tensor) -> Tensor:
        """Run the known codes [p] of one item at once through its `rows` [r], into the caches: what the head reads.

        Returns:
            [r, p, W]
        """
        before = self.decoder.code_embedding[codes[:-1]].expand(len(rows), -1, -1)
        condition = self.positions[rows, : len(codes)] if self.positions.shape[1] > 1 else 0
        x = torch.cat([self.input[rows, None], before], 1) + self.decoder.position_embedding[: len(codes)] + condition
        for layer, cache in zip(self.decoder.layers, self.caches, strict=True):
            x = layer.prefill(x, cache, rows)
        return x + condition

    @torch.inference_mode()
    def logits(self) -> Tensor:
        """Logits [R, K] of the codes at `position`; with guidance those with the picture first, then those without.

        To be called once for each position, and `feed` after it: `step` does both.
        """
        t = self.position
        condition = self.positions[:, t] if self.positions.shape[1] > 1 else self.positions[:, 0]
        return self._run(self.decoder.position_embedding[t], condition, t)

    def _run(self, learnt: Tensor, condition: Tensor, position: int | Tensor) -> Tensor:
        x = self.input + learnt + condition
        for layer, cache in zip(self.decoder.layers, self.caches, strict=True):
            x = layer.step(x, cache, position)
        return self.decoder.head(x + condition)

    @torch.inference_mode()
    def feed(self, codes: Tensor) -> None:
        """Say which codes [B] stand at the position before the next one."""
        self.input = self.decoder.code_embedding[codes].repeat(len(self.input) // len(codes), 1)

    @torch.inference_mode()
    def step(self) -> Tensor:
        """Draw the next code of every sequence: [B].

        Raises:
            ValueError: all codes are drawn.
        """
        t = self.position
        if t >= self.codes.shape[1]:
            raise ValueError(f"all {t} codes are drawn already")
        logits = self.logits()
        logits = guide(logits, self.options.guidance_scale, self.negative_scale) if self.guided else logits
        codes = draw(logits, self.uniform[:, t], self.options)
        self.codes[:, t] = codes
        self.feed(codes)
        self.position = t + 1
        return codes

    def steps(self, count: int | None = None, on_step: Callable[[int], object] | None = None) -> Tensor:
        """Draw the next `count` codes of every sequence, or all that are left: [B, count].

        Args:
            count: no more than are left.
            on_step: called with 1 after each code, for progress bars.
        """
        first = self.position
        for _ in range(self.codes.shape[1] - first if count is None else count):
            self.step()
            if on_step:
                on_step(1)
        return self.codes[:, first : self.position]


@torch.inference_mode()
def sample_codes(
    prior: Prior | Decoder,
    conditions: Conditions,
    uniform: Tensor,
    options: SamplingOptions,
    prefix: Tensor | None = None,
    on_step: Callable[[int], object] | None = None,
    precision: str = "fp32",
    negative: Conditions | None = None,
) -> Tensor:
    """Draw codes [B, n] from a prior, or from the decoder that was made of it.

    A prior that can be guided runs once over a doubled batch, with the picture and without; the network is never
    copied.

    Args:
        prior: in eval mode. Who draws more than once makes a `Decoder` and gives that.
        conditions, uniform, options, prefix, negative: see `Decoder.start`.
        on_step: called with 1 after each position, for progress bars.
        precision: of the decoder, where a prior is given.

    Raises:
        ValueError: see `Decoder` and `Decoder.start`.
    """
    decoder = prior if isinstance(prior, Decoder) else Decoder(prior, precision)
    decoding = decoder.start(conditions, uniform, options, prefix, negative)
    decoding.steps(on_step=on_step)
    return decoding.codes
