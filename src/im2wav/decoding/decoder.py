"""Drawing codes from a prior, one position after the other.

A `Decoder` is a prior made ready for it: weights in the precision and the layout that are read fastest. A `Decoding` is
a batch of sequences being drawn: caches and everything else that changes, allocated once. The specification of both is
the plain, uncached `Prior.forward`; tests hold them to it.

Letters: B sequences, T positions of the context, K codebook size, W width, R rows of the net (2 B with guidance).
"""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from im2wav.decoding.compiled import CompiledLayers, compile_step
from im2wav.decoding.decoder_layer import DecoderLayer
from im2wav.decoding.kv_cache import PlaceTable
from im2wav.decoding.linear import (
    cache_dtype,
    check_compile,
    give_back_freed_memory,
    linear_maker,
    pick_precision,
)
from im2wav.decoding.sampler import SamplingOptions, draw_device
from im2wav.decoding.state import Decoding
from im2wav.prior import Conditions, Prior
from im2wav.prior.transformer import Layer


class Decoder:
    """A prior made ready to draw codes.

    Args:
        prior: in eval mode.
        precision: fp32, bf16, fp16 (GPUs only), int8 (CPUs only), or auto, see `pick_precision`.
        consume: free the transformer's own weights layer by layer, so that memory holds them once. The prior can then
            no longer be called; its embeddings and its conditioner stay, and the decoder uses them.
        compile: compile the steps with TorchInductor (`generation.compiled`). On a CPU that is faster for one or two
            sequences at a time; on CUDA the whole step is compiled, and then recorded as a CUDA graph.

    Raises:
        ValueError: a precision that the device cannot do, or compile on a device other than a CPU or CUDA.
    """

    def __init__(self, prior: Prior, precision: str = "fp32", consume: bool = False, compile: bool = False):
        self.device = prior.code_embedding.weight.device
        self.precision = pick_precision(precision, self.device)
        check_compile(compile, self.device)
        self.is_compiled = compile
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
        self.on_device = self.device.type == "cuda"  # positions are read from the device, as a CUDA graph needs
        whole = compile and self.on_device
        self.step_at_place = compile_step(Decoding._step_at_place) if whole else Decoding._step_at_place
        self.spare: Decoding | None = None
        with torch.inference_mode():
            linear = linear_maker(self.precision, self.device, packed=not compile)
            self.layers: list[DecoderLayer] = []
            for layer in prior.transformer.layers:
                assert isinstance(layer, Layer)
                self.layers.append(DecoderLayer(layer, linear))
                if consume:
                    layer.to_empty(device="meta")
                    give_back_freed_memory()
            self.compiled = CompiledLayers(self.layers) if compile and not whole else None
            # logits in full precision: rounding them costs more than their few bytes
            self.head = linear_maker("fp32", self.device)(
                self.code_embedding, self.code_embedding.new_zeros(self.codebook_size)
            )

    @cached_property
    def places(self) -> PlaceTable:
        """What attention needs to know about each position, where steps read their position from the device."""
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
        batch, length = uniform.shape
        given = 0 if prefix is None else prefix.shape[1]
        if length > self.context_length or given > length:
            raise ValueError(
                f"{length} codes with a prefix of {given}: the context has {self.context_length} positions"
            )
        spare, self.spare = self.spare, None
        asked = (uniform.shape, options, negative is not None)
        if spare is None or (spare.codes.shape, spare.options, spare.negative) != asked:
            spare = Decoding(self, batch, length, options, negative is not None)
        spare.decoder = self
        spare.begin(conditions, uniform, prefix, negative)
        return spare

    @torch.inference_mode()
    def score(self, conditions: Conditions, codes: Tensor) -> Tensor:
        """Logits [B, n, K] of codes [B, n] that are known, as `Prior.forward` gives them, without guidance.

        Raises:
            ValueError: too many codes, or conditions that do not fit.
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
    """Draw codes [B, n] from a prior, or from the decoder that was made of it.

    A prior that can be guided runs once over a doubled batch, with the picture and without; the network is never
    copied.

    Args:
        prior: in eval mode. Who draws more than once makes a `Decoder` and gives that.
        conditions, uniform, options, prefix: see `Decoder.start`.
        on_step: called with 1 after each position, for progress bars.
        precision: of the decoder, where a prior is given.

    Raises:
        ValueError: see `Decoder` and `Decoder.start`.
    """
    decoder = prior if isinstance(prior, Decoder) else Decoder(prior, precision)
    decoding = decoder.start(conditions, uniform, options, prefix)
    decoding.steps(on_step=on_step)
    codes = decoding.codes.clone()
    decoding.release()
    return codes
