"""Shard parameters, gradients and optimizer state over all processes (FSDP2)."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer


class FSDP2Strategy(ModelParallelStrategy):
    """FSDP2 over all processes of all nodes. Checkpoints are single files in the same format as with other strategies.

    Unlike Lightning's `fsdp`, it also runs on CPUs for tests.
    """

    def __init__(self, **options: Any):
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **options)

    def setup_environment(self) -> None:
        """Build the device mesh: one dimension over all processes.

        Raises:
            ValueError: fp16 precision; loss scaling is not synchronised over shards.
        """
        precision = self.precision_plugin.precision
        if str(precision).startswith("16"):
            raise ValueError(
                f"trainer.precision={precision} with trainer=fsdp: expected bf16-mixed, bf16-true or 32-true"
            )
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Load weights and optimizer state; each process reads its shards from the memory-mapped file.

        Lightning's method drops `state_dict` from its return value and assumes that the optimizer parameters have the
        order of the module, which is wrong for a checkpoint with two parameter groups saved by a single process.
        """
        path = Path(self.broadcast(checkpoint_path))
        checkpoint = torch.load(path, mmap=True, map_location="cpu", weights_only=weights_only)
        assert self.model is not None
        load_full_state(self.model, checkpoint["state_dict"])
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=bool(self.optimizers)):
            set_optimizer_state_dict(
                self.model,
                optimizer,
                _by_name(state, optimizer, self.model),
                options=StateDictOptions(full_state_dict=True),
            )
        return checkpoint


def shard_modules(parts: Iterable[nn.Module], mesh: DeviceMesh, mixed: bool = False) -> None:
    """Shard modules over a mesh.

    In bf16-mixed, autocast stays on: it decides which operations run in bf16 and keeps losses, norms and the residual
    stream in fp32, as with every other strategy. Sharding adds that the repeated parts, where nearly all weights are,
    gather their weights in bf16: half the bytes, and what autocast would cast them to anyway. Gradients are reduced in
    fp32. The inputs of a part are left to autocast. One difference to the other strategies remains: the LayerNorms of
    these parts compute in fp32, but read weights that were gathered in bf16. The optimizer's weights are fp32.

    Args:
        parts: submodules, then the root module, which shards the remaining parameters.
        mesh: one-dimensional device mesh.
        mixed: all-gather the weights of the submodules in bf16.
    """
    *inner, root = parts
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if mixed else None,
        reduce_dtype=torch.float32 if mixed else None,
        cast_forward_inputs=False,
    )
    for part in inner:
        fully_shard(part, mesh=mesh, mp_policy=policy)
    # The root keeps fp32 embeddings. Reshard it after the forward pass, so that module.parameters() are shards when EMA
    # swaps the weights after validation.
    fully_shard(root, mesh=mesh, reshard_after_forward=True)


def local_tensors(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Local shards of the tensors, or the tensors themselves if they are not sharded; shares memory."""
    return [(t.to_local() if isinstance(t, DTensor) else t).detach() for t in tensors]


def is_sharded(module: nn.Module) -> bool:
    """Whether any parameter is sharded."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def full_state(module: nn.Module) -> dict[str, Tensor]:
    """Unsharded state dict. For a sharded module, all processes must call this; it is empty except on rank 0."""
    if not is_sharded(module):
        return module.state_dict()
    state: Any = get_model_state_dict(module, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return state


def load_full_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load an unsharded state dict into a module, sharded or not. Every process passes all tensors."""
    if is_sharded(module):
        set_model_state_dict(module, dict(state), options=StateDictOptions(full_state_dict=True))
    else:
        module.load_state_dict(state)


def _by_name(state: dict[str, Any], optimizer: Optimizer, module: nn.Module) -> dict[str, Any]:
    """Map optimizer state from parameter ids, which follow the order of the groups, to parameter names."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    ours = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    saved = [key for group in state["param_groups"] for key in group["params"]]
    name_of = dict(zip(saved, ours, strict=True))
    groups = [{**group, "params": [name_of[key] for key in group["params"]]} for group in state["param_groups"]]
    return {"state": {name_of[key]: value for key, value in state["state"].items()}, "param_groups": groups}
