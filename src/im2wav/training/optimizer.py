"""Parameter groups for weight decay."""

from typing import Any

from torch import nn
from torch.nn.parameter import Parameter

# embeddings: decay would pull rarely used rows to zero
TABLES = ("position_embedding", "null_start", "null_frame")


def parameter_groups(module: nn.Module, decay_everything: bool = False) -> list[dict[str, Any]]:
    """Parameter groups of an optimizer: weight decay for matrices and kernels, none for norms, biases and embeddings.

    Args:
        module: module with the parameters.
        decay_everything: one group with all parameters, like the official code.
    """
    if decay_everything:
        return [{"params": list(module.parameters())}]
    decayed: list[Parameter] = []
    others: list[Parameter] = []
    seen: set[Parameter] = set()
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if parameter in seen:
                continue
            seen.add(parameter)
            plain = parameter.ndim < 2 or isinstance(part, nn.Embedding) or name in TABLES
            (others if plain else decayed).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
