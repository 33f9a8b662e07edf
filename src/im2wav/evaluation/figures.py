"""Metrics with confidence intervals, computed from the network outputs of a set of audio files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from im2wav.evaluation import imagehear, set_statistics
from im2wav.evaluation.audio_files import Judged
from im2wav.evaluation.metrics import best_groups, cosine_score, divergence, hits, retrieval_values, wanted_classes
from im2wav.evaluation.networks import Network, NetworkOutputs
from im2wav.evaluation.set_statistics import map_in_threads

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
    """Options of the metrics."""

    seed: int = 0  # of resamples and random halves
    resamples: int = 1000  # of means and kernel distances
    resamples_fd: int = 20  # of Fréchet distances, which are expensive
    labels: Mapping[str, str] = field(default_factory=dict)  # of items; may be incomplete
    images: Mapping[str, Tensor] = field(default_factory=dict)  # embeddings by item, required for CS
    recordings: Mapping[str, str] = field(default_factory=dict)  # labels of the recordings for retrieval by name

    def weights(self, units: Tensor, count: int, stream: int = 0) -> Tensor:
        """Bootstrap counts [count, S] of files of items `units` [S]; different streams are independent."""
        seed = self.seed * 1_000_003 + stream
        return set_statistics.resamples(int(units.max()) + 1, count, seed)[:, units]


def unit_numbers(items: Sequence[str]) -> Tensor:
    """Item index of each file [S]: files of the same item are resampled together."""
    number = {item: i for i, item in enumerate(sorted(set(items)))}
    return torch.tensor([number[item] for item in items])


def mean_figure(values: Tensor, items: Sequence[str], plan: Plan, n_reference: int | None = None) -> Figure:
    """Mean of values [S] with a percentile interval."""
    low, high = set_statistics.bootstrap_interval(values, plan.weights(unit_numbers(items), plan.resamples))
    return Figure(values.double().mean().item(), low, high, PERCENTILE, len(values), n_reference)


def _normal_figure(value: float, spread: float, n: int, n_reference: int | None, how: str = NORMAL) -> Figure:
    return Figure(value, value - 1.96 * spread, value + 1.96 * spread, how, n, n_reference)


def _joint_weights(one: Judged, other: Judged, network: Network, count: int, plan: Plan) -> list[Tensor]:
    """Bootstrap counts of the rows of two sets; sets with the same items are resampled together."""
    streams = (0, 0) if set(one.set.targets) == set(other.set.targets) else (0, 1)
    return [
        plan.weights(unit_numbers(judged.set.targets)[judged.outputs[network.name].owner], count, stream)
        for judged, stream in zip((one, other), streams, strict=True)
    ]


def fd_figure(one: Judged, other: Judged, network: Network, plan: Plan) -> Figure:
    """Fréchet distance of two sets."""
    x, y = (judged.outputs[network.name].rows for judged in (one, other))
    resampled = [
        (u, v)
        for u, v in zip(*_joint_weights(one, other, network, plan.resamples_fd, plan), strict=True)
        if (u > 0).sum() > 1 and (v > 0).sum() > 1
    ]
    value, *drawn = map_in_threads(
        lambda counts: set_statistics.frechet_distance(x, y, *counts), [(None, None), *resampled]
    )
    spread = torch.tensor(drawn, dtype=torch.float64).std().item() if len(drawn) > 1 else float("nan")
    return _normal_figure(value, spread, len(one.set.files), len(other.set.files))


def kernel_figures(one: Judged, other: Judged, network: Network, plan: Plan) -> Row:
    """FD extrapolated to infinite N (if the sets are large enough) and KAD: both without small-sample bias."""
    counts, row = (len(one.set.files), len(other.set.files)), {}
    x, y = (judged.outputs[network.name].rows for judged in (one, other))
    far = set_statistics.frechet_infinity(x, y, plan.seed)
    if far is not None:
        row[f"fd_inf/{network.name}"] = _normal_figure(*far, *counts, FITTED)
    drawn = _joint_weights(one, other, network, min(plan.resamples, 200), plan)
    # the unweighted sets come first, so that the kernel is computed once
    weights = [torch.cat([torch.ones_like(w[:1]), w]) for w in drawn]
    value, *resampled = set_statistics.kernel_distance(x, y, None, *weights)
    row[f"kad/{network.name}"] = _normal_figure(value.item(), torch.stack(resampled).std().item(), *counts)
    return row


def inception_figure(outputs: NetworkOutputs, items: Sequence[str], plan: Plan) -> Figure:
    """Inception score: over ten splits with >= 1,000 files, else over the whole set."""
    probabilities, splits = outputs.logits.double().softmax(-1), 10 if len(items) >= 1000 else 1
    value = set_statistics.inception_score(probabilities, splits)[0].item()
    weights = plan.weights(unit_numbers(items), min(plan.resamples, 200))
    drawn = set_statistics.inception_score(probabilities, splits, weights=weights)
    return _normal_figure(value, drawn.std().item(), len(items), None)


def paired_figures(
    network: Network, outputs: NetworkOutputs, other: Judged, judged_for: Sequence[str]
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
    network: Network, outputs: NetworkOutputs, judged_for: Sequence[str], labels: Mapping[str, str]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Whether the label of the item is recognised: name -> (mask of files with a known label [S], values)."""
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
        best = best_groups(outputs.scores[of_class], imagehear.class_groups(network.labels))
        found["acc_30way"] = (of_class, best.gather(1, target[:, None])[:, 0])
    return found


