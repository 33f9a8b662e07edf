"""Metrics against closed forms and independent formulas."""

import math
import time

import numpy as np
import pytest
import torch

from im2wav.evaluation import metrics, set_statistics
from im2wav.evaluation.set_statistics import map_in_threads

torch.manual_seed(0)


def gaussian(n: int, mean: torch.Tensor, spread: torch.Tensor, seed: int) -> torch.Tensor:
    return mean + spread * torch.randn(n, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whitened(n: int, d: int, seed: int) -> torch.Tensor:
    """Rows whose mean is exactly 0 and whose covariance is exactly the identity."""
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x -= x.mean(0)
    return x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / (n - 1))).T


@pytest.mark.parametrize("n", [5, 40, 400])  # fewer rows than dimensions, and more
def test_the_frechet_distance_of_two_gaussians_known_in_advance(n):
    a, b = torch.tensor([2.0, 0.5, 1.0]), torch.tensor([1.0, 0.5, 3.0])
    shift = torch.tensor([1.0, -2.0, 0.0])
    x = whitened(n, 3, 0) * a
    y = whitened(n, 3, 1) * b + shift
    expected = shift.square().sum() + (a - b).square().sum()  # diagonal covariances commute
    assert set_statistics.frechet_distance(x, y) == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize(("n", "d"), [(300, 40), (30, 40)])
def test_the_frechet_distance_agrees_with_scipys_sqrtm(n, d):
    from scipy.linalg import sqrtm

    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64) @ mix
    y = torch.randn(n, d, generator=generator, dtype=torch.float64) + 0.3
    (m, s), (m2, s2) = ((z.mean(0).numpy(), np.cov(z.numpy(), rowvar=False)) for z in (x, y))
    # a whiff of identity keeps sqrtm away from singular matrices, to which it has no answer
    whiff = 0.0 if n > d else 1e-9 * np.eye(d)
    root = sqrtm((s + whiff) @ (s2 + whiff))
    expected = ((m - m2) ** 2).sum() + np.trace(s + s2 - 2 * root.real)
    assert set_statistics.frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("d", "n", "published"), [(128, 101, 0.343), (128, 1000, 0.035), (768, 101, 0.712), (768, 1000, 0.148)]
)
def test_the_bias_of_small_sets_is_the_published_one(d, n, published):
    """Two samples of one Gaussian of trace 1 with a 1/k spectrum; their true distance is 0."""
    spread = (1 / torch.arange(1, d + 1)) / (1 / torch.arange(1, d + 1)).sum()
    runs = 4 if n == 101 else 1
    found = [
        set_statistics.frechet_distance(
            *(gaussian(n, torch.zeros(d), spread.sqrt(), 10 * run + side) for side in (0, 1))
        )
        for run in range(runs)
    ]
    assert sum(found) / runs == pytest.approx(published, rel=0.1)


def test_the_distance_at_infinite_n_has_lost_most_of_the_bias():
    d = 16
    x, y = (gaussian(1500, torch.full((d,), m), torch.ones(d), seed) for m, seed in ((0.0, 0), (0.1, 1)))
    truth = d * 0.1**2
    plain, far = set_statistics.frechet_distance(x[:300], y[:300]), set_statistics.frechet_infinity(x[:300], y[:300], 0)
    assert abs(far[0] - truth) < 0.5 * abs(plain - truth)
    assert set_statistics.frechet_infinity(x[:6], y[:6]) is None


def test_weights_are_repetitions():
    x, y = torch.randn(7, 4, dtype=torch.float64), torch.randn(30, 4, dtype=torch.float64)
    w = torch.tensor([2, 0, 1, 3, 1, 0, 1])
    repeated = x.repeat_interleave(w, 0)
    assert set_statistics.frechet_distance(x, y, w) == pytest.approx(
        set_statistics.frechet_distance(repeated, y), rel=1e-9
    )
    p = x.softmax(1)
    one = set_statistics.inception_score(p, 1, weights=w[None].double())[0]
    assert one.item() == pytest.approx(set_statistics.inception_score(repeated.softmax(1), 1)[0].item(), rel=1e-9)


