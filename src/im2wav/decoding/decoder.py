"""The decoding engine: draw codes from a prior, one position after another.

A `Decoder` holds the weights of a prior in the precision and layout that are read fastest. A `DecodeState` holds what
changes while a batch is drawn, such as the KV cache. The specification of both is the uncached `Prior.forward`, and
tests compare them.

Shapes: B sequences, T positions of the context, K codebook size, W width, R rows of the network (2 B with guidance).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from im2wav.codec import Codec
from im2wav.decoding.compiled import CompiledLayers, FusedLayers, compile_step
from im2wav.decoding.decoder_layer import DecoderHeads, PlaceTable, TiedHead, decoder_layers
from im2wav.decoding.linear import (
    Compile,
    cache_dtype,
    check_compile,
    linear_maker,
    resolve_precision,
)
from im2wav.decoding.parallel import ParallelDecoder
from im2wav.decoding.sampler import SamplingOptions, draw_device
from im2wav.decoding.state import DecodeState, ThreadTuner
from im2wav.prior import CodePrior, Conditions, MaskedPrior, Prior

MAX_BATCH_SIZE = 64  # larger ones are slower on a CPU; on a GPU reading the KV cache then takes longer than the weights
FRACTION_OF_FREE = 0.6  # the rest is for activations, waveforms and other processes
CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current")


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
        self.code_shape = prior.code_shape
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
        self.threads = (
            ThreadTuner() if self.device.type == "cpu" and not compile else None
        )  # kernels have a fixed number
        with torch.inference_mode():
            linear = linear_maker(self.precision, self.device, packed=not compile)
            self.layers = decoder_layers(prior, linear, consume)
            self.fused = None if not compile or whole else self._fuse()
            head = TiedHead if prior.heads is None else DecoderHeads
            self.head: TiedHead | DecoderHeads = head(prior, linear_maker("fp32", self.device))

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
        following: Tensor | None = None,
    ) -> "DecodeState":
        """Start to draw B sequences.

        Args:
            conditions: of B sequences.
            uniform: random numbers in [0, 1), one for each code, [B, n] or [B, n, Q]; n <= context length.
            options: guidance, temperature, filters.
            prefix: known codes [B, P] or [B, P, Q] at the start of the sequences.
            negative: conditions that guidance moves away from.
            following: known codes after the n positions; an autoregressive prior does not see them.

        Raises:
            ValueError: n exceeds the context, the prefix is longer than n, or conditions of another shape.
        """
        batch, length = uniform.shape[:2]
        given = 0 if prefix is None else prefix.shape[1]
        if length > self.context_length or given > length:
            raise ValueError(
                f"{length} codes with a prefix of {given}: the context has {self.context_length} positions"
            )
        spare, self.spare = self.spare, None
        asked = (uniform.shape, options, negative is not None)
        if spare is None or (spare.uniform.shape, spare.options, spare.negative) != asked:
            spare = DecodeState(self, batch, length, options, negative is not None)
        spare.decoder = self
        spare.begin(conditions, uniform, prefix, negative)
        return spare

    @torch.inference_mode()
    def score(self, conditions: Conditions, codes: Tensor) -> Tensor:
        """Logits [B, n, ..., K] of known codes [B, n, ...], equal to those of `Prior.forward`, without guidance.

        Raises:
            ValueError: too many codes, or conditions of another shape.
        """
        uniform = torch.zeros(codes.shape, dtype=torch.float64, device=draw_device(codes.device))
        decoding = self.start(conditions, uniform, SamplingOptions(guidance_scale=1.0))
        rows = torch.arange(len(codes), device=codes.device).split(1)
        known = zip(rows, codes, strict=True)
        return torch.cat([self.head.score(decoding.run_known(row, own), own) for row, own in known])

    @torch.inference_mode()
    def step_logits(self, conditions: Conditions, codes: Tensor, options: SamplingOptions) -> Tensor:
        """Logits of known codes [B, n, ...] by the steps that draw codes: [R, n, ..., K], see `score`.

        Raises:
            ValueError: see `start`.
        """
        uniform = torch.zeros(codes.shape, dtype=torch.float64, device=draw_device(codes.device))
        state, steps = self.start(conditions, uniform, options), []
        for known in codes.unbind(1):
            found: list[Tensor] = []

            def pick(logits: Tensor, number: int | None, known: Tensor = known, found: list = found) -> Tensor:
                found.append(logits)
                return known if number is None else known[:, number]

            self.head.draw(state.hidden(), pick)
            state.feed(known)
            steps.append(torch.stack(found, 1) if self.code_shape else found[0])
        return torch.stack(steps, 1)


def make_decoder(
    prior: CodePrior, precision: str = "fp32", consume: bool = False, compile: Compile = False
) -> Decoder | ParallelDecoder:
    """The decoder of a prior, see `Decoder` and `ParallelDecoder`."""
    if isinstance(prior, MaskedPrior):
        return ParallelDecoder(prior, precision, consume)
    assert isinstance(prior, Prior)
    return Decoder(prior, precision, consume, compile)


@torch.inference_mode()
def sample_codes(
    prior: CodePrior | Decoder | ParallelDecoder,
    conditions: Conditions,
    uniform: Tensor,
    options: SamplingOptions,
    prefix: Tensor | None = None,
    on_step: Callable[[int], object] | None = None,
    precision: str = "fp32",
) -> Tensor:
    """Draw codes [B, n] or [B, n, Q].

    With guidance, one pass over a doubled batch gives conditional and unconditional logits.

    Args:
        prior: a prior in eval mode, or its `Decoder`, which is faster when codes are drawn more than once.
        conditions, uniform, options, prefix: see `Decoder.start`.
        on_step: called with 1 after each position, for progress bars.
        precision: of the decoder, if a prior is given.

    Raises:
        ValueError: see `Decoder` and `Decoder.start`.
    """
    decoder = make_decoder(prior, precision) if isinstance(prior, CodePrior) else prior
    decoding = decoder.start(conditions, uniform, options, prefix)
    decoding.steps(on_step=on_step)
    codes = decoding.codes.clone()
    decoding.release()
    return codes


@dataclass(frozen=True)
class Networks:
    """A codec and its priors in eval mode, on one device.

    Attributes:
        codec, low, up: the networks.
        precision, consume, compile: of the priors, see `Decoder`.
    """

    codec: Codec
    low: CodePrior
    up: CodePrior
    precision: str = "fp32"
    consume: bool = False
    compile: Compile = False

    @cached_property
    def decoders(self) -> dict[str, Decoder | ParallelDecoder]:
        """The decoders of the priors by level, created at first use."""
        priors = {"low": self.low, "up": self.up}
        return {k: make_decoder(prior, self.precision, self.consume, self.compile) for k, prior in priors.items()}

    @property
    def window(self) -> int:
        """Samples in the context of the priors."""
        return self.low.context_length * self.codec.hop_lengths["low"]

    @property
    def ratio(self) -> int:
        """Number of up codes for each low code."""
        return self.codec.hop_lengths["low"] // self.codec.hop_lengths["up"]

    @property
    def device(self) -> torch.device:
        """Device of the networks."""
        return next(self.codec.parameters()).device

    @torch.inference_mode()
    def encode(self, wav: Tensor, pad: bool = True) -> dict[str, Tensor]:
        """Encode samples [N] as codes by level [T].

        Args:
            wav: at the sample rate of the codec.
            pad: pad with silence to whole low codes; otherwise drop the rest.

        Raises:
            ValueError: too short for one code.
        """
        hop = self.codec.hop_lengths["low"]
        count = -(-len(wav) // hop) if pad else len(wav) // hop
        if not count:
            raise ValueError(f"audio of {len(wav)} samples is too short: expected at least {hop}, one low code")
        wav = F.pad(wav, (0, max(0, count * hop - len(wav))))[: count * hop]
        return {k: codes[0].cpu() for k, codes in self.codec.encode(wav[None, None].to(self.device)).items()}


def _number(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):  # no limit, or `max`
        return None


def free_memory(device: torch.device) -> int | None:
    """Free bytes of a device; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return None
    limit, used = map(_number, CGROUPS)
    return free if limit is None or used is None else min(free, max(0, limit - used))


