"""LightningModule of the codec."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from im2wav.codec import AudioCodec, CodecOutput
from im2wav.codec.losses import Bandwidth, CodecLoss, spectral_convergence
from im2wav.data.windows import Batch
from im2wav.training.module import NetModule, eager_eval_mode, training_flops


class VQVAE(NetModule):
    """Train an `AudioCodec`. Losses are normalised by statistics of the training audio (`Bandwidth`).

    Args:
        net: codec to train.
        loss: the loss function.
        optimizer, scheduler, options: see `NetModule`.
        bandwidth: l1, l2 and spec; None: measure them on the training audio.
    """

    kind = "vqvae"
    net: AudioCodec

    def __init__(
        self,
        net: AudioCodec,
        loss: CodecLoss,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        bandwidth: Mapping[str, float] | None = None,
        **options: Any,
    ):
        super().__init__(net, optimizer, scheduler, **options)
        self.objective = loss
        self.bandwidth: Bandwidth | None = None
        if bandwidth:
            self.set_bandwidth(bandwidth)

    def set_bandwidth(self, values: Mapping[str, float]) -> None:
        """Set the loss normalisation l1, l2 and spec."""
        self.bandwidth = Bandwidth(**values)

    def setup(self, stage: str) -> None:
        """Measure the training audio unless a checkpoint or the configuration sets the bandwidth."""
        if self.bandwidth is None:
            self.bandwidth = Bandwidth.measure(self.trainer.datamodule.training_windows())  # type: ignore[attr-defined]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add `bandwidth`, so that a resumed run uses the same losses."""
        super().on_save_checkpoint(checkpoint)
        if self.bandwidth is not None:
            checkpoint["bandwidth"] = self.bandwidth.to_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore `bandwidth`."""
        if "bandwidth" in checkpoint:
            self.set_bandwidth(checkpoint["bandwidth"])

    def regions(self) -> list[nn.Module]:
        """Return the encoders and decoders; codebooks are excluded because they communicate with other processes."""
        return [*self.net.encoders.values(), *self.net.decoders.values()]

    def item_flops(self, batch: Batch) -> int:
        """FLOPs of a training step over one window of the batch; the nearest-code search has no backward pass."""
        positions = sum(batch.wav.shape[-1] // hop for hop in self.net.hop_lengths.values())
        search = 2 * positions * self.net.codebook_size * self.net.code_dim
        return training_flops(self.net, lambda: self.net(batch.wav[:1])) - 2 * search

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor], CodecOutput]:
        """Return the total loss, its terms and the codec output."""
        output = self.net(batch.wav)
        total, parts = self.objective(batch.wav, output, self.bandwidth)  # type: ignore[arg-type]
        return total, parts, output

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss; the forward pass updates the codebooks."""
        total, parts, output = self.loss(batch)
        metrics = {f"{name}/{level}": value for level, m in output.metrics.items() for name, value in m.items()}
        self.log_parts("train", {"loss": total.detach()}, len(batch.wav))
        self.log_parts("train", parts | metrics, len(batch.wav))
        return total

    def evaluation_step(self, stage: str, batch: Batch) -> None:
        """Log losses and spectral convergence on whole windows."""
        with eager_eval_mode(self.net):
            total, parts, output = self.loss(batch)
        convergence = {
            f"spectral_convergence/{level}": spectral_convergence(batch.wav, wav.float()).mean()
            for level, wav in output.wav.items()
        }
        self.log_parts(stage, {"loss": total}, len(batch.wav), prog_bar=True)
        self.log_parts(stage, parts | convergence, len(batch.wav))