def test_mmd_of_shifted_samples_has_its_closed_form():
    """Gaussian kernel of width s, N(0, 1) and N(m, 1) in one dimension: 2 s / sqrt(s^2 + 2) (1 - e^(-m^2 / ...))."""
    s, shift, n, runs = 1.5, 2.0, 1000, 6
    expected = 2 * s / math.sqrt(s**2 + 2) * (1 - math.exp(-(shift**2) / (2 * (s**2 + 2))))
    found = [
        set_statistics.kernel_distance(
            *(gaussian(n, torch.tensor([m]), torch.ones(1), 2 * run + i) for i, m in enumerate((0.0, shift))), s
        )
        for run in range(runs)
    ]
    assert torch.cat(found).mean().item() == pytest.approx(100 * expected, rel=0.04)


def test_the_kernel_distance_by_hand_and_without_bias():
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [2.0], [5.0]])

    def k(a, b):
        return math.exp(-((a - b) ** 2) / (2 * 2.0**2))

    within_x, within_y = k(0, 1), (k(0, 2) + k(0, 5) + k(2, 5)) / 3
    across = sum(k(a, b) for a in (0, 1) for b in (0, 2, 5)) / 6
    expected = 100 * (within_x + within_y - 2 * across)
    assert set_statistics.kernel_distance(x, y, 2.0)[0].item() == pytest.approx(expected, rel=1e-9)
    assert set_statistics.median_distance(y) == pytest.approx(3.0)
    same = [set_statistics.kernel_distance(torch.randn(20, 3), torch.randn(20, 3))[0].item() for _ in range(200)]
    assert abs(np.mean(same)) < 4 * np.std(same) / math.sqrt(200)  # also below zero: no bias
    assert min(same) < 0 < max(same)


def test_kl_by_hand():
    p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.5, 0.25]])
    expected = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    assert metrics.divergence(q.log(), p.log()).item() == pytest.approx(expected, rel=1e-6)
    logits, reference = torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, -1.0]])
    sigmoid = [(1 / (1 + math.exp(-a)), 1 / (1 + math.exp(-b))) for a, b in ((1, 0), (-1, 2))]
    expected = sum(a * math.log(a / b) for a, b in sigmoid)
    assert metrics.divergence(logits, reference, "sigmoid").item() == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="expected one of"):
        metrics.divergence(logits, reference, "relu")


def test_the_inception_score_of_known_sets():
    sure = torch.eye(4).repeat(5, 1)
    assert set_statistics.inception_score(sure, 1)[0].item() == pytest.approx(4.0)
    assert set_statistics.inception_score(torch.full((12, 4), 0.25), 3)[0].item() == pytest.approx(1.0)


def test_accuracy_by_hand():
    scores = torch.tensor([[0.9, 0.5, 0.1], [0.2, 0.3, 0.1], [0.9, 0.1, 0.4]])
    wanted = torch.tensor([[0, 1, 0], [0, 1, 0], [0, 1, 0]], dtype=torch.bool)
    masked = torch.tensor([True, False, False])
    assert metrics.hits(scores, wanted).tolist() == [0, 1, 0]
    assert metrics.hits(scores, wanted, 1, masked).tolist() == [1, 1, 0]
    assert metrics.hits(scores, wanted, 2, masked).tolist() == [1, 1, 1]
    names = metrics.wanted_classes([["b"], [], ["nothing", "a"]], ["a", "b"])
    assert names.tolist() == [[False, True], [False, False], [True, False]]


def test_ties_among_groups_count_their_share():
    groups = torch.tensor([[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]], dtype=torch.bool)
    scores = torch.tensor([[0.9, 0.1, 0.2, 0.3], [0.1, 0.2, 0.8, 0.3]])
    assert metrics.best_groups(scores, groups).tolist() == [[1, 0, 0], [0, 0.5, 0.5]]  # groups 1 and 2 share


def test_codec_and_code_metrics_by_hand():
    found = metrics.code_usage(torch.tensor([1, 1, 1, 1, 0, 0, 0, 0]))
    assert found == {"used": 0.5, "perplexity": pytest.approx(4.0)}
    wav = torch.randn(2, 8192)
    assert metrics.log_stft_distance(wav, wav).tolist() == [0, 0]
    assert metrics.log_stft_distance(wav, 10 * wav).tolist() == pytest.approx([20, 20], abs=0.01)
    score = metrics.cosine_score(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 2.0], [3.0, 0.0]]))
    assert score.tolist() == pytest.approx([0, 100 * math.sqrt(0.5)])


def test_the_bootstrap_interval_covers_the_truth_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    inside, trials = 0, 400
    for trial in range(trials):
        values = torch.randn(60, generator=generator, dtype=torch.float64) + 1.0
        low, high = set_statistics.bootstrap_interval(values, set_statistics.resamples(60, 300, trial))
        inside += low <= 1.0 <= high
    assert 0.90 <= inside / trials <= 0.98


