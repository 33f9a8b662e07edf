"""Streaming: yield samples as soon as the codes that they depend on are drawn."""

from collections.abc import Iterator

from torch import Tensor

from im2wav.codec.codec import BlockDecoder
from im2wav.inference.code_buffer import CodeBuffer
from im2wav.inference.generate import OnStep, draw_windows, start_windows


def stream(buffer: CodeBuffer, on_step: OnStep | None = None) -> Iterator[Tensor]:
    """Generate one audio and yield it in pieces, samples [n] in [-1, 1] on the CPU.

    The two levels alternate, window by window. The concatenated pieces equal the result of `generate`.

    Args:
        buffer: no codes drawn yet.
        on_step: called with the number of codes drawn, after each step.
    """
    networks, length, codes = buffer.networks, buffer.lengths["up"], buffer.codes["up"]
    blocks = BlockDecoder(networks.codec, "up", length)
    remaining = buffer.samples

    def pieces(known: int) -> Iterator[Tensor]:
        nonlocal remaining
        for part in blocks.push(codes, known):
            yield part[:remaining].cpu()
            remaining -= len(part)

    low, up = buffer.windows["low"], buffer.windows["up"]
    while up:
        start, first, end = up[0]
        while low and low[0].first * networks.ratio < start + networks.up.context_length:
            draw_windows("low", [(buffer, low[0], buffer.inputs("low", low[0]))], on_step)
        state = start_windows(buffer, "up", [buffer.inputs("up", up[0])])
        while first < end:
            count = min(max(blocks.missing(first), 1), end - first)
            codes[first : first + count] = state.steps(count, on_step)[0]
            first += count
            yield from pieces(first)
        state.release()
        up.pop(0)
        yield from pieces(up[0].first if up else length)
