"""LightningModule of the codec."""

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from im2wav.codec import LEVELS, Codec, CodecOutput
from im2wav.codec.discriminator import Discriminator
from im2wav.codec.losses import Bandwidth, CodecLoss, SpectralLoss, spectral_convergence
from im2wav.data.windows import Batch
from im2wav.decoding.sampler import item_seed
from im2wav.training.module import NetModule, eager_eval_mode, training_flops


class VQVAE(NetModule):
    """Train a codec. Losses are normalised by statistics of the training audio (`Bandwidth`).

    Args:
        net: codec to train.
        loss: the loss function.
        optimizer, scheduler, options: see `NetModule`.
        bandwidth: l1, l2 and spec; None: measure them on the training audio.
        discriminator: judges the reconstructions; trained in the same steps by the same optimizer, because each of the
            two losses has gradients for one of the two networks only. None: no adversarial training.
        excerpt: samples of a window that it judges, at a random position; null: all.
    """

    kind = "vqvae"
    net: Codec

    def __init__(
        self,
        net: Codec,
        loss: CodecLoss | SpectralLoss,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        bandwidth: Mapping[str, float] | None = None,
        discriminator: Discriminator | None = None,
        excerpt: int | None = None,
        **options: Any,
    ):
        super().__init__(net, optimizer, scheduler, **options)
        self.objective, self.discriminator, self.excerpt = loss, discriminator, excerpt
        self.bandwidth: Bandwidth | None = None
        self.codes_sha256: str | None = None  # of the codec that the training began with
        if bandwidth:
            self.set_bandwidth(bandwidth)

    def set_bandwidth(self, values: Mapping[str, float]) -> None:
        """Set the loss normalisation l1, l2 and spec."""
        self.bandwidth = Bandwidth(**values)

    def setup(self, stage: str) -> None:
        """Measure the training audio, and initialise the network from it, unless a checkpoint is loaded."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.bandwidth is None:
            self.bandwidth = Bandwidth.measure(data.training_windows())
        if stage == "fit" and not self._has_weights:
            self.net.initialise_from(data.training_windows())

    @property
    def _has_weights(self) -> bool:
        """Whether the weights are those of a checkpoint that is loaded later, or of a file that was loaded before."""
        books = self.net.named_codebooks().values()
        return self.resumed_config is not None or all(bool(book.initialised) for book in books)

    @property
    def keeps_codes(self) -> bool:
        """Whether only decoders are trained, so that the codes of audio stay the same."""
        frozen = {part for parts in self.frozen for part in parts.modules()}
        return all(
            part in frozen
            for name, part in self.net.named_modules()
            if not name.startswith("decoder") and (any(True for _ in part.parameters(False)) or part._buffers)
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add `bandwidth`, so that a resumed run uses the same losses, and the codec whose codes are the same."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["codes_sha256"] = self.codes_sha256 if self.keeps_codes else None
        if self.bandwidth is not None:
            checkpoint["bandwidth"] = self.bandwidth.to_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore both."""
        super().on_load_checkpoint(checkpoint)
        self.codes_sha256 = checkpoint.get("codes_sha256")
        if "bandwidth" in checkpoint:
            self.set_bandwidth(checkpoint["bandwidth"])

    def regions(self) -> list[nn.Module]:
        """Return the encoders and decoders; codebooks are excluded because they communicate with other processes."""
        return self.net.regions()

    def item_flops(self, batch: Batch) -> int:
        """FLOPs of a training step over one window of the batch; the nearest-code search has no backward pass."""
        hops, shapes = self.net.hop_lengths, self.net.code_shapes
        positions = sum(batch.wav.shape[-1] // hops[level] * prod(shapes[level]) for level in LEVELS)
        search = 2 * positions * self.net.codebook_size * self.net.code_dim
        return training_flops(self.net, lambda: self.net(batch.wav[:1])) - 2 * search

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor], CodecOutput]:
        """Return the total loss, its terms and the codec output."""
        if self.training:
            seeds = [item_seed(self.seed, self.global_step, "codebooks", name) for name in batch.id]
            output = self.net.training_output(batch.wav, seeds)
        else:
            output = self.net(batch.wav)
        total, parts = self.objective(batch.wav, output, self.bandwidth)  # type: ignore[arg-type]
        return total, parts, output

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss; the forward pass updates the codebooks."""
        total, parts, output = self.loss(batch)
        if self.discriminator is not None:
            adversarial, judges = self._judge(batch.wav, output.wav["up"].float())
            total, parts = total + adversarial, parts | judges
        metrics = {f"{name}/{level}": value for level, m in output.metrics.items() for name, value in m.items()}
        self.log_parts("train", {"loss": total.detach()}, len(batch.wav))
        self.log_parts("train", parts | metrics, len(batch.wav))
        return total

    def _judge(self, real: Tensor, fake: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses of codec and discriminator on an excerpt of audio and reconstruction [B, 1, N], and their terms."""
        assert self.discriminator is not None
        length = min(self.excerpt or real.shape[-1], real.shape[-1])
        start = item_seed(self.seed, self.global_step, "excerpt") % (real.shape[-1] - length + 1)
        real, fake = (x[..., start : start + length] for x in (real, fake))
        codec, own, parts = self.discriminator.losses(real, fake)
        return own + (codec if self.global_step >= self.discriminator.start_step else 0 * codec), parts

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