def test_the_order_of_the_files_does_not_matter():
    generator = torch.Generator().manual_seed(3)
    rows, other, logits = (torch.randn(24, 6, generator=generator, dtype=torch.float64) for _ in range(3))
    order = torch.randperm(24, generator=generator)

    def values(at):
        far = set_statistics.frechet_infinity(rows[at], other[at])
        fd, kad = (f(rows[at], other[at]) for f in (set_statistics.frechet_distance, set_statistics.kernel_distance))
        return [fd, kad.item(), set_statistics.inception_score(logits[at].softmax(1), 2).item(), *far]

    assert values(order) == pytest.approx(values(torch.arange(24)), rel=1e-9)


def test_the_frechet_distance_is_that_of_torchmetrics():
    """Which keeps running sums for sets that do not fit into memory, and sums over processes."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    embedder = torch.nn.Flatten()
    embedder.num_features = 12
    metric = FrechetInceptionDistance(feature=embedder).set_dtype(torch.float64)
    x, y = (gaussian(n, torch.full((12,), m), torch.ones(12), n) for n, m in ((40, 0.0), (50, 0.5)))
    for part in x.split(9):
        metric.update(part, real=True)
    metric.update(y, real=False)
    assert metric.compute().item() == pytest.approx(set_statistics.frechet_distance(x, y), rel=1e-6)


def test_too_few_audio_files_are_rejected():
    with pytest.raises(ValueError, match="at least two"):
        set_statistics.frechet_distance(torch.zeros(1, 4), torch.zeros(5, 4))
    with pytest.raises(ValueError, match="at least two"):
        set_statistics.median_distance(torch.zeros(1, 4))


def test_a_kernel_in_blocks_is_the_whole_kernel(monkeypatch):
    """Pairs of a set with itself are looked at once, block by block; the resamples' counts go with them."""
    x, y = (gaussian(n, torch.zeros(5), torch.ones(5), n) for n in (23, 31))
    u, v = set_statistics.resamples(23, 6, 0), set_statistics.resamples(31, 6, 1)
    a, b, c = (torch.exp(-torch.cdist(p, q).square() / (2 * 1.3**2)) for p, q in ((x, x), (y, y), (x, y)))

    def within(kernel, w):
        pairs = torch.outer(w, w) - torch.diag(w**2)  # a row is not compared with its own copies
        return (kernel * pairs).sum() / pairs.sum()

    expected = [
        100 * (within(a, p) + within(b, q) - 2 * (p @ c @ q) / (p.sum() * q.sum())).item()
        for p, q in zip(u, v, strict=True)
    ]
    monkeypatch.setattr(set_statistics, "BLOCK", 4)
    assert set_statistics.kernel_distance(x, y, 1.3, u, v).tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n", [12, 60])
def test_dead_units_leave_the_frechet_distance_alone(n):
    x, y = (gaussian(n, torch.full((8,), m), torch.ones(8), seed) for m, seed in ((0.0, 0), (0.5, 1)))
    wide = [torch.cat([z, torch.full((n, 3), 0.7, dtype=torch.float64), z[:, :2]], 1) for z in (x, y)]  # singular
    (m, s), (m2, s2) = ((z.mean(0), z.T.cov()) for z in wide)
    root = torch.linalg.eigvals(s @ s2).real.clamp_min(0).sqrt().sum()
    expected = (m - m2).square().sum() + s.trace() + s2.trace() - 2 * root
    assert set_statistics.frechet_distance(*wide) == pytest.approx(expected.item(), rel=1e-6)


def test_what_runs_side_by_side_comes_in_order_whatever_the_number_of_threads():
    rows = [gaussian(50, torch.zeros(20), torch.ones(20), seed) for seed in range(12)]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(list(map_in_threads(lambda x: (x.T @ x).logdet().item(), rows)))
            assert torch.get_num_threads() == threads
            with pytest.raises(ZeroDivisionError):
                list(map_in_threads(lambda x: 1 / x, [1, 0, 2]))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == [(x.T @ x).logdet().item() for x in rows]


def test_threads_stop_where_the_work_is_given_up():
    started = []

    def work(number: int) -> int:
        started.append(number)
        time.sleep(0.005)
        return number

    results = map_in_threads(work, range(1000))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    results.close()
    assert len(started) < 500
