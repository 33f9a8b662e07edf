"""Metrics with confidence intervals, computed from the network outputs of a set of audio files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from im2wav.evaluation import imagehear, set_statistics
from im2wav.evaluation.audio_files import Judged
from im2wav.evaluation.metrics import CosineScore, divergence, group_hits, hits, wanted_classes
from im2wav.evaluation.network import Network, SetOutputs
from im2wav.evaluation.retrieval import retrieval_values
from im2wav.evaluation.threads import map_in_threads

PERCENTILE = "95 %, percentile bootstrap over items"
NORMAL = "95 %, 1.96 standard deviations of bootstrap resamples over items"
FITTED = "95 %, 1.96 standard deviations of the fit's intercept over resampled points"


@dataclass(frozen=True)
class Figure:
    """A value with its confidence interval and number of samples."""

    value: float
    low: float
    high: float
    interval: str
    n: int  # number of audio files
    n_reference: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Convert to a plain dict; non-finite numbers become None for JSON."""
        values = asdict(self)
        for name in ("value", "low", "high"):
            values[name] = round(values[name], 9) if abs(values[name]) < float("inf") else None
        return values


Row = dict[str, Figure]


@dataclass(frozen=True)
class Plan:
    """Options of the metrics.

    Attributes:
        seed: seed of resamples and random halves.
        resamples: number of resamples of means and kernel distances.
        resamples_fd: number of resamples of Fréchet distances, which are expensive.
        labels: item -> label; may be incomplete.
        images: item -> image embedding, required for CS.
        recordings: name -> label of the recordings for retrieval; empty: no retrieval.
    """

    seed: int = 0
    resamples: int = 1000
    resamples_fd: int = 20
    labels: Mapping[str, str] | None = None
    images: Mapping[str, Tensor] | None = None
    recordings: Mapping[str, str] = field(default_factory=dict)

    def weights(self, units: int, count: int, stream: int = 0) -> Tensor:
        """Bootstrap counts [count, units]; different streams are independent."""
        return set_statistics.resamples(units, count, self.seed * 1_000_003 + stream)


def unit_numbers(items: Sequence[str]) -> Tensor:
    """Item index of each file [S]: files of the same item are resampled together."""
    number = {item: i for i, item in enumerate(sorted(set(items)))}
    return torch.tensor([number[item] for item in items])


def mean_figure(values: Tensor, items: Sequence[str], plan: Plan, n_reference: int | None = None) -> Figure:
    """Mean of values [S] with a percentile interval."""
    units = unit_numbers(items)
    weights = plan.weights(int(units.max()) + 1, plan.resamples)[:, units]
    low, high = set_statistics.bootstrap_interval(values, weights)
    return Figure(values.double().mean().item(), low, high, PERCENTILE, len(values), n_reference)


def normal_figure(value: float, spread: float, n: int, n_reference: int | None, how: str = NORMAL) -> Figure:
    """A figure with an interval of +-1.96 standard deviations."""
    return Figure(value, value - 1.96 * spread, value + 1.96 * spread, how, n, n_reference)


@dataclass(frozen=True)
class Side:
    """Embeddings of a set and the items of its files."""

    outputs: SetOutputs
    items: Sequence[str]

    @property
    def units(self) -> Tensor:
        """Item index of each row, [M]."""
        return unit_numbers(self.items)[self.outputs.owner]


def side(judged: Judged, network: Network) -> Side:
    """Embeddings of a set by one network."""
    return Side(judged.outputs[network.name], judged.set.targets)


def joint_weights(one: Side, other: Side, count: int, plan: Plan) -> tuple[Tensor, Tensor]:
    """Bootstrap counts of the rows of two sets; sets with the same items are resampled together."""
    streams = (0, 0) if sorted(set(one.items)) == sorted(set(other.items)) else (0, 1)
    drawn = []
    for side, stream in zip((one, other), streams, strict=True):
        units = side.units
        drawn.append(plan.weights(int(units.max()) + 1, count, stream)[:, units])
    return drawn[0], drawn[1]


def fd_figure(one: Side, other: Side, plan: Plan) -> Figure:
    """Fréchet distance of two sets."""
    resampled = [
        (u, v)
        for u, v in zip(*joint_weights(one, other, plan.resamples_fd, plan), strict=True)
        if (u > 0).sum() > 1 and (v > 0).sum() > 1
    ]
    value, *drawn = map_in_threads(
        lambda counts: set_statistics.frechet_distance(one.outputs.rows, other.outputs.rows, *counts),
        [(None, None), *resampled],
    )
    spread = torch.tensor(drawn, dtype=torch.float64).std().item() if len(drawn) > 1 else float("nan")
    return normal_figure(value, spread, len(one.items), len(other.items))


