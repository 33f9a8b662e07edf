"""Codebook trained by exponential moving averages (EMA), with random restarts of dead codes.

Source: van den Oord et al. 2017 (VQ-VAE), with the restarts of Jukebox (Dhariwal et al., 2020).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

STATISTICS = ("code_sum", "code_usage")  # buffers of training only, which small files leave out
SHOWN = ("entropy", "codes_alive")  # metrics that each codebook of a residual quantiser logs


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


@dataclass(frozen=True)
class Quantised:
    """Output of a codebook for latents [B, C, T]."""

    codes: Tensor  # [B, T], int64, the nearest code of each latent
    latents: Tensor  # [B, C, T], the code vectors; straight-through gradient in training, detached otherwise
    commit_loss: Tensor  # mean squared error between latents and code vectors, with gradient for the encoder
    metrics: dict[str, Tensor]  # scalars without gradient


def nearest_rows(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the nearest of rows [size, dim] to each of x [M, dim], and its squared distance: ([M], [M])."""
    columns = rows.t()
    distance = x.square().sum(1, keepdim=True) - 2 * (x @ columns) + columns.square().sum(0, keepdim=True)
    least, nearest = distance.min(1)
    return nearest, least


class Codebook(nn.Module):
    """`size` code vectors of dimension `dim`, stored in buffers and updated by the EMA of the latents assigned to them.

    Buffers: `codebook` [size, dim]; `code_sum` [size, dim] and `code_usage` [size], EMAs over training steps of
    the sum and of the number of latents assigned to each code; `initialised`, a flag.

    Args:
        size: number of codes.
        dim: dimension of a code vector.
        decay: EMA decay per training step.
        restart_threshold: codes whose `code_usage` (latents per step) is lower are replaced by random latents.
        reset_usage_on_restart: set the usage of a restarted code to `restart_threshold`, so that latents can be
            assigned to it before the next restart. False is the official behaviour: the usage stays low and the code
            is replaced again at every step.
    """

    codebook: Tensor
    code_sum: Tensor
    code_usage: Tensor
    initialised: Tensor

    def __init__(
        self,
        size: int,
        dim: int,
        decay: float = 0.99,
        restart_threshold: float = 1.0,
        reset_usage_on_restart: bool = True,
    ):
        super().__init__()
        self.size, self.dim, self.decay = size, dim, decay
        self.restart_threshold, self.reset_usage_on_restart = restart_threshold, reset_usage_on_restart
        self.register_buffer("codebook", torch.zeros(size, dim))
        self.register_buffer("code_sum", torch.zeros(size, dim))
        self.register_buffer("code_usage", torch.zeros(size))
        self.register_buffer("initialised", torch.tensor(False))
        self._seen_initialised = False  # caches `initialised`, because reading it would synchronise with the GPU

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Codebook":
        """Keep the buffers in fp32 if the module is cast to half precision, where EMA updates would round to zero."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in self._buffers.items():
            if buffer is not None and buffer.is_floating_point() and buffer.dtype.itemsize < 4:
                self._buffers[name] = before[name].to(buffer.device)  # type: ignore[union-attr]
        return self

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        self._seen_initialised = False
        rows = state.get(prefix + "codebook")
        if rows is not None and not any(prefix + name in state for name in STATISTICS):  # a small file
            state[prefix + "code_sum"], state[prefix + "code_usage"] = rows.clone(), rows.new_ones(len(rows))
        super()._load_from_state_dict(state, prefix, *args)

    def nearest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Find the nearest code of each latent x [M, dim]: (codes [M], squared distances [M])."""
        return nearest_rows(x, self.codebook)

    def encode(self, latents: Tensor) -> Tensor:
        """Return the codes [B, T] nearest to latents [B, dim, T]."""
        codes, _ = self.nearest(self._flatten(latents))
        return codes.view(latents.shape[0], -1)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the code vectors [B, dim, T] of codes [B, T]."""
        return F.embedding(codes, self.codebook).transpose(1, 2)

    def forward(self, latents: Tensor) -> Quantised:
        """Quantise latents [B, dim, T]; in training mode, update the codebook after the codes are assigned.

        Computes in fp32 and returns latents in the input dtype.
        """
        dtype = latents.dtype
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.float()
            flat = self._flatten(latents)
            if self.training and not self._seen_initialised:
                self._seen_initialised = bool(self.initialised)
                if not self._seen_initialised:
                    self._initialise(flat.detach())
            codes, distances = self.nearest(flat.detach())
            quantised = self.decode(codes.view(latents.shape[0], -1))
            commit_loss = F.mse_loss(latents, quantised.detach())
            metrics = {"fit": distances.mean(), "latent_norm": self._deviation(flat.detach())}
            if self.training:
                metrics |= self._update(flat.detach(), codes)
                quantised = latents + (quantised - latents).detach()
        return Quantised(codes.view(latents.shape[0], -1), quantised.to(dtype), commit_loss, metrics)

    @staticmethod
    def _flatten(latents: Tensor) -> Tensor:
        return latents.transpose(1, 2).reshape(-1, latents.shape[1])

    @staticmethod
    def _deviation(x: Tensor) -> Tensor:
        return (x - x.mean()).norm() / x.numel() ** 0.5

    def random_rows(self, x: Tensor) -> Tensor:
        """Sample `size` of the latents x [M, dim] of all processes, the same on every process: [size, dim].

        The sample equals that of a single process with the concatenated latents of all ranks.
        """
        rank, world = (dist.get_rank(), dist.get_world_size()) if _distributed() else (0, 1)
        total = x.shape[0] * world
        repeats = -(-self.size // total)  # too few latents: repeat them and add a little noise
        spread = 0.01 / self.dim**0.5 if repeats > 1 else 0.0
        noise = spread * torch.randn_like(self.codebook) if spread else torch.zeros_like(self.codebook)
        drawn = torch.randperm(total * repeats, device=x.device)[: self.size]
        if world == 1:
            return x[drawn % total] + noise
        dist.broadcast(drawn, 0)
        dist.broadcast(noise, 0)
        mine = (drawn % total) - rank * x.shape[0]
        held = (mine >= 0) & (mine < x.shape[0])
        rows = torch.where(held[:, None], x[mine.clamp(0, x.shape[0] - 1)], 0.0)
        dist.all_reduce(rows)  # each row is on one rank; the others add zeros
        return rows + noise

    @torch.no_grad()
    def _initialise(self, x: Tensor) -> None:
        self.set_codes(self.random_rows(x), self.code_usage.new_ones(self.size))

    @torch.no_grad()
    def set_codes(self, rows: Tensor, usage: Tensor) -> None:
        """Set the code vectors [size, dim] and their usage [size], latents per step."""
        self.codebook.copy_(rows)
        self.code_sum.copy_(rows * usage[:, None])
        self.code_usage.copy_(usage)
        self.initialised.copy_(rows.isfinite().all())
        self._seen_initialised = False

    @torch.no_grad()
    def _update(self, x: Tensor, codes: Tensor) -> dict[str, Tensor]:
        # `bincount` would synchronise with the GPU; sums of ones in fp32 are exact up to 2^24
        counts = x.new_zeros(self.size).index_add_(0, codes, x.new_ones(len(codes)))
        sums = torch.zeros_like(self.code_sum).index_add_(0, codes, x)
        if _distributed():
            dist.all_reduce(counts)
            dist.all_reduce(sums)
        before = self.codebook.clone(), self.code_sum.clone(), self.code_usage.clone()
        self.code_sum.lerp_(sums, 1 - self.decay)
        self.code_usage.lerp_(counts, 1 - self.decay)
        rows = self.random_rows(x)
        alive = self.code_usage >= self.restart_threshold
        mean = self.code_sum / self.code_usage.clamp_min(torch.finfo(x.dtype).tiny)[:, None]
        self.codebook.copy_(torch.where(alive[:, None], mean, rows))
        if self.reset_usage_on_restart:
            usage = torch.where(alive, self.code_usage, self.code_usage.clamp_min(self.restart_threshold))
            self.code_sum.copy_(torch.where(alive[:, None], self.code_sum, rows * usage[:, None]))
            self.code_usage.copy_(usage)
        is_finite = sums.isfinite().all()  # a NaN would stay in the EMA forever; the result is equal on all processes
        for buffer, old in zip((self.codebook, self.code_sum, self.code_usage), before, strict=True):
            buffer.copy_(torch.where(is_finite, buffer, old))
        probabilities = counts / counts.sum()
        return {
            "entropy": -(probabilities * (probabilities + 1e-8).log()).sum(),
            "codes_in_batch": (counts >= self.restart_threshold).sum().to(x),
            "codes_alive": alive.sum().to(x),
            "codes_restarted": (~alive).sum().to(x),
            "codebook_step": (self.codebook - before[0]).norm() / self.codebook.numel() ** 0.5,
        }


def k_means(x: Tensor, size: int, rounds: int = 12) -> tuple[Tensor, Tensor]:
    """Centres [size, dim] of the points x [M, dim], and the number of points of each; deterministic.

    Begins with evenly spaced points. A centre without points moves to one of the points that are farthest from theirs.
    """
    centres = x[torch.linspace(0, len(x) - 1, size, device=x.device).round().long()].clone()
    counts = x.new_zeros(size)
    for _ in range(rounds):
        nearest, distance = nearest_rows(x, centres)
        counts = x.new_zeros(size).index_add_(0, nearest, x.new_ones(len(x)))
        sums = torch.zeros_like(centres).index_add_(0, nearest, x)
        empty = counts == 0
        centres = torch.where(empty[:, None], centres, sums / counts.clamp_min(1)[:, None])
        farthest = distance.topk(min(int(empty.sum()), len(x))).indices
        centres[empty.nonzero()[: len(farthest), 0]] = x[farthest]
    return centres, counts


class ResidualQuantizer(nn.Module):
    """Codebooks in sequence, each for what the ones before leave of the latents [B, dim, T].

    Args:
        codebooks: number of codebooks, Q.
        size, dim, options: of each `Codebook`.
    """

    def __init__(self, codebooks: int, size: int, dim: int, **options: Any):
        super().__init__()
        self.codebooks = nn.ModuleList(Codebook(size, dim, **options) for _ in range(codebooks))

    def encode(self, latents: Tensor, count: int | None = None) -> Tensor:
        """Codes [B, T, count] of latents [B, dim, T], from the first `count` codebooks; all if None."""
        rest, codes = latents.float(), []
        for book in self.codebooks[:count]:
            codes.append(book.encode(rest))  # type: ignore[operator]
            rest = rest - book.decode(codes[-1])  # type: ignore[operator]
        return torch.stack(codes, -1)

    def decode(self, codes: Tensor) -> Tensor:
        """Latents [B, dim, T] of codes [B, T, count]."""
        parts = [book.decode(c) for book, c in zip(self.codebooks, codes.unbind(-1), strict=False)]  # type: ignore[operator]
        return torch.stack(parts).sum(0)

    def forward(self, latents: Tensor, counts: Tensor) -> Quantised:
        """Quantise latents [B, dim, T] with the first `counts` codebooks, [B] or one for all; update them in training.

        All codebooks learn from all items. Codes are [B, T, Q].
        """
        dtype = latents.dtype
        with torch.autocast(latents.device.type, enabled=False):
            rest, total = latents.float(), torch.zeros_like(latents.float())
            commit: list[Tensor] = []
            codes: list[Tensor] = []
            metrics: dict[str, Tensor] = {}
            for number, book in enumerate(self.codebooks):
                found = book(rest)
                part = found.latents.detach()
                used = (counts > number).expand(len(latents))[:, None, None]
                codes.append(found.codes)
                commit.append((used * (rest - part).square()).mean())
                total = total + used * part
                rest = rest - part
                metrics |= {f"{name}_{number}": value for name, value in found.metrics.items() if name in SHOWN}
            metrics["fit"] = rest.detach().square().sum(1).mean()
            quantised = latents.float() + (total - latents.float()).detach() if self.training else total
        return Quantised(torch.stack(codes, -1), quantised.to(dtype), torch.stack(commit).sum(), metrics)

    @torch.no_grad()
    def initialise_from(self, latents: Tensor) -> None:
        """Set the codebooks to k-means centres of latents [M, dim] and of what they leave."""
        for book in self.codebooks:
            centres, counts = k_means(latents, book.size)  # type: ignore[arg-type]
            book.set_codes(centres, counts / counts.mean())  # type: ignore[operator]
            latents = latents - centres[book.nearest(latents)[0]]  # type: ignore[operator]
