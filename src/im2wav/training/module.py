"""What the three LightningModules share: optimiser, schedule, and what a checkpoint says of itself."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from im2wav.decoding.sampler import item_seed
from im2wav.training.optimizer import parameter_groups
from im2wav.training.sharding import shard


@contextmanager
def as_written(net: nn.Module) -> Iterator[None]:
    """The net in eval mode and not compiled, for a while; afterwards as it was.

    Compiled code serves the training step alone. Other batch sizes, or no gradients, would be compiled each anew, and
    after 8 variants (torch._dynamo.config.recompile_limit) PyTorch runs the others, the training step's among them,
    uncompiled for the rest of the run.
    """
    training = net.training
    compiled = {part: part._compiled_call_impl for part in net.modules()}
    for part in compiled:
        part._compiled_call_impl = None
    net.eval()
    try:
        yield
    finally:
        net.train(training)
        for part, call in compiled.items():
            part._compiled_call_impl = call


def gradient_norm(module: nn.Module) -> Tensor:
    """Euclidean norm of all gradients, over all shards where they are sharded: a scalar."""
    return torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])


class NetModule(pl.LightningModule):
    """A net, an optimiser factory and a schedule factory.

    Checkpoints carry, as plain containers, `kind`, `config` (the resolved model node, from which the net can be built
    again) and `data` (the identity of the data set), so that they load with `weights_only=True`.

    Args:
        net: what is trained.
        optimizer: groups of parameters -> optimiser.
        scheduler: optimiser -> schedule, stepped at each update; None for a constant rate.
        decay_everything: apply weight decay also to norms, biases and embeddings, as the official code does.

    Attributes:
        config: the resolved model node; set by whoever builds the module from a configuration.
        seed: of the run; likewise.
        gradient_norm: Euclidean norm of all gradients of the last step, before clipping: a scalar.
    """

    kind: ClassVar[str]

    def __init__(
        self,
        net: nn.Module,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        decay_everything: bool = False,
    ):
        super().__init__()
        self.net = net
        self.config: Mapping[str, Any] = {}
        self.decay_everything = decay_everything
        self.seed = 0
        self.gradient_norm: Tensor | None = None
        self._optimizer, self._scheduler = optimizer, scheduler

    def regions(self) -> list[nn.Module]:
        """The repeated parts of the net: what is compiled, and what is sharded, one by one."""
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
        """Shard the net over the processes where the strategy asks for it (trainer=fsdp)."""
        if self._trainer is None or not isinstance(self.trainer.strategy, ModelParallelStrategy):
            return
        mesh = self.device_mesh["data_parallel"]  # type: ignore[index]
        self.shard(mesh, mixed=self.trainer.precision == "bf16-mixed")

    def shard(self, mesh: DeviceMesh, mixed: bool = False) -> None:
        """Shard the net over a mesh; see `im2wav.training.sharding.shard`."""
        shard([*self.regions(), self.net], mesh, mixed)

    def configure_optimizers(self) -> Any:
        """Build the optimiser and its schedule."""
        optimizer = self._optimizer(parameter_groups(self, self.decay_everything))
        if self._scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self._scheduler(optimizer), "interval": "step"}}

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Make one optimizer step; right after backward, unscale the gradients (fp16) and measure their norm.

        Lightning leaves the unscaling to fused optimizers themselves and therefore refuses to clip their gradients
        (Lightning #21435). `GradScaler.unscale_` before the step is allowed for them too: callbacks and clipping then
        see the true gradients, whatever the optimizer.
        """
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        plain = optimizer.optimizer  # without Lightning's wrapper
        unscales_itself = getattr(plain, "_step_supports_amp_scaling", False)

        def closure() -> Any:
            result = optimizer_closure()
            if scaler is not None and unscales_itself:
                scaler.unscale_(plain)
            self.gradient_norm = gradient_norm(self)
            return result

        super().optimizer_step(epoch, batch_idx, optimizer, closure)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients, by the norm that was measured after backward or by value; nothing waits for a GPU."""
        if not gradient_clip_val:
            return
        if gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(self.parameters(), gradient_clip_val)
        elif self.gradient_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters(), gradient_clip_val, self.gradient_norm)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Begin the step with random numbers of its own, from the seed, the step, the pass and the device alone.

        What lies between two steps (validation, samples for the dashboard, new workers) then changes nothing, and a
        run that goes on from a checkpoint needs no state of any generator.
        """
        part = batch_idx % self.trainer.accumulate_grad_batches
        torch.manual_seed(item_seed(self.seed, "step", self.global_step, part, self.global_rank))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add `kind`, `config` and `data`."""
        checkpoint["kind"] = self.kind
        checkpoint["config"] = dict(self.config)
        if self._trainer is not None and self.trainer.datamodule is not None:  # type: ignore[attr-defined]
            checkpoint["data"] = dict(self.trainer.datamodule.identity())  # type: ignore[attr-defined]

    def log_parts(self, stage: str, parts: Mapping[str, Tensor], batch_size: int, **options: Any) -> None:
        """Log each part under `stage/`: the mean over all processes, and in validation over the epoch."""
        if stage == "train" and self.trainer.world_size > 1:  # all of them in one go
            values = torch.stack([value.detach().float() for value in parts.values()])
            dist.all_reduce(values)
            parts = dict(zip(parts, values / self.trainer.world_size, strict=True))
        options |= {"batch_size": batch_size, "sync_dist": stage != "train"}
        self.log_dict({f"{stage}/{name}": value for name, value in parts.items()}, **options)
