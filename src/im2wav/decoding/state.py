"""The state of decoding: KV cache, codes and inputs of a batch, allocated once.

Shapes: B sequences, T positions of the context, K codebook size, W width, R rows of the network: B conditional ones,
then with guidance B unconditional ones, then with a negative input B for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from im2wav.decoding.decoder_layer import LayerCache, Position
from im2wav.decoding.linear import give_back_freed_memory
from im2wav.decoding.sampler import SamplingOptions, draw_device, draw_guided
from im2wav.prior import Conditions
from im2wav.system import num_cores

if TYPE_CHECKING:
    from im2wav.decoding.decoder import Decoder


class ThreadTuner:
    """Chooses the number of CPU threads for decoding steps by timing some of the steps, again every `INTERVAL` seconds.

    In a step, threads wait for each other several hundred times. Small networks are fastest with one thread; where
    other processes use the cores, more threads can take ten times as long.
    """

    INTERVAL = 10.0  # s
    TIMED_STEPS = 6

    def __init__(self) -> None:
        self.counts: list[int] = []  # ascending; all give the same logits to the last bit
        self.limit = self._next = 0

    def check(self, logits: Callable[[], Tensor]) -> None:
        """Find numbers of threads up to torch's current one that give the same `logits()`, when that has changed."""
        before = torch.get_num_threads()
        if self.limit == before:
            return
        self.limit, self.counts = before, []
        most, expected = min(before, num_cores()), logits()
        for count in sorted({1 << k for k in range(most.bit_length())} | {most}):
            torch.set_num_threads(count)
            if torch.equal(logits(), expected):
                self.counts.append(count)
        torch.set_num_threads(before)
        self.counts = self.counts or [before]
        self._choices = self._choose()
        self._next = next(self._choices)

    def run(self, step: Callable[[], object]) -> None:
        """Call `step` with the number of threads that is fastest, or is to be timed."""
        if torch.get_num_threads() != self._next:
            torch.set_num_threads(self._next)
        start = time.perf_counter()
        step()
        self._next = self._choices.send(time.perf_counter() - start)

    def _choose(self) -> Generator[int, float, None]:
        """Yield the number of threads of the next step, and be sent the seconds that it took."""
        while True:
            seconds: dict[int, float] = {}
            for count in self.counts:
                yield count  # not timed: it may start threads
                seconds[count] = 0.0
                for _ in range(self.TIMED_STEPS):
                    seconds[count] += yield count
                if seconds[count] > 1.2 * min(seconds.values()):
                    break  # still more threads are slower still
            fastest = next(count for count, taken in seconds.items() if taken <= 1.05 * min(seconds.values()))
            end = time.perf_counter() + self.INTERVAL
            while time.perf_counter() < end:
                yield fastest