def set_row(
    judged: Judged,
    networks: Sequence[Network],
    plan: Plan,
    reference: Judged | None = None,
    judged_for: Callable[[str], str] = lambda item: item,
    paired: bool = True,
) -> Row:
    """All metrics of a set.

    `judged_for`: item -> item of the reference; a permutation gives the shuffled baseline. `paired`: whether each file
    has its own reference.
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
            row["fd" + suffix] = fd_figure(judged, reference, network, plan)
            row |= kernel_figures(judged, reference, network, plan)
            parts = halves(judged, plan.seed), halves(reference, plan.seed)
            if parts[0] and parts[1]:
                row["fd_half" + suffix] = fd_figure(parts[0][0], parts[1][1], network, plan)
        if "classes" in network.uses:
            if reference is not None and paired:
                for name, values in paired_figures(network, outputs, reference, wanted).items():
                    add(name + suffix, values, n_reference=len(reference.set.files))
            if not shuffled:
                row["is" + suffix] = inception_figure(outputs, items, plan)
            for name, (of, values) in recognition_values(network, outputs, wanted, plan.labels).items():
                add(name + suffix, values, of)
        if "image" in network.uses and plan.images:
            add("cs" + suffix, cosine_score(outputs.rows, torch.stack([plan.images[item] for item in wanted])))
    if judged.nearest and paired:
        found = retrieval_values(judged.nearest, items, plan.recordings, plan.labels, shuffled)
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


def halves(judged: Judged, seed: int) -> list[Judged]:
    """Split a set into two random halves by item; none with fewer than four items."""
    units = unit_numbers(judged.set.targets)
    count = int(units.max()) + 1
    if count < 4:
        return []
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    parts = []
    for half in (order[: count // 2], order[count // 2 : count // 2 * 2]):
        numbers = torch.isin(units, half).nonzero()[:, 0]
        files = tuple(judged.set.files[i] for i in numbers.tolist())
        outputs = {name: found.take(numbers) for name, found in judged.outputs.items()}
        parts.append(Judged(replace(judged.set, files=files), outputs, judged.levels[numbers]))
    return parts


def real_row(reference: Judged, networks: Sequence[Network], plan: Plan) -> Row:
    """Real-real baseline: one random half of the references against the other, and recognition of all references.

    The Fréchet distance is omitted because its bias depends on the number of files; `fd_half` is comparable.
    """
    row, parts = set_row(reference, networks, plan), halves(reference, plan.seed)
    for network in networks:
        if parts and "distance" in network.uses:
            row[f"fd_half/{network.name}"] = fd_figure(parts[0], parts[1], network, plan)
            row |= kernel_figures(parts[0], parts[1], network, plan)
    return row