def kernel_figures(one: Side, other: Side, plan: Plan) -> Row:
    """FD extrapolated to infinite N (if the sets are large enough) and KAD: both without small-sample bias."""
    counts, row = (len(one.items), len(other.items)), {}
    far = set_statistics.frechet_infinity(one.outputs.rows, other.outputs.rows, plan.seed)
    if far is not None:
        row["fd_inf"] = normal_figure(far.value, far.spread, *counts, FITTED)
    sigma = set_statistics.median_distance(other.outputs.rows)
    drawn = joint_weights(one, other, min(plan.resamples, 200), plan)
    # the unweighted sets come first, so that the kernel is computed once
    weights = [torch.cat([torch.ones_like(w[:1]), w]) for w in drawn]
    value, *resampled = set_statistics.kernel_distance(one.outputs.rows, other.outputs.rows, sigma, *weights)
    row["kad"] = normal_figure(value.item(), torch.stack(resampled).std().item(), *counts)
    return row


def inception_figures(outputs: SetOutputs, items: Sequence[str], plan: Plan) -> Row:
    """Inception score: over ten splits with >= 1,000 files, else over the whole set."""
    units, probabilities = unit_numbers(items), outputs.logits.double().softmax(-1)
    splits = 10 if len(items) >= 1000 else 1
    value = set_statistics.inception_score(probabilities, splits)[0].item()
    weights = plan.weights(int(units.max()) + 1, min(plan.resamples, 200))[:, units]
    drawn = set_statistics.inception_score(probabilities, splits, weights=weights)
    return {"is": normal_figure(value, drawn.std().item(), len(items), None)}


def paired_figures(
    network: Network, outputs: SetOutputs, items: Sequence[str], other: Judged, plan: Plan, judged_for: Sequence[str]
) -> dict[str, Tensor]:
    """Metrics of each file against the reference of its item: name -> [S]."""
    reference = other.outputs[network.name]
    place = {item: i for i, item in enumerate(other.set.targets)}
    index = torch.tensor([place[item] for item in judged_for])
    masked = imagehear.general_mask(network.labels)
    top = reference.scores.masked_fill(masked, -torch.inf).argmax(1)[index]
    wanted = torch.nn.functional.one_hot(top, len(network.labels)).bool()
    return {
        "kl": divergence(outputs.logits, reference.logits[index]),
        "kl_sigmoid": divergence(outputs.logits, reference.logits[index], "sigmoid"),
        "agree@1": hits(outputs.scores, wanted, 1, masked),
        "agree@5": hits(outputs.scores, wanted, 5, masked),
    }


def recognition_values(
    network: Network, outputs: SetOutputs, judged_for: Sequence[str], plan: Plan
) -> dict[str, tuple[Tensor, Tensor]]:
    """Whether the label of the item is recognised: name -> (mask of files with a known label [S], values)."""
    labels = plan.labels or {}
    names = [imagehear.audioset_names(labels.get(item, ""), network.labels) for item in judged_for]
    wanted = wanted_classes(names, network.labels)
    known = wanted.any(1)
    found: dict[str, tuple[Tensor, Tensor]] = {}
    if known.any():
        masked = imagehear.general_mask(network.labels)
        for top in (1, 5):
            found[f"acc@{top}"] = (known, hits(outputs.scores[known], wanted[known], top, masked))
    classes = [imagehear.class_of(labels.get(item, "")) for item in judged_for]
    of_class = torch.tensor([c is not None for c in classes])
    if of_class.any():
        order = imagehear.class_names()
        target = torch.tensor([order.index(c) for c in classes if c is not None])
        groups = imagehear.class_groups(network.labels)
        found["acc_30way"] = (of_class, group_hits(outputs.scores[of_class], groups, target))
    return found


def image_scores(outputs: SetOutputs, judged_for: Sequence[str], images: Mapping[str, Tensor]) -> Tensor:
    """CLIP score (CS) of each file with the image of its item, [S]."""
    embeddings = torch.stack([images[item] for item in judged_for])
    return CosineScore().values(outputs.rows, embeddings)


