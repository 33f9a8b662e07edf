"""Floating-point operations (FLOPs) of a network, counted with forward hooks."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from im2wav.prior import Prior
from im2wav.training.module import eager_eval_mode


def forward_flops(net: nn.Module, work: Callable[[], Any]) -> int:
    """Count the FLOPs of matrix products and convolutions while `work` runs the network; a multiply-add counts 2.
    Training takes three times as many."""
    total = 0

    def count(part: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        places = inputs[0] if isinstance(part, nn.ConvTranspose1d) else output
        channels = places.shape[1] if places.ndim == 3 and not isinstance(part, nn.Linear) else places.shape[-1]
        total += 2 * part.weight.numel() * (places.numel() // channels)

    kinds = (nn.Linear, nn.Conv1d, nn.ConvTranspose1d)
    handles = [part.register_forward_hook(count) for part in net.modules() if isinstance(part, kinds)]
    try:
        with eager_eval_mode(net), torch.no_grad():
            work()
    finally:
        for handle in handles:
            handle.remove()
    return total


def prior_flops(net: Prior) -> int:
    """FLOPs of a forward pass over one item outside of modules: causal attention and the tied output layer."""
    transformer, length = net.transformer, net.context_length
    keys = {"row": (transformer.block + 1) / 2, "column": (length // transformer.block + 1) / 2}
    keys["previous_row"] = float(transformer.block)
    kinds = [str(layer.kind) for layer in transformer.layers]
    attention = sum(4 * length * keys[kind] * transformer.config.attention_width for kind in kinds)
    return int(attention + 2 * length * net.codebook_size * transformer.config.width)
