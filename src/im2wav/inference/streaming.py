"""Sound while it is generated: low codes of a window, then up codes, and samples as soon as the codes allow."""

from collections.abc import Callable, Iterator

from torch import Tensor

from im2wav.decoding.sampler import SamplingOptions
from im2wav.inference.block_decoder import BlockDecoder
from im2wav.inference.code_buffer import Composition, draw_tasks, start_tasks
from im2wav.inference.request import Models, Request


def stream(
    models: Models,
    request: Request,
    options: SamplingOptions,
    on_step: Callable[[int], object] | None = None,
) -> Iterator[Tensor]:
    """Make one sound and yield it in pieces: samples [n] in [-1, 1] on the CPU.

    The two levels take turns, window by window, and a piece comes as soon as the fine codes are there that it depends
    on. Joined, the pieces are the sound that `generate` gives, sample for sample.

    Args:
        models, request, options: see `generate`.
        on_step: called with the number of codes drawn, after each step.

    Raises:
        ValueError: given codes that do not fit the sound's length.
    """
    item = Composition(models, request)
    length, context, ratio = item.lengths["up"], models.up.context_length, models.ratio
    waves = BlockDecoder(models.codec, "up", length, models.reach["up"])
    left = item.samples

    def pieces(known: int) -> Iterator[Tensor]:
        nonlocal left
        for part in waves.push(item.codes["up"], known):
            yield part[:left].cpu()
            left -= len(part)

    while item.windows["up"]:
        start, first, end = item.windows["up"][0]
        while item.windows["low"] and item.windows["low"][0].first * ratio < start + context:
            draw_tasks(models, [item.task("low", item.windows["low"][0])], options, on_step)
        decoding = start_tasks(models, [item.task("up", item.windows["up"][0])], options)
        while first < end:
            count = min(max(waves.missing(first), 1), end - first)
            item.codes["up"][first : first + count] = decoding.steps(count, on_step)[0]
            first += count
            yield from pieces(first)
        decoding.release()
        item.windows["up"].pop(0)
        yield from pieces(item.windows["up"][0].first if item.windows["up"] else length)
