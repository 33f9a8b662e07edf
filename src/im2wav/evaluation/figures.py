"""Figures with intervals: what the networks heard in a set of sounds, as numbers that can be compared."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from im2wav.evaluation import imagehear, statistics
from im2wav.evaluation.metrics import CosineScore, divergence, group_hits, hits, wanted_classes
from im2wav.evaluation.network import Heardings, Network
from im2wav.evaluation.sounds import Judged

PERCENTILE = "95 %, percentile bootstrap over items"
NORMAL = "95 %, 1.96 standard deviations of bootstrap resamples over items"
FITTED = "95 %, 1.96 standard deviations of the fit's intercept over resampled points"


@dataclass(frozen=True)
class Figure:
    """A number with its interval, and from how many sounds it comes."""

    value: float
    low: float
    high: float
    interval: str
    n: int  # sounds judged
    n_reference: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain values; numbers that are not finite become None, which JSON can hold."""
        values = asdict(self)
        for name in ("value", "low", "high"):
            values[name] = round(values[name], 9) if abs(values[name]) < float("inf") else None
        return values


Row = dict[str, Figure]


@dataclass(frozen=True)
class Plan:
    """How figures are computed.

    Attributes:
        seed: of resamples and of random halves.
        resamples: of means and kernel distances.
        resamples_fd: of Fréchet distances, which are dear.
        labels: item -> its label; may lack items.
        images: item -> embedding of its picture, where CS is to be computed.
    """

    seed: int = 0
    resamples: int = 1000
    resamples_fd: int = 50
    labels: Mapping[str, str] | None = None
    images: Mapping[str, Tensor] | None = None

    def weights(self, units: int, count: int, stream: int = 0) -> Tensor:
        """Bootstrap counts [count, units]; another stream gives independent ones."""
        return statistics.resamples(units, count, self.seed * 1_000_003 + stream)


def unit_numbers(items: Sequence[str]) -> Tensor:
    """Number of each sound's item [S]: sounds of one item are resampled together."""
    number = {item: i for i, item in enumerate(sorted(set(items)))}
    return torch.tensor([number[item] for item in items])


def mean_figure(values: Tensor, items: Sequence[str], plan: Plan, n_reference: int | None = None) -> Figure:
    """Mean of values [S] with its percentile interval."""
    units = unit_numbers(items)
    weights = plan.weights(int(units.max()) + 1, plan.resamples)[:, units]
    low, high = statistics.bootstrap_interval(values, weights)
    return Figure(values.double().mean().item(), low, high, PERCENTILE, len(values), n_reference)


def normal_figure(value: float, spread: float, n: int, n_reference: int | None, how: str = NORMAL) -> Figure:
    """A figure whose interval is 1.96 standard deviations to both sides."""
    return Figure(value, value - 1.96 * spread, value + 1.96 * spread, how, n, n_reference)


def set_distances(
    one: Heardings, items: Sequence[str], other: Heardings, other_items: Sequence[str], plan: Plan, paired: bool
) -> Row:
    """FD, FD at infinite N and KAD of two sets. Paired sets are resampled by the items that they share."""
    units, other_units = unit_numbers(items)[one.owner], unit_numbers(other_items)[other.owner]
    counts = [int(u.max()) + 1 for u in (units, other_units)]
    streams = (0, 0) if paired and sorted(set(items)) == sorted(set(other_items)) else (0, 1)
    n, m = len(items), len(other_items)

    def weights(count: int) -> tuple[Tensor, Tensor]:
        u, v = (plan.weights(c, count, stream) for c, stream in zip(counts, streams, strict=True))
        return u[:, units], v[:, other_units]

    value = statistics.frechet_distance(one.rows, other.rows)
    drawn = [
        statistics.frechet_distance(one.rows, other.rows, u, v)
        for u, v in zip(*weights(plan.resamples_fd), strict=True)
        if (u > 0).sum() > 1 and (v > 0).sum() > 1
    ]
    row = {"fd": normal_figure(value, torch.tensor(drawn, dtype=torch.float64).std().item(), n, m)}
    far = statistics.frechet_infinity(one.rows, other.rows, plan.seed)
    if far is not None:
        row["fd_inf"] = normal_figure(far.value, far.spread, n, m, FITTED)
    sigma = statistics.median_distance(other.rows)
    value = statistics.kernel_distance(one.rows, other.rows, sigma)[0].item()
    drawn_kad = statistics.kernel_distance(one.rows, other.rows, sigma, *weights(min(plan.resamples, 200)))
    row["kad"] = normal_figure(value, drawn_kad.std().item(), n, m)
    return row


def variety(heard: Heardings, items: Sequence[str], plan: Plan) -> Row:
    """Inception score: over ten parts from 1,000 sounds on, else over the whole set."""
    units, probabilities = unit_numbers(items), heard.logits.double().softmax(-1)
    splits = 10 if len(items) >= 1000 else 1
    value = statistics.inception_score(probabilities, splits)[0].item()
    weights = plan.weights(int(units.max()) + 1, min(plan.resamples, 200))[:, units]
    drawn = statistics.inception_score(probabilities, splits, weights=weights)
    return {"is": normal_figure(value, drawn.std().item(), len(items), None)}


def paired_figures(
    network: Network, heard: Heardings, items: Sequence[str], other: Judged, plan: Plan, judged_for: Sequence[str]
) -> dict[str, Tensor]:
    """What can be said of each sound beside the reference of the item that it is judged for: name -> [S]."""
    reference = other.heard[network.name]
    place = {item: i for i, item in enumerate(other.set.targets)}
    partner = torch.tensor([place[item] for item in judged_for])
    masked = imagehear.general_mask(network.labels)
    top = reference.scores.masked_fill(masked, -torch.inf).argmax(1)[partner]
    wanted = torch.nn.functional.one_hot(top, len(network.labels)).bool()
    return {
        "kl": divergence(heard.logits, reference.logits[partner]),
        "kl_sigmoid": divergence(heard.logits, reference.logits[partner], "sigmoid"),
        "agree@1": hits(heard.scores, wanted, 1, masked),
        "agree@5": hits(heard.scores, wanted, 5, masked),
    }


