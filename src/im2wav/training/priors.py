"""Training of the priors."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from im2wav.data.windows import Batch
from im2wav.decoding.sampler import item_seed
from im2wav.prior import Conditions, Prior, Timing
from im2wav.training.flops import forward_flops, prior_flops
from im2wav.training.module import NetModule, as_written


class PriorModule(NetModule):
    """Trains a `Prior` on the codes of one level, in bits per code.

    Args:
        net: the prior.
        optimizer, scheduler: factories.
        condition_dropout: the share of items whose picture is withheld in training; guidance needs some.
        options: of `NetModule`.

    Raises:
        ValueError: pictures are to be withheld from a net that has no null embedding, or the reverse.
    """

    level: ClassVar[str]
    levels: ClassVar[tuple[str, ...]]  # whose codes it reads
    net: Prior

    def __init__(
        self,
        net: Prior,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        condition_dropout: float = 0.0,
        **options: Any,
    ):
        super().__init__(net, optimizer, scheduler, **options)
        if not 0 <= condition_dropout <= 1 or bool(condition_dropout) != net.can_be_guided:
            raise ValueError(
                f"condition_dropout={condition_dropout} with net.conditioning.guidance={net.can_be_guided}: expected a "
                "share above 0 (0.5 in Im2Wav) with guidance=true, or 0 with guidance=false"
            )
        self.condition_dropout = condition_dropout
        self.codec_sha256: str | None = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the hash of the codec whose codes this prior speaks."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["codec_sha256"] = self.codec_sha256

    def conditions(self, batch: Batch) -> Conditions:
        """What the prior is told of a batch."""
        return Conditions(batch.clip, Timing(**batch.timing))

    def codes(self, batch: Batch, level: str) -> Tensor:
        """Codes of a level.

        Raises:
            ValueError: the batch carries none.
        """
        if batch.codes is None:
            raise ValueError(
                "the batch carries no codes: set `codec=path/to/vqvae.ckpt`, which the data module applies"
            )
        return batch.codes[level]

    def regions(self) -> list[nn.Module]:
        """The layers of the transformer."""
        return list(self.net.transformer.layers)

    def item_flops(self, batch: Batch) -> int:
        """Operations of one forward pass over one window of the batch."""
        first = torch.arange(1, device=batch.wav.device)
        conditions, codes = self.conditions(batch).take(first), self.codes(batch, self.level)[:1]
        return forward_flops(self.net, lambda: self.net(codes, conditions)) + prior_flops(self.net)

    def dropped(self, ids: Sequence[str]) -> Tensor:
        """Condition dropout at this step: [B] booleans, true where the item's image is dropped.

        Each item's draw depends on the seed, the step and the item alone, so that it is the same on one device and on
        eight, and in a run that was resumed.
        """
        draws = [item_seed(self.seed, self.global_step, name) / 2**63 < self.condition_dropout for name in ids]
        return torch.tensor(draws)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Draw the condition dropout of a training batch; it goes to the device with the batch, in pinned memory."""
        if not self.condition_dropout or not self.trainer.training:
            return batch
        dropped = self.dropped(batch.id)
        return batch._replace(dropped=dropped.pin_memory() if self.device.type == "cuda" else dropped)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Bits per code, with condition dropout."""
        conditions, codes = self.conditions(batch), self.codes(batch, self.level)
        if batch.dropped is not None:
            conditions = replace(conditions, null=batch.dropped)
        loss = self.net.bits(codes, conditions)
        self.log_parts("train", {"loss": loss.detach()}, len(batch.wav), prog_bar=True)
        return loss

    def evaluation_step(self, stage: str, batch: Batch) -> None:
        """Log bits per code with the right conditions, with those of another item, and with no picture."""
        conditions, codes = self.conditions(batch), self.codes(batch, self.level)
        with as_written(self.net):
            parts = {"loss": self.net.bits(codes, conditions)}
            if len(batch.wav) > 1:
                neighbours = torch.arange(len(batch.wav), device=batch.wav.device).roll(1)
                parts["bits_shuffled"] = self.net.bits(codes, conditions.take(neighbours))
            if self.net.can_be_guided:
                parts["bits_null"] = self.net.bits(codes, conditions.null_like())
        self.log_parts(stage, parts, len(batch.wav), prog_bar=True)


class LowPrior(PriorModule):
    """The prior over coarse codes: reads the picture at each position, and the time."""

    kind, level, levels = "low_prior", "low", ("low",)


class UpPrior(PriorModule):
    """The prior over fine codes: reads the coarse codes, and the picture as the start of the sequence."""

    kind, level, levels = "up_prior", "up", ("up", "low")

    def conditions(self, batch: Batch) -> Conditions:
        """As for any prior, and the coarse codes."""
        return replace(super().conditions(batch), codes_low=self.codes(batch, "low"))