class DecodeState:
    """The state of B sequences while their codes are drawn. Created by `Decoder.start`.

    Attributes:
        codes: [B, n] or [B, n, Q]; the first `position` positions are drawn.
        position: number of positions drawn so far.
        uniform: of the shape of `codes`, on the device that draws the codes: that of the decoder, or the CPU
            (`draw_device`).
    """

    def __init__(self, decoder: Decoder, batch: int, length: int, options: SamplingOptions, negative: bool = False):
        if negative and not decoder.can_be_guided:
            raise ValueError("a negative input needs a prior with guidance (conditioning.guidance=true)")
        self._decoder: Decoder | None = decoder
        self.options, self.batch, self.negative = options, batch, negative
        self.guided = decoder.can_be_guided and (options.guidance_scale != 1 or negative)
        self.position = 0
        rows, device, width = batch * (1 + self.guided + negative), decoder.device, decoder.sizes.width
        shape = (batch, length, *decoder.code_shape)
        self.codes = torch.zeros(shape, dtype=torch.long, device=device)
        self.uniform = torch.zeros(shape, dtype=torch.float64, device=draw_device(device))
        self.input = torch.zeros(rows, width, device=device)
        self.condition = torch.zeros(rows, *decoder.condition_shape, device=device)  # [R, T or 1, W or 1]
        self.caches: list[LayerCache] = []
        self.place = torch.zeros(1, dtype=torch.long, device=device)  # `position` on the device, for CUDA graphs
        self.places = decoder.places if decoder.on_device and decoder.fused is None else None
        self.graph: torch.cuda.CUDAGraph | None = None

    @property
    def decoder(self) -> Decoder:
        """The decoder of this state.

        Raises:
            RuntimeError: after `release`.
        """
        if self._decoder is None:
            raise RuntimeError("this DecodeState was released: call Decoder.start again")
        return self._decoder

    @decoder.setter
    def decoder(self, decoder: Decoder) -> None:
        self._decoder = decoder

    @torch.inference_mode()
    def begin(
        self,
        conditions: Conditions,
        uniform: Tensor,
        prefix: Tensor | None = None,
        negative: Conditions | None = None,
    ) -> None:
        """Reset the state for new sequences; see `Decoder.start`."""
        self.codes.zero_()
        self.uniform.copy_(uniform)
        self.go_to(0)
        self._embed_conditions(conditions, negative)
        self._clear_caches()
        if prefix is not None and prefix.shape[1]:
            self._prefill(prefix)

    def _clear_caches(self) -> None:
        """Clear the KV cache; allocated at first use, after the conditioner has freed its activations."""
        for cache in self.caches:
            cache.clear()
        if not self.caches:
            decoder = self.decoder
            give_back_freed_memory()
            like = torch.empty(0, dtype=decoder.cache_dtype, device=decoder.device)
            size = (len(self.input), decoder.sizes.heads, decoder.context_length, decoder.head_width, decoder.block)
            self.caches = [LayerCache(layer.kind, *size, like=like) for layer in decoder.layers]

    def release(self) -> None:
        """Give KV cache and CUDA graph to the next `Decoder.start`. This state cannot be used afterwards.

        It drops its reference to the decoder, which now owns it: a reference cycle would keep weights and KV cache in
        GPU memory until Python's next garbage collection.
        """
        self.decoder.spare, self._decoder = self, None

    @torch.inference_mode()
    def go_to(self, position: int) -> None:
        """Continue at another position, for which the KV cache holds all earlier ones."""
        self.position = position
        self.place.fill_(position)

    def _embed_conditions(self, conditions: Conditions, negative: Conditions | None) -> None:
        """Compute start and position embeddings one item at a time, so that they do not depend on the batch."""
        items = [conditions.take(slice(i, i + 1)) for i in range(self.batch)]
        items += [item.null_like() for item in items] if self.guided else []
        items += [negative.take(slice(i, i + 1)) for i in range(self.batch)] if negative is not None else []
        for row, item in enumerate(items):
            start, positions = self.decoder.conditioner(item, self.decoder.context_length)
            self.input[row] = start[0]
            if positions is not None:
                self.condition[row] = positions[0]

    def _prefill(self, prefix: Tensor) -> None:
        """Fill the KV cache with the prefix, one item at a time for the same reason."""
        given = prefix.shape[1]
        self.codes[:, :given] = prefix
        for item in range(self.batch):
            self.run_known(torch.arange(item, len(self.input), self.batch, device=prefix.device), prefix[item])
        self._embed(prefix[:, -1])
        self.go_to(given)

    def run_known(self, rows: Tensor, codes: Tensor) -> Tensor:
        """Run the known codes [p] or [p, Q] of one item through its `rows` [r] in one pass, and fill the KV cache.

        Returns:
            Inputs of the output head, [r, p, W].
        """
        before = self.decoder.head.embed(codes[:-1]).expand(len(rows), -1, -1)
        condition = self.condition[rows, : len(codes)]
        x = torch.cat([self.input[rows, None], before], 1) + self.decoder.position_embedding[: len(codes)] + condition
        for layer, cache in zip(self.decoder.layers, self.caches, strict=True):
            x = layer.prefill(x, cache, rows)
        return x + condition

    @torch.inference_mode()
    def logits(self) -> Tensor:
        """Logits [R, K] of the first code at `position`: conditional, unconditional, negative. Call `feed` next."""
        return self.decoder.head.first_logits(self.hidden())

    def hidden(self) -> Tensor:
        """Hidden states [R, W] at `position`, from which the output head draws its codes."""
        t = min(self.position, self.condition.shape[1] - 1)
        return self._run(self.decoder.position_embedding[self.position], self.condition[:, t], self.position)

    def _run(self, learnt: Tensor, condition: Tensor, position: Position) -> Tensor:
        x = self.input + learnt + condition
        fused = self.decoder.fused
        if fused is not None:
            x = fused.step(x, self.caches, self.place if self.decoder.compile == "triton" else self.position)
        else:
            for layer, cache in zip(self.decoder.layers, self.caches, strict=True):
                x = layer.step(x, cache, position)
        return x + condition

    def _draw(self, hidden: Tensor, uniform: Tensor) -> Tensor:
        """Draw the codes of a position, [B] or [B, Q], from hidden states [R, W]."""

        def pick(logits: Tensor, number: int | None) -> Tensor:
            numbers = uniform if number is None else uniform[:, number]
            return draw_guided(logits, numbers, self.options, self.guided, self.negative)

        return self.decoder.head.draw(hidden, pick)

    def _embed(self, codes: Tensor) -> None:
        """Set codes [B] or [B, Q] as the input of the next position."""
        self.input.copy_(self.decoder.head.embed(codes).repeat(len(self.input) // self.batch, 1))

    @torch.inference_mode()
    def feed(self, codes: Tensor) -> None:
        """Set the codes [B] or [B, Q] at `position`, and advance."""
        codes = codes.to(self.codes.device)
        self.codes[:, self.position] = codes
        self._embed(codes)
        self.go_to(self.position + 1)

    @torch.inference_mode()
    def step(self) -> Tensor:
        """Draw the codes of the next position of every sequence: [B] or [B, Q]. On CUDA this does not synchronise.

        Raises:
            ValueError: all codes are drawn.
        """
        t = self.position
        if t >= self.codes.shape[1]:
            raise ValueError(f"all {t} codes are drawn already")
        if self.decoder.on_device:
            self._step_on_device()
        else:
            self.feed(self._draw(self.hidden(), self.uniform[:, t]))
        self.position = t + 1
        return self.codes[:, t]

    def _step_at_place(self) -> None:
        """One step with its position on the device: the same kernels and memory at every position, for a CUDA graph."""
        place, condition = self.place, self.condition
        condition = condition.index_select(1, place) if condition.shape[1] > 1 else condition
        learnt = self.decoder.position_embedding.index_select(0, place)
        position = self.position if self.places is None else self.places.at(place)  # fused kernels read `place`
        hidden = self._run(learnt, condition[:, 0], position)
        codes = self._draw(hidden, self.uniform.index_select(1, place)[:, 0]).to(self.codes.device)
        self.codes.index_copy_(1, place, codes[:, None])
        self._embed(codes)
        place += 1

    def _step_on_device(self) -> None:
        device, step = self.decoder.device, self.decoder.step_at_place
        if device.type != "cuda":
            step(self)
            return
        with torch.cuda.device(device):  # a graph captures the work of the current device
            if self.graph is None:
                self.graph = self._capture(step)
            self.graph.replay()

    def _capture(self, step: Callable[[DecodeState], None]) -> torch.cuda.CUDAGraph:
        """Capture a step as a CUDA graph on the current device.

        Two warm-up steps select and, with `compile`, compile kernels. They change nothing that the step does not
        overwrite.
        """
        saved, stream = self.input.clone(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                step(self)
                self.place -= 1
                self.input.copy_(saved)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # not "global": other threads, such as those that pin memory for data loaders, use CUDA meanwhile
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            step(self)
        return graph

    def steps(self, count: int | None = None, on_step: Callable[[int], object] | None = None) -> Tensor:
        """Draw the next `count` codes of every sequence, or all remaining ones: [B, count].

        Args:
            count: at most the number of remaining codes.
            on_step: called with 1 after each code, for progress bars.
        """
        first, tuner, before = self.position, self.decoder.threads, torch.get_num_threads()
        step = self.step if tuner is None else partial(tuner.run, self.step)
        if tuner is not None and first < self.codes.shape[1]:
            tuner.check(self.logits)
        try:
            for _ in range(self.codes.shape[1] - first if count is None else count):
                step()
                if on_step:
                    on_step(1)
        finally:
            torch.set_num_threads(before)  # prefixes, the codec and encoders round by their number of threads
        return self.codes[:, first : self.position]
