"""Base LightningModule: optimizer, scheduler, gradient norm and checkpoint metadata."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.flop_counter import FlopCounterMode

from im2wav.decoding.sampler import item_seed
from im2wav.training.optimizer import changed_settings, parameter_groups, use_settings
from im2wav.training.sharding import shard_modules

log = logging.getLogger(__name__)


@contextmanager
def eager_eval_mode(net: nn.Module) -> Iterator[None]:
    """Context manager: network in eval mode without torch.compile; restores both afterwards.

    Compilation is for the training step only. Other batch sizes and inference mode would each trigger a recompilation.
    After 8 variants (torch._dynamo.config.recompile_limit), PyTorch runs the module uncompiled for the rest of the run,
    in the training step as well.
    """
    before = {part: (part.training, part._compiled_call_impl) for part in net.modules()}
    for part in before:
        part._compiled_call_impl = None
    net.eval()
    try:
        yield
    finally:
        for part, (training, call) in before.items():
            part.training, part._compiled_call_impl = training, call


def training_flops(net: nn.Module, forward: Callable[[], Any]) -> int:
    """Floating-point operations (FLOPs) of a training step: three times those of `forward`, which runs the network.

    Attention counts where `torch.utils.flop_counter` knows its kernel, not on a CPU; it is about 1 % at official size.
    """
    with FlopCounterMode(display=False) as counter, eager_eval_mode(net), torch.no_grad():
        forward()
    return 3 * counter.get_total_flops()


def find_parts(net: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """Submodules of a network by name.

    Raises:
        ValueError: an unknown name, or no part would be trained.
    """
    parts = dict(net.named_modules())
    for name in names:
        if name not in parts or not name:
            top = ", ".join(name for name, _ in net.named_children())
            raise ValueError(f"model.freeze: the network has no part {name!r}: expected {top}, or a part of these")
    found = [parts[name] for name in names]
    kept = {parameter for part in found for parameter in part.parameters()}
    if names and all(parameter in kept for parameter in net.parameters()):
        raise ValueError(f"model.freeze={list(names)}: nothing of the network is left to train")
    return found


class NetModule(pl.LightningModule):
    """LightningModule with a network, an optimizer factory and a scheduler factory.

    Checkpoints contain `kind`, `config` (the resolved model node, from which the network can be rebuilt) and `data`
    (the identity of the data set) as plain containers, so that they load with `weights_only=True`.

    Args:
        net: network to train.
        optimizer: parameter groups -> optimizer.
        scheduler: optimizer -> scheduler, updated at every step; None: constant learning rate.
        decay_everything: apply weight decay to norms, biases and embeddings as well, like the official code.
        freeze: parts of the network, such as `encoder` or `transformer.layers.0`, that are not trained: their weights
            and their codebooks stay as they are.
        adapter: options of `im2wav.adapter.insert_adapter`, to train an adapter only; None: no adapter.

    Attributes:
        config: the resolved model node; set by the code that builds the module from a configuration.
        seed: seed of the run; set likewise.
        base: name of the model that the training began with, for the model card; None for none.
        resumed_config: the model node of the checkpoint that the run resumes from; None for a new run.
        gradient_norm: Euclidean norm of all gradients (of all shards) of the last step, before clipping: a scalar.
        last_loss: training loss of the last batch, a scalar on the device.
    """

    kind: ClassVar[str]

    def __init__(
        self,
        net: nn.Module,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        decay_everything: bool = False,
        freeze: Sequence[str] = (),
        adapter: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.net = net
        self.frozen = find_parts(net, freeze)
        for part in self.frozen:
            part.requires_grad_(False).eval()
        self.config: Mapping[str, Any] = {}
        self.base: str | None = None
        self.decay_everything, self.adapter = decay_everything, adapter
        self.seed = 0
        self.resumed_config: Mapping[str, Any] | None = None
        self.gradient_norm: Tensor | None = None
        self.last_loss: Tensor | None = None
        self._optimizer, self._scheduler = optimizer, scheduler

    def train(self, mode: bool = True) -> "NetModule":
        """Train mode, in which frozen parts stay in eval mode."""
        super().train(mode)
        for part in self.frozen:
            part.eval()
        return self

    def regions(self) -> list[nn.Module]:
        """Submodules that are compiled and sharded individually."""
        raise NotImplementedError

    def item_flops(self, batch: Any) -> int:
        """FLOPs of a training step over one window of the batch."""
        raise NotImplementedError

    def evaluation_step(self, stage: str, batch: Any) -> None:
        """Log the metrics of one batch under `stage`."""
        raise NotImplementedError

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log `valid/*`."""
        self.evaluation_step("valid", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Log `test/*`."""
        self.evaluation_step("test", batch)

    def configure_model(self) -> None:
        """Shard the network if the strategy is model parallel (trainer=fsdp)."""
        if self._trainer is None or not isinstance(self.trainer.strategy, ModelParallelStrategy):
            return
        mesh = self.device_mesh["data_parallel"]  # type: ignore[index]
        self.shard(mesh, mixed=self.trainer.precision == "bf16-mixed")

    def shard(self, mesh: DeviceMesh, mixed: bool = False) -> None:
        """Shard the network over a mesh, see `shard_modules`."""
        shard_modules([*self.regions(), self.net], mesh, mixed)

    def configure_optimizers(self) -> Any:
        """Build the optimizer and its scheduler."""
        optimizer = self._optimizer(parameter_groups(self, self.decay_everything))
        if self._scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self._scheduler(optimizer), "interval": "step"}}

    def on_train_start(self) -> None:
        """Train a resumed run with the optimizer settings of this configuration, not with those of its checkpoint."""
        if self.resumed_config is None:
            return
        made, (optimizer,) = self.configure_optimizers(), self.trainer.optimizers
        new_optimizer = made if isinstance(made, Optimizer) else made["optimizer"]
        schedules = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        new_schedule = None if isinstance(made, Optimizer) else made["lr_scheduler"]["scheduler"]
        use_settings(optimizer, schedules[0] if schedules else None, new_optimizer, new_schedule)
        if changes := changed_settings(self.resumed_config, self.config):
            text = ", ".join(changes)
            if schedules and not isinstance(schedules[0], LambdaLR):
                text += f"; the rates of {type(schedules[0]).__name__} are those of the checkpoint"
            log.info("from step %d on with other settings: %s", self.trainer.global_step, text)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Run one optimizer step; after the backward pass, unscale the gradients (fp16) and measure their norm.

        Lightning lets fused optimizers unscale the gradients themselves and therefore does not clip them (Lightning
        #21435). Calling `GradScaler.unscale_` before the step works for them as well: callbacks and clipping then see
        unscaled gradients for every optimizer.
        """
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        plain = optimizer.optimizer  # without Lightning's wrapper
        unscales_itself = getattr(plain, "_step_supports_amp_scaling", False)

        def closure() -> Any:
            result = optimizer_closure()
            if scaler is not None and unscales_itself:
                scaler.unscale_(plain)
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            self.gradient_norm = torch.nn.utils.get_total_norm(gradients)
            return result

        super().optimizer_step(epoch, batch_idx, optimizer, closure)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients by value, or by the norm measured after the backward pass without synchronisation."""
        if not gradient_clip_val:
            return
        if gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(self.parameters(), gradient_clip_val)
        elif self.gradient_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters(), gradient_clip_val, self.gradient_norm)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the random number generators from the seed, step, pass and rank.

        Anything between steps (validation, dashboard samples, new workers) then has no effect, and resuming from a
        checkpoint needs no generator state.
        """
        part = batch_idx % self.trainer.accumulate_grad_batches
        torch.manual_seed(item_seed(self.seed, "step", self.global_step, part, self.global_rank))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add `kind`, `config`, `data`, and facts for the model card."""
        checkpoint["kind"], checkpoint["training"] = self.kind, {"base": self.base}
        checkpoint["config"] = dict(self.config)
        datamodule = getattr(self._trainer, "datamodule", None)
        if datamodule is not None:
            checkpoint["data"] = dict(datamodule.identity())
            checkpoint["training"] |= {"pairs": len(datamodule.windows["train"].pairs)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore `base`, unless the run has one."""
        self.base = self.base or checkpoint.get("training", {}).get("base")

    def log_parts(self, stage: str, parts: Mapping[str, Tensor], batch_size: int, **options: Any) -> None:
        """Log each value under `stage/`, averaged over all processes and, in validation, over the epoch."""
        if stage == "train":
            self.last_loss = parts.get("loss", self.last_loss)
            if self.trainer.world_size > 1:  # one all-reduce for all values
                values = torch.stack([value.detach().float() for value in parts.values()])
                dist.all_reduce(values)
                parts = dict(zip(parts, values / self.trainer.world_size, strict=True))
        options |= {"batch_size": batch_size, "sync_dist": stage != "train"}
        self.log_dict({f"{stage}/{name}": value for name, value in parts.items()}, **options)
