"""Distances between sets of embeddings, and bootstrap intervals, in float64.

Letters: N, M rows of two sets, D dimension of an embedding, C classes, R resamples. Weights are counts of rows: a
bootstrap resample is a vector of counts, without copies.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

Task = TypeVar("Task")
Result = TypeVar("Result")
AT_ONCE = 8  # maximum number of threads, to bound memory on machines with many cores
BLOCK = 512  # rows of the kernel matrix in memory at once
MEDIAN_ROWS = 5000  # maximum number of rows for the median distance


def map_in_threads(work: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
    """Yield the result of `work` for each task, in order; exceptions are re-raised.

    Uses `torch.get_num_threads()` threads, at most 8. Torch operations are single-threaded until the iterator is
    exhausted, so do not nest or interleave calls: short audio and small matrices do not benefit from intra-op
    parallelism, and the results do not depend on the number of cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the thread count of MKL is global
    pool = ThreadPoolExecutor(min(threads, AT_ONCE), initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from pool.map(work, tasks)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _spread(rows: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean of the weighted rows, and A with at most D rows such that A^T A is their covariance.

    A is the R factor of the QR decomposition of the rows. This is as fast as a Cholesky decomposition of the covariance
    and also works for singular covariances (dead units), without a slow eigendecomposition.
    """
    weights = torch.ones(len(rows), dtype=torch.float64) if weights is None else weights.double()
    rows, weights = rows[weights > 0].double(), weights[weights > 0]  # select first to convert fewer rows
    total = weights.sum()
    if total < 2:
        raise ValueError(f"{len(rows)} audio files: a covariance needs at least two")
    mean = weights @ rows / total
    centred = rows.sub_(mean).mul_((weights / (total - 1)).sqrt()[:, None])
    return mean, centred if len(centred) <= centred.shape[1] else torch.linalg.qr(centred, mode="r").R


def trace_of_root(one: Tensor, other: Tensor) -> Tensor:
    """Tr (S T)^(1/2) of two covariances S = A^T A and T = B^T B, given A [N, D] and B [M, D].

    S T has the eigenvalues of the symmetric matrix (A B^T)(A B^T)^T, so one `eigvalsh` gives the trace: real for any
    rank, and small where there are few rows.
    """
    product = one @ other.T
    if product.shape[0] > product.shape[1]:
        product = product.T
    return torch.linalg.eigvalsh(product @ product.T).clamp_min(0).sqrt().sum()


def frechet_distance(
    rows: Tensor, rows_2: Tensor, weights: Tensor | None = None, weights_2: Tensor | None = None
) -> float:
    """Fréchet distance of two sets of embeddings [N, D] and [M, D], with rows weighted by counts.

    |m - m2|^2 + Tr(S + S2 - 2 (S S2)^(1/2)) of their means and covariances (Heusel et al., 2017).

    Raises:
        ValueError: fewer than two rows.
    """
    (mean, x), (mean_2, y) = _spread(rows, weights), _spread(rows_2, weights_2)
    trace = x.square().sum() + y.square().sum()
    return ((mean - mean_2).square().sum() + trace - 2 * trace_of_root(x, y)).item()


def content_order(rows: Tensor) -> Tensor:
    """Permutation [N] of rows [N, D] that depends on their content and not on their order."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(rows.shape[1], dtype=torch.float64, generator=generator)
    return (rows.double() * direction).sum(1).argsort()


def frechet_infinity(
    rows: Tensor, rows_2: Tensor, seed: int = 0, points: int = 10, repeats: int = 200
) -> tuple[float, float] | None:
    """Fréchet distance at N -> infinity: intercept of a linear fit of subset distances over 1 / N.

    Based on FID_infinity (Chong and Forsyth, 2020). Both sets are subsampled to the same size, without
    replacement, at sizes spread evenly in 1 / N from a fifth of the smaller set to all of it.

    Returns:
        The distance, and its standard deviation over resamples of the fitted points; None if the sets are too small for
        five sizes.
    """
    largest = min(len(rows), len(rows_2))
    smallest = max(largest // 5, 10)
    if largest < smallest + 5:
        return None
    rows, rows_2 = rows[content_order(rows)], rows_2[content_order(rows_2)]
    generator = torch.Generator().manual_seed(seed)
    sizes = [round(1 / x) for x in torch.linspace(1 / largest, 1 / smallest, points, dtype=torch.float64).tolist()]
    picks = [[torch.randperm(len(x), generator=generator)[:size] for x in (rows, rows_2)] for size in sizes]
    distances = map_in_threads(lambda pick: frechet_distance(rows[pick[0]], rows_2[pick[1]]), picks)
    x, y = 1 / torch.tensor(sizes, dtype=torch.float64), torch.tensor(list(distances), dtype=torch.float64)

    def intercept(x: Tensor, y: Tensor) -> Tensor:
        mean_x, mean_y = x.mean(-1, keepdim=True), y.mean(-1, keepdim=True)
        slope = ((x - mean_x) * (y - mean_y)).sum(-1) / (x - mean_x).square().sum(-1).clamp_min(1e-30)
        return mean_y[..., 0] - slope * mean_x[..., 0]

    drawn = torch.randint(points, (repeats, points), generator=generator)
    return intercept(x, y).item(), intercept(x[drawn], y[drawn]).std().item()


def median_distance(rows: Tensor) -> float:
    """Median Euclidean distance between two rows of [N, D]; of at most 5,000 evenly selected rows.

    Raises:
        ValueError: fewer than two rows.
    """
    if len(rows) < 2:
        raise ValueError(f"{len(rows)} audio files: a distance needs at least two")
    rows = rows[content_order(rows)].double()
    rows = rows[:: -(-len(rows) // MEDIAN_ROWS)]
    return torch.pdist(rows).median().item()


def kernel_distance(
    rows: Tensor,
    rows_2: Tensor,
    bandwidth: float | None = None,
    weights: Tensor | None = None,
    weights_2: Tensor | None = None,
) -> Tensor:
    """Kernel audio distance: 100 times the unbiased squared MMD of two sets under a Gaussian kernel.

    Source: Chung et al., 2025 (kadtk). It is unbiased for any number of samples and can be negative.

    Args:
        rows, rows_2: embeddings [N, D] of the evaluated set and [M, D] of the reference.
        bandwidth: kernel bandwidth; None: the median distance within the reference.
        weights, weights_2: counts [R, N] and [R, M] of R resamples. A row is never compared with its own copies.

    Returns:
        [R] distances; R = 1 without weights.
    """
    sigma = bandwidth or median_distance(rows_2)
    sigma = sigma or 1.0  # all references are equal
    x, y = rows.double(), rows_2.double()
    u = torch.ones(1, len(x), dtype=torch.float64) if weights is None else weights.double()
    v = torch.ones(1, len(y), dtype=torch.float64) if weights_2 is None else weights_2.double()

    def form(a: Tensor, p: Tensor, b: Tensor, q: Tensor, itself: bool = False) -> Tensor:
        """sum_ij p_i k(a_i, b_j) q_j for each resample; with `itself`, pairs of the same set are computed once."""

        def block(i: int) -> Tensor:
            first = i if itself else 0
            kernel = torch.cdist(a[i : i + BLOCK], b[first:]).square_().mul_(-1 / (2 * sigma**2)).exp_()
            if itself:
                kernel[:, BLOCK:] *= 2
            return (p[:, i : i + BLOCK] @ kernel).mul_(q[:, first:]).sum(1)

        return sum(map_in_threads(block, range(0, len(a), BLOCK)), torch.zeros(len(p), dtype=torch.float64))

    def within(a: Tensor, p: Tensor) -> Tensor:
        own = p.square().sum(1)
        return (form(a, p, a, p, itself=True) - own) / (p.sum(1).square() - own).clamp_min(1e-12)

    return 100 * (within(x, u) + within(y, v) - 2 * form(x, u, y, v) / (u.sum(1) * v.sum(1)))


def inception_score(probabilities: Tensor, splits: int = 10, seed: int = 2020, weights: Tensor | None = None) -> Tensor:
    """Inception score: exp of the mean KL divergence of class distributions from their marginal.

    Args:
        probabilities: [N, C], each row a distribution.
        splits: number of parts of the set to average over (usually 10, seed 2020).
        seed: seed of the parts, which depend on the content of the rows and not on their order.
        weights: counts [R, N] of R resamples.

    Returns:
        [R] scores; R = 1 without weights.
    """
    p = probabilities.double()
    counts = torch.ones(1, len(p), dtype=torch.float64) if weights is None else weights.double()
    order = content_order(p)[torch.randperm(len(p), generator=torch.Generator().manual_seed(seed))]
    negative_entropy = -torch.special.entr(p).sum(1)
    scores = []
    for part in order.chunk(splits):
        w = counts[:, part]
        total = w.sum(1, keepdim=True).clamp_min(1e-12)
        marginal = w @ p[part] / total
        gain = (w @ negative_entropy[part]) / total[:, 0] + torch.special.entr(marginal).sum(1)
        scores.append(gain.exp())
    return torch.stack(scores).mean(0)


def resamples(units: int, count: int, seed: int) -> Tensor:
    """Bootstrap resamples of `units` items as counts [count, units]; each row sums to `units`."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(units, (count, units), generator=generator)
    ones = torch.ones(count, units, dtype=torch.float64)
    return torch.zeros(count, units, dtype=torch.float64).scatter_add_(1, drawn, ones)


def bootstrap_interval(values: Tensor, weights: Tensor, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the mean of values [N] over resamples with counts [R, N]."""
    means = (weights @ values.double()) / weights.sum(1).clamp_min(1e-12)
    tail = (1 - confidence) / 2
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high