def recognised(
    network: Network, heard: Heardings, judged_for: Sequence[str], plan: Plan
) -> dict[str, tuple[Tensor, Tensor]]:
    """Whether the label of the item is heard: name -> (which sounds have an answer [S] bool, their values)."""
    labels = plan.labels or {}
    names = [imagehear.audioset_names(labels.get(item, ""), network.labels) for item in judged_for]
    wanted = wanted_classes(names, network.labels)
    known = wanted.any(1)
    found: dict[str, tuple[Tensor, Tensor]] = {}
    if known.any():
        masked = imagehear.general_mask(network.labels)
        for top in (1, 5):
            found[f"acc@{top}"] = (known, hits(heard.scores[known], wanted[known], top, masked))
    classes = [imagehear.class_of(labels.get(item, "")) for item in judged_for]
    of_class = torch.tensor([c is not None for c in classes])
    if of_class.any():
        order = imagehear.class_names()
        target = torch.tensor([order.index(c) for c in classes if c is not None])
        groups = imagehear.class_groups(network.labels)
        found["acc_30way"] = (of_class, group_hits(heard.scores[of_class], groups, target))
    return found


def picture_scores(heard: Heardings, judged_for: Sequence[str], images: Mapping[str, Tensor]) -> Tensor:
    """CS of each sound with the picture of the item that it is judged for, [S]."""
    pictures = torch.stack([images[item] for item in judged_for])
    return CosineScore().values(heard.rows, pictures)


def set_row(
    judged: Judged,
    networks: Sequence[Network],
    plan: Plan,
    reference: Judged | None = None,
    judged_for: Callable[[str], str] = lambda item: item,
    paired: bool = True,
) -> Row:
    """All figures of one set.

    Args:
        judged: the set.
        networks: that heard it.
        plan: how figures are computed.
        reference: what it is compared with.
        judged_for: item of a sound -> the item that it is compared with; anything else than the same gives chance.
        paired: whether sounds belong to single references.
    """
    items, row = judged.set.targets, {}
    wanted = [judged_for(item) for item in items]
    shuffled = wanted != items

    def add(name: str, values: Tensor, of: Tensor | None = None, n_reference: int | None = None) -> None:
        picked = items if of is None else [item for item, keep in zip(items, of.tolist(), strict=True) if keep]
        row[name] = mean_figure(values, picked, plan, n_reference)

    for network in networks:
        heard, suffix = judged.heard[network.name], f"/{network.name}"
        if reference is not None and "distance" in network.uses and not shuffled:
            found = set_distances(heard, items, reference.heard[network.name], reference.set.targets, plan, paired)
            row |= {name + suffix: figure for name, figure in found.items()}
        if "classes" in network.uses:
            if reference is not None and paired and reference is not judged:
                for name, values in paired_figures(network, heard, items, reference, plan, wanted).items():
                    add(name + suffix, values, n_reference=len(reference.set.sounds))
            if not shuffled:
                row |= {name + suffix: figure for name, figure in variety(heard, items, plan).items()}
            for name, (of, values) in recognised(network, heard, wanted, plan).items():
                add(name + suffix, values, of)
        if "picture" in network.uses and plan.images:
            add("cs" + suffix, picture_scores(heard, wanted, plan.images))
    if not shuffled:
        for number, name in enumerate(("loudness_db", "silent", "clipped")):
            add(name, judged.levels[:, number])
    return row


def shuffled_items(items: Sequence[str], seed: int) -> dict[str, str]:
    """Item -> another item, each taken once: what chance is judged by. Empty with fewer than two items."""
    units = sorted(set(items))
    order = torch.randperm(len(units), generator=torch.Generator().manual_seed(seed)).tolist()
    return {units[a]: units[b] for a, b in zip(order, [*order[1:], *order[:1]], strict=True)} if len(units) > 1 else {}


def part(judged: Judged, numbers: Tensor) -> Judged:
    """Some of the sounds of a set."""
    picked = numbers.tolist()
    heard = {}
    for name, found in judged.heard.items():
        place = torch.full((len(judged.set.sounds),), -1)
        place[numbers] = torch.arange(len(numbers))
        keep = place[found.owner] >= 0
        heard[name] = Heardings(
            found.rows[keep], place[found.owner[keep]], found.logits[numbers], found.scores[numbers]
        )
    sounds = tuple(judged.set.sounds[i] for i in picked)
    return Judged(replace(judged.set, sounds=sounds), heard, judged.levels[numbers])


def floor_row(reference: Judged, networks: Sequence[Network], plan: Plan) -> Row:
    """Real sounds: distances of one random half from the other, and what is recognised in all of them."""
    row = set_row(reference, networks, plan)
    count = len(reference.set.sounds)
    if count < 4:
        return row
    order = torch.randperm(count, generator=torch.Generator().manual_seed(plan.seed))
    halves = [part(reference, order[start : start + count // 2].sort().values) for start in (0, count // 2)]
    for network in networks:
        if "distance" in network.uses:
            one, other = (half.heard[network.name] for half in halves)
            targets = (halves[0].set.targets, halves[1].set.targets)
            found = set_distances(one, targets[0], other, targets[1], plan, paired=False)
            row |= {f"{name}/{network.name}": figure for name, figure in found.items()}
    return row