def bytes_per_sequence(prior: CodePrior, precision: str, rows: int = 1) -> int:
    """Bytes of KV cache and conditions of one sequence that takes `rows` rows of the batch."""
    sizes, block, length = prior.transformer.config, prior.transformer.block, prior.context_length
    kept = {"row": block, "previous_row": 2 * block, "column": length, "all": 0}
    device = prior.position_embedding.device
    per_number = cache_dtype(resolve_precision(precision, device), device).itemsize
    cached = sum(kept[str(layer.kind)] for layer in prior.transformer.layers)
    return rows * (cached * 2 * sizes.attention_width * per_number + length * sizes.width * 4)


def batch_that_fits(priors: Sequence[CodePrior], precision: str, rows: int = 2, most: int = MAX_BATCH_SIZE) -> int:
    """Number of sequences that fit into free memory, 1 to `most`. Each prior keeps its KV cache between windows.

    Args:
        priors: the priors; memory for a packed copy of one of them is reserved.
        precision: see `Decoder`.
        rows: per sequence, for priors with guidance: 2, or 3 with a negative input.
        most: upper limit.
    """
    free = free_memory(priors[0].position_embedding.device)
    if free is None:
        return min(most, 16)
    weights = max(sum(p.nbytes for p in prior.parameters()) for prior in priors)
    each = sum(bytes_per_sequence(prior, precision, rows if prior.can_be_guided else 1) for prior in priors)
    return int(min(most, max(1, (free * FRACTION_OF_FREE - weights) // each)))