def set_row(
    judged: Judged,
    networks: Sequence[Network],
    plan: Plan,
    reference: Judged | None = None,
    judged_for: Callable[[str], str] = lambda item: item,
    paired: bool = True,
) -> Row:
    """All metrics of a set.

    Args:
        judged: network outputs of the set.
        networks: the networks.
        plan: options of the metrics.
        reference: network outputs of the references.
        judged_for: item -> item of the reference; a permutation gives the shuffled baseline.
        paired: whether each file has its own reference.
    """
    items, row = judged.set.targets, {}
    wanted = [judged_for(item) for item in items]
    shuffled = wanted != items

    def add(name: str, values: Tensor, of: Tensor | None = None, n_reference: int | None = None) -> None:
        picked = items if of is None else [item for item, keep in zip(items, of.tolist(), strict=True) if keep]
        row[name] = mean_figure(values, picked, plan, n_reference)

    for network in networks:
        outputs, suffix = judged.outputs[network.name], f"/{network.name}"
        if reference is not None and "distance" in network.uses and not shuffled:
            one, other = side(judged, network), side(reference, network)
            row["fd" + suffix] = fd_figure(one, other, plan)
            row |= {name + suffix: figure for name, figure in kernel_figures(one, other, plan).items()}
            parts = halves(judged, plan.seed), halves(reference, plan.seed)
            if parts[0] and parts[1]:
                row["fd_half" + suffix] = fd_figure(side(parts[0][0], network), side(parts[1][1], network), plan)
        if "classes" in network.uses:
            if reference is not None and paired and reference is not judged:
                for name, values in paired_figures(network, outputs, items, reference, plan, wanted).items():
                    add(name + suffix, values, n_reference=len(reference.set.files))
            if not shuffled:
                row |= {name + suffix: figure for name, figure in inception_figures(outputs, items, plan).items()}
            for name, (of, values) in recognition_values(network, outputs, wanted, plan).items():
                add(name + suffix, values, of)
        if "image" in network.uses and plan.images:
            add("cs" + suffix, image_scores(outputs, wanted, plan.images))
    if judged.nearest and paired:
        found = retrieval_values(judged.nearest, items, plan.recordings, plan.labels or {}, shuffled)
        for name, (of, values) in found.items():
            add(name, values, of, n_reference=len(plan.recordings))
    if not shuffled:
        for number, name in enumerate(("loudness_db", "silent", "clipped")):
            add(name, judged.levels[:, number])
    return row


def shuffled_items(items: Sequence[str], seed: int) -> dict[str, str]:
    """Cyclic permutation of the items for the shuffled baseline; empty with fewer than two items."""
    units = sorted(set(items))
    order = torch.randperm(len(units), generator=torch.Generator().manual_seed(seed)).tolist()
    return {units[a]: units[b] for a, b in zip(order, [*order[1:], *order[:1]], strict=True)} if len(units) > 1 else {}


def part(judged: Judged, numbers: Tensor) -> Judged:
    """Subset of the files of a set."""
    picked = numbers.tolist()
    outputs = {}
    for name, found in judged.outputs.items():
        place = torch.full((len(judged.set.files),), -1)
        place[numbers] = torch.arange(len(numbers))
        keep = place[found.owner] >= 0
        outputs[name] = SetOutputs(
            found.rows[keep], place[found.owner[keep]], found.logits[numbers], found.scores[numbers]
        )
    files = tuple(judged.set.files[i] for i in picked)
    return Judged(replace(judged.set, files=files), outputs, judged.levels[numbers])


def halves(judged: Judged, seed: int) -> tuple[Judged, Judged] | None:
    """Split a set into two random halves by item; None with fewer than four items."""
    units = unit_numbers(judged.set.targets)
    count = int(units.max()) + 1
    if count < 4:
        return None
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    size = count // 2
    picks = [torch.isin(units, order[start : start + size]).nonzero()[:, 0] for start in (0, size)]
    return part(judged, picks[0]), part(judged, picks[1])


def real_row(reference: Judged, networks: Sequence[Network], plan: Plan) -> Row:
    """Real-real baseline: one random half of the references against the other, and recognition of all references.

    The Fréchet distance is omitted because its bias depends on the number of files; `fd_half` is comparable.
    """
    row = set_row(reference, networks, plan)
    parts = halves(reference, plan.seed)
    for network in networks:
        if parts and "distance" in network.uses:
            one, other = side(parts[0], network), side(parts[1], network)
            row[f"fd_half/{network.name}"] = fd_figure(one, other, plan)
            row |= {f"{name}/{network.name}": figure for name, figure in kernel_figures(one, other, plan).items()}
    return row
