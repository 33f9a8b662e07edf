"""LightningModules of the priors."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from im2wav.data.pairs import CLASSES_FILE
from im2wav.data.windows import Batch
from im2wav.decoding.sampler import SamplingOptions, item_seed
from im2wav.prior import CodePrior, Conditions, Timing
from im2wav.training.module import NetModule, eager_eval_mode, training_flops

log = logging.getLogger(__name__)


class PriorModule(NetModule):
    """Train a `Prior` on the codes of one level; the loss is bits per code.

    Args:
        net: prior to train.
        optimizer, scheduler, options: see `NetModule`.
        condition_dropout: probability of replacing the image embedding by the null embedding; > 0 for guidance.
        early_positions, early_weight: weight of the loss at the first positions of a window, before which there are
            few codes, so that the image matters most; all others have weight 1.
        code_errors: fraction of the known codes that are replaced by random ones in training, so that the prior learns
            to go on after errors of its own.
        sampling: values of `SamplingOptions` for generation with this prior where none are given; checkpoints keep
            those of the low prior.

    Raises:
        ValueError: condition dropout without a null embedding, or the reverse; an option out of range; or an unknown
            value in `sampling`.
    """

    level: ClassVar[str]
    levels: ClassVar[tuple[str, ...]]  # levels of the codes that it needs
    net: CodePrior

    def __init__(
        self,
        net: CodePrior,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        condition_dropout: float = 0.0,
        early_positions: int = 0,
        early_weight: float = 6.0,
        code_errors: float = 0.0,
        sampling: Mapping[str, Any] | None = None,
        **options: Any,
    ):
        super().__init__(net, optimizer, scheduler, **options)
        SamplingOptions().updated(sampling or {})
        if not 0 <= condition_dropout <= 1 or bool(condition_dropout) != net.can_be_guided:
            raise ValueError(
                f"condition_dropout={condition_dropout} with net.conditioning.guidance={net.can_be_guided}: must be "
                "> 0 and <= 1 (0.5 in Im2Wav) with guidance=true, or 0 with guidance=false"
            )
        if not 0 <= code_errors < 1:
            raise ValueError(f"code_errors={code_errors}: expected 0 or more, and less than 1")
        if early_positions < 0 or early_weight <= 0:
            raise ValueError(
                f"early_positions={early_positions}, early_weight={early_weight}: expected 0 or more, and more than 0"
            )
        self.condition_dropout = condition_dropout
        self.early_positions, self.early_weight, self.code_errors = early_positions, early_weight, code_errors
        self.codec_sha256: str | None = None

    def setup(self, stage: str) -> None:
        """Set the directions of class scores to those of the data, unless they were loaded; warn where those differ.

        Raises:
            ValueError: the data have none, or other classes.
        """
        scores, data = self.net.conditioner.class_scores, self.trainer.datamodule  # type: ignore[attr-defined]
        if scores is None or data is None:
            return
        path = data.folder.root / CLASSES_FILE
        if not scores.directions.any():
            scores.set_directions(**data.folder.class_directions())
        elif path.is_file() and not scores.has_directions(**data.folder.class_directions()):
            log.warning(
                "the loaded weights read labels from images by directions that differ from those of %s, and keep their "
                "own; for those of the data, begin without these weights",
                path,
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the hash of the codec of this prior."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["codec_sha256"] = self.codec_sha256

    def conditions(self, batch: Batch) -> Conditions:
        """Return the conditions of a batch."""
        return Conditions(batch.clip, Timing(**batch.timing))

    def codes(self, batch: Batch, level: str) -> Tensor:
        """Return the codes of a level.

        Raises:
            ValueError: the batch has no codes.
        """
        if batch.codes is None:
            raise ValueError("the batch has no codes: set codec=path/to/vqvae.ckpt")
        return batch.codes[level]

    def regions(self) -> list[nn.Module]:
        """Return the layers of the transformer."""
        return list(self.net.transformer.layers)

    def item_flops(self, batch: Batch) -> int:
        """FLOPs of a training step over one window of the batch."""
        first = torch.arange(1, device=batch.wav.device)
        conditions, codes = self.conditions(batch).take(first), self.codes(batch, self.level)[:1]
        return training_flops(self.net, lambda: self.net.training_bits(codes, conditions, [0]))

    def dropped(self, ids: Sequence[str]) -> Tensor:
        """Condition dropout at this step: [B] booleans, true if the image of the item is dropped.

        It depends on the seed, the step and the item only, and is therefore the same for any number of devices and in
        resumed runs.
        """
        draws = [item_seed(self.seed, self.global_step, name) / 2**63 < self.condition_dropout for name in ids]
        return torch.tensor(draws)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Sample the condition dropout of a training batch, in pinned memory for the transfer to the GPU."""
        if not self.condition_dropout or not self.trainer.training:
            return batch
        dropped = self.dropped(batch.id)
        return batch._replace(dropped=dropped.pin_memory() if self.device.type == "cuda" else dropped)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return bits per code with condition dropout."""
        conditions, codes = self.conditions(batch), self.codes(batch, self.level)
        if batch.dropped is not None:
            conditions = replace(conditions, null=batch.dropped)
        seeds = [item_seed(self.seed, self.global_step, "loss", name) for name in batch.id]
        weights = None
        if self.early_positions:
            weights = torch.ones(codes.shape[1], device=codes.device)
            weights[: self.early_positions] = self.early_weight
        loss = self.net.training_bits(codes, conditions, seeds, weights, self.code_errors)
        self.log_parts("train", {"loss": loss.detach()}, len(batch.wav))
        return loss

    def evaluation_step(self, stage: str, batch: Batch) -> None:
        """Log bits per code with the correct image, with the image of another item, and unconditional."""
        conditions, codes = self.conditions(batch), self.codes(batch, self.level)
        with eager_eval_mode(self.net):
            parts = {"loss": self.net.bits(codes, conditions)}
            if len(batch.wav) > 1:
                shuffled = torch.arange(len(batch.wav), device=batch.wav.device).roll(1)
                parts["bits_shuffled"] = self.net.bits(codes, conditions.take(shuffled))
            if self.net.can_be_guided:
                parts["bits_null"] = self.net.bits(codes, conditions.null_like())
        self.log_parts(stage, parts, len(batch.wav), prog_bar=True)


class LowPrior(PriorModule):
    """Prior over coarse codes, conditioned on the image at each position and on timing."""

    kind, level, levels = "low_prior", "low", ("low",)


class UpPrior(PriorModule):
    """Prior over fine codes, conditioned on the coarse codes and on the image as the start of the sequence."""

    kind, level, levels = "up_prior", "up", ("up", "low")

    def conditions(self, batch: Batch) -> Conditions:
        """Return the conditions of a batch with its coarse codes."""
        return replace(super().conditions(batch), codes_low=self.codes(batch, "low"))
