"""The decoding engine: draw codes from a prior, one position after another.

A `Decoder` holds the weights of a prior in the precision and layout that are read fastest. A `DecodeState` holds what
changes while a batch is drawn, such as the KV cache. The specification of both is the uncached `Prior.forward`, and
tests compare them.

Shapes: B sequences, T positions of the context, K codebook size, W width, R rows of the network (2 B with guidance).
"""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from im2wav.decoding.compiled import CompiledLayers, compile_step
from im2wav.decoding.decoder_layer import DecoderLayer
from im2wav.decoding.kv_cache import PlaceTable
from im2wav.decoding.linear import (
    Compile,
    cache_dtype,
    check_compile,
    give_back_freed_memory,
    linear_maker,
    resolve_precision,
)
from im2wav.decoding.sampler import SamplingOptions, draw_device
from im2wav.decoding.state import DecodeState, FusedLayers
from im2wav.prior import Conditions, Prior
from im2wav.prior.transformer import Layer


class Decoder:
    """The weights of a prior, ready for decoding.

    Args:
        prior: in eval mode.
        precision: fp32, bf16, fp16 (GPUs only), int8 (CPUs only), or auto, see `resolve_precision`.
        consume: free the transformer's own weights layer by layer, so that memory holds them once. The prior can then
            no longer be called; the decoder keeps using its embeddings and its conditioner.
        compile: True compiles the steps with TorchInductor (`decoding.compiled`). On a CPU this is faster for one or
            two sequences at a time; on CUDA the whole step is compiled, then recorded as a CUDA graph. `triton` uses
            the fused kernels of `decoding.triton_kernels` (CUDA only).

    Raises:
        ValueError: a precision or a value of compile that the device does not support, or Triton is not installed.
    """

    def __init__(self, prior: Prior, precision: str = "fp32", consume: bool = False, compile: Compile = False):
        self.device = prior.code_embedding.weight.device
        self.precision = resolve_precision(precision, self.device)
        check_compile(compile, self.device)
        self.compile = compile
        self.context_length, self.codebook_size = prior.context_length, prior.codebook_size
        self.can_be_guided = prior.can_be_guided
        self.conditioner = prior.conditioner
        self.code_embedding = prior.code_embedding.weight.float()
        self.position_embedding = prior.position_embedding.float()
        self.sizes, self.block = prior.transformer.config, prior.transformer.block
        self.head_width = self.sizes.attention_width // self.sizes.heads
        self.cache_dtype = cache_dtype(self.precision, self.device)
        options = prior.conditioner.config
        positional = options.frames or options.timing or options.upsampler is not None
        self.condition_shape = (self.context_length, self.sizes.width) if positional else (1, 1)
        self.on_device = self.device.type == "cuda"  # a CUDA graph needs positions that are read from the device
        whole = compile is True and self.on_device
        self.step_at_place = compile_step(DecodeState._step_at_place) if whole else DecodeState._step_at_place
        self.spare: DecodeState | None = None
        with torch.inference_mode():
            linear = linear_maker(self.precision, self.device, packed=not compile)
            self.layers: list[DecoderLayer] = []
            for layer in prior.transformer.layers:
                assert isinstance(layer, Layer)
                self.layers.append(DecoderLayer(layer, linear))
                if consume:
                    layer.to_empty(device="meta")
                    give_back_freed_memory()
            self.fused = None if not compile or whole else self._fuse()
            # fp32 logits: they are few bytes, and rounding them changes codes
            self.head = linear_maker("fp32", self.device)(
                self.code_embedding, self.code_embedding.new_zeros(self.codebook_size)
            )

    def _fuse(self) -> FusedLayers:
        if self.compile == "triton":
            from im2wav.decoding.triton_kernels import TritonLayers  # it imports triton

            return TritonLayers(self.layers)
        return CompiledLayers(self.layers)

    @cached_property
    def places(self) -> PlaceTable:
        """Cache places and masks of all positions, for steps that read their position from the device."""
        like = torch.empty(0, dtype=self.cache_dtype, device=self.device)
        return PlaceTable([layer.kind for layer in self.layers], self.context_length, self.block, like)

    @torch.inference_mode()
    def start(
        self,
        conditions: Conditions,
        uniform: Tensor,
        options: SamplingOptions,
        prefix: Tensor | None = None,
        negative: Conditions | None = None,
    ) -> "DecodeState":
        """Start to draw B sequences.

        Args:
            conditions: of B sequences.
            uniform: random numbers in [0, 1), one for each sequence and position, [B, n]; n <= context length.
            options: guidance, temperature, filters.
            prefix: known codes [B, P] at the start of the sequences.
            negative: conditions that guidance moves away from.

        Raises:
            ValueError: n exceeds the context, the prefix is longer than n, or conditions of another shape.
        """
        batch, length = uniform.shape
        given = 0 if prefix is None else prefix.shape[1]
        if length > self.context_length or given > length:
            raise ValueError(
                f"{length} codes with a prefix of {given}: the context has {self.context_length} positions"
            )
        spare, self.spare = self.spare, None
        asked = (uniform.shape, options, negative is not None)
        if spare is None or (spare.codes.shape, spare.options, spare.negative) != asked:
            spare = DecodeState(self, batch, length, options, negative is not None)
        spare.decoder = self
        spare.begin(conditions, uniform, prefix, negative)
        return spare

    @torch.inference_mode()
    def score(self, conditions: Conditions, codes: Tensor) -> Tensor:
        """Logits [B, n, K] of known codes [B, n], equal to those of `Prior.forward`, without guidance.

        Raises:
            ValueError: too many codes, or conditions of another shape.
        """
        uniform = torch.zeros(codes.shape, dtype=torch.float64, device=draw_device(codes.device))
        decoding = self.start(conditions, uniform, SamplingOptions(guidance_scale=1.0))
        rows = torch.arange(len(codes), device=codes.device).split(1)
        return torch.stack([self.head(decoding.run_known(*one)[0]) for one in zip(rows, codes, strict=True)])


@torch.inference_mode()
def sample_codes(
    prior: Prior | Decoder,
    conditions: Conditions,
    uniform: Tensor,
    options: SamplingOptions,
    prefix: Tensor | None = None,
    on_step: Callable[[int], object] | None = None,
    precision: str = "fp32",
) -> Tensor:
    """Draw codes [B, n].

    With guidance, one pass over a doubled batch gives conditional and unconditional logits.

    Args:
        prior: a prior in eval mode, or its `Decoder`, which is faster when codes are drawn more than once.
        conditions, uniform, options, prefix: see `Decoder.start`.
        on_step: called with 1 after each position, for progress bars.
        precision: of the decoder, if a prior is given.

    Raises:
        ValueError: see `Decoder` and `Decoder.start`.
    """
    decoder = prior if isinstance(prior, Decoder) else Decoder(prior, precision)
    decoding = decoder.start(conditions, uniform, options, prefix)
    decoding.steps(on_step=on_step)
    codes = decoding.codes.clone()
    decoding.release()
    return codes
