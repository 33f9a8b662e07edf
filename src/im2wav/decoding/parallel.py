"""Decoding of a `MaskedPrior`: all positions of a codebook at once, in a few passes, one codebook after another.

Each sequence is computed alone, at the shape of the whole context, so that its codes do not depend on the batch.

Shapes: B sequences, T positions of the context, Q codebooks, K codes, W width, R rows of one sequence: 1, with guidance
2, with a negative input 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from im2wav.decoding.decoder_layer import Norm, decoder_layers
from im2wav.decoding.linear import linear_maker, resolve_precision
from im2wav.decoding.sampler import SamplingOptions, draw_device, draw_guided
from im2wav.prior import Conditions, MaskedPrior


class ParallelDecoder:
    """The weights of a masked prior, ready for decoding. It has the interface of `Decoder`.

    Args:
        prior: in eval mode.
        precision, consume: see `Decoder`.

    Raises:
        ValueError: a precision that the device does not support.
    """

    def __init__(self, prior: MaskedPrior, precision: str = "fp32", consume: bool = False):
        self.prior, self.device = prior, prior.code_embedding.weight.device
        self.precision = resolve_precision(precision, self.device)
        self.context_length, self.codebook_size = prior.context_length, prior.codebook_size
        self.code_shape, self.can_be_guided = prior.code_shape, prior.can_be_guided
        with torch.inference_mode():
            linear, exact = linear_maker(self.precision, self.device), linear_maker("fp32", self.device)
            self.layers = decoder_layers(prior, linear, consume)
            self.norm = Norm(prior.norm)
            levels = range(prior.known_codebooks, len(prior.out_bias))
            self.outs = {level: exact(*prior.out(level)) for level in levels}

    @torch.inference_mode()
    def logits(self, codes: Tensor, known: Tensor, level: int, condition: Tensor) -> Tensor:
        """Logits [R, T, K] of a codebook, for codes [T, Q] of which `known` [T, Q] are seen."""
        prior = self.prior
        x = prior.embed(codes[None], known[None]).float() + prior.level_embedding[level] + condition
        for layer in self.layers:
            x = layer.prefill(x)
        return self.outs[level](self.norm(x))

    def score(self, conditions: Conditions, codes: Tensor) -> Tensor:
        """Not available: drafts are ranked by the low prior."""
        raise NotImplementedError

    @torch.inference_mode()
    def step_logits(self, conditions: Conditions, codes: Tensor, options: SamplingOptions) -> Tensor:
        """Logits of known codes [B, T, Q], each codebook given those before it: [R, T, Q - known, K].

        Raises:
            ValueError: see `start`.
        """
        state = self.start(conditions, torch.zeros(codes.shape, dtype=torch.float64), options)
        books = torch.arange(codes.shape[2], device=codes.device).expand(codes.shape[1:])
        items = [
            torch.stack([self.logits(own, books < level, level, rows) for level in self.outs], 2)
            for own, rows in zip(codes, state.conditions, strict=True)
        ]
        return torch.stack(items, 1).flatten(0, 1)

    @torch.inference_mode()
    def start(
        self,
        conditions: Conditions,
        uniform: Tensor,
        options: SamplingOptions,
        prefix: Tensor | None = None,
        negative: Conditions | None = None,
        following: Tensor | None = None,
    ) -> ParallelState:
        """Start to draw B sequences.

        Args:
            conditions: of B sequences, with their coarse codes.
            uniform: random numbers in [0, 1), one for each code, [B, n, Q]; n <= context length.
            options: guidance, temperature, filters, passes.
            prefix: known codes [B, P, Q] at the start of the sequences.
            negative: conditions that guidance moves away from.
            following: known codes [B, F, Q] after the n positions; n + F <= context length.

        Raises:
            ValueError: too many positions, no coarse codes, or conditions of another shape.
        """
        return ParallelState(self, conditions, uniform, options, prefix, negative, following)


class ParallelState:
    """B sequences while they are drawn; it has the interface of `DecodeState`.

    Attributes:
        codes: [B, n, Q].
        position: number of positions that `steps` has returned.
        conditions: what is added to the inputs of each sequence, [R, T, W].
    """

    def __init__(
        self,
        decoder: ParallelDecoder,
        conditions: Conditions,
        uniform: Tensor,
        options: SamplingOptions,
        prefix: Tensor | None,
        negative: Conditions | None,
        following: Tensor | None,
    ):
        self.decoder, self.options, self.negative = decoder, options, negative is not None
        self.guided = decoder.can_be_guided and (options.guidance_scale != 1 or self.negative)
        if self.negative and not decoder.can_be_guided:
            raise ValueError("a negative input needs a prior with guidance (conditioning.guidance=true)")
        batch, length, count = uniform.shape
        given = 0 if prefix is None else prefix.shape[1]
        more = 0 if following is None else following.shape[1]
        context, low = decoder.context_length, decoder.prior.known_codebooks
        if given > length or length + more > context:
            raise ValueError(
                f"{length} positions with a prefix of {given}, and {more} after them: the context has {context}"
            )
        if conditions.codes_low is None or conditions.codes_low.shape != (batch, context, low):
            found = None if conditions.codes_low is None else list(conditions.codes_low.shape)
            raise ValueError(f"coarse codes of shape {found}: expected {[batch, context, low]}")
        self.length, self.first, self.position = length, given, given
        self.uniform = uniform.to(draw_device(decoder.device))
        self._codes = torch.zeros(batch, context, count, dtype=torch.long, device=decoder.device)
        self._known = torch.zeros(context, count, dtype=torch.bool, device=decoder.device)  # of all sequences
        self._codes[..., :low], self._known[:, :low] = conditions.codes_low, True
        for start, known in ((0, prefix), (length, following)):
            if known is not None:
                end = start + known.shape[1]
                self._codes[:, start:end, low:], self._known[start:end] = known[..., low:].to(self._codes), True
        self.conditions = [self._rows(conditions, negative, item) for item in range(batch)]
        self._drawn = given == length

    def _rows(self, conditions: Conditions, negative: Conditions | None, item: int) -> Tensor:
        """What is added to the inputs of one sequence, [R, T, W]."""
        own = conditions.take(slice(item, item + 1))
        variants = [own, *([own.null_like()] if self.guided else [])]
        variants += [] if negative is None else [negative.take(slice(item, item + 1))]
        prior, length = self.decoder.prior, self.decoder.context_length
        return torch.cat([prior.condition(variant, length).float() for variant in variants])

    @property
    def codes(self) -> Tensor:
        """[B, n, Q]."""
        return self._codes[:, : self.length]

    @torch.inference_mode()
    def steps(self, count: int | None = None, on_step: Callable[[int], object] | None = None) -> Tensor:
        """The codes of the next `count` positions, or of all remaining ones: [B, count, Q].

        All are drawn at the first call.

        Args:
            count: at most the number of remaining positions.
            on_step: called with the number of positions that the passes so far amount to, for progress bars.
        """
        if not self._drawn:
            self._draw_all(on_step)
            self._drawn = True
        first = self.position
        self.position = self.length if count is None else first + count
        return self.codes[:, first : self.position]

    def _draw_all(self, on_step: Callable[[int], object] | None) -> None:
        low, passes = self.decoder.prior.known_codebooks, self.options.passes
        levels = range(low, self._codes.shape[2])
        total, wanted, done = len(levels) * passes, self.length - self.first, 0
        for level in levels:
            for number in range(passes):
                for item in range(len(self._codes)):
                    self._draw_pass(item, level, number)
                if on_step:
                    share = wanted * ((level - low) * passes + number + 1) // total
                    on_step(share - done)
                    done = share
            self._known[:, level] = True

    def _draw_pass(self, item: int, level: int, number: int) -> None:
        """Draw the codes of one codebook that pass `number` adds; their order is random, and the same in all passes.

        The share of the codes that are missing after a pass is cos(pi / 2 * passes done / all passes), as in training.
        """
        passes, places = self.options.passes, slice(self.first, self.length)
        uniform = self.uniform[item, places, level]
        order = (uniform * 2**24 % 1).argsort().argsort()  # by digits that do not matter for the code
        bounds = [round(len(order) * (1 - _missing(k, passes))) for k in (number, number + 1)]
        known = self._known.clone()
        known[places, level] = (order < bounds[0]).to(known.device)
        here = self.decoder.logits(self._codes[item], known, level, self.conditions[item])[:, places]
        drawn = draw_guided(here.flatten(0, 1), uniform, self.options, self.guided, self.negative)
        new = ((order >= bounds[0]) & (order < bounds[1])).to(known.device)
        codes = self._codes[item, places, level]
        codes.copy_(torch.where(new, drawn.to(codes.device), codes))

    def release(self) -> None:
        """Nothing is kept for the next state."""


def _missing(done: int, passes: int) -> float:
    """Fraction of the codes that are missing after `done` passes; the schedule of MaskGIT."""
    return math.cos(math.pi / 2 * done / passes)
