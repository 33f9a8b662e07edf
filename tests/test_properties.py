"""Properties that hold for every input: window plans, packed batches, splits and file names."""

import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from im2wav.data.manifest import COLUMNS, SPLITS, Manifest, fraction_of, split_rows
from im2wav.inference.command import Outputs
from im2wav.inference.inputs import Input, name_inputs, text_input
from im2wav.inference.request import plan_windows, window_starts
from im2wav.prepare.clip_reader import Decoded, Failed
from im2wav.prepare.embedder import Unpacker, pack_frames
from im2wav.prepare.sources import Source, Sources

few = settings(max_examples=50, deadline=None, derandomize=True)

# ---- window plans


@st.composite
def sequences(draw) -> tuple[int, int, int]:
    """Total codes, window length and hop that are allowed."""
    length = draw(st.integers(1, 40))
    return draw(st.integers(length, 200)), length, draw(st.integers(1, length))


@st.composite
def requests(draw) -> tuple[int, int, int, list[tuple[int, int]]]:
    """A sequence and disjoint intervals of it that are to be generated."""
    total, length, hop = draw(sequences())
    ends = sorted(draw(st.sets(st.integers(0, total), max_size=8)))
    return total, length, hop, list(zip(ends[::2], ends[1::2], strict=False))


@few
@given(sequences())
def test_windows_cover_the_sequence_and_move_by_at_most_a_hop(sequence):
    total, length, hop = sequence
    starts = window_starts(total, length, hop)
    assert starts[0] == 0
    assert starts[-1] == total - length
    assert all(0 < b - a <= hop for a, b in pairwise(starts))


@few
@given(requests())
def test_a_plan_generates_each_wanted_code_once_and_from_known_context(request):
    total, length, hop, wanted = request
    plan = plan_windows(total, length, hop, wanted)
    generated = [t for window in plan for t in range(window.first, window.end)]
    assert generated == [t for a, b in wanted for t in range(a, b)]
    for window in plan:
        assert 0 <= window.start <= window.first < window.end <= window.start + length <= total


@few
@given(requests())
def test_a_code_has_the_same_context_whatever_else_is_wanted(request):
    total, length, hop, wanted = request
    everything = plan_windows(total, length, hop, [(0, total)])
    context = {t: window.start for window in everything for t in range(window.first, window.end)}
    for window in plan_windows(total, length, hop, wanted):
        assert all(context[t] == window.start for t in range(window.first, window.end))


# ---- packed batches


@few
@given(st.lists(st.lists(st.integers(0, 7), max_size=4), max_size=6), st.integers(1, 9), st.randoms())
def test_unpacking_gives_each_clip_its_frames_in_order(sizes, rows, random):
    """sizes: frames of each message of each clip."""
    rng = np.random.default_rng(0)
    clips = [[rng.integers(0, 256, (n, 3, 1, 1), dtype=np.uint8) for n in parts] for parts in sizes]
    ends = [
        Failed("cut", "") if random.random() < 0.3 or not sum(parts) else Decoded(b"", 0, "", "") for parts in sizes
    ]
    streams = [[(key, part) for part in [*parts, ends[key]]] for key, parts in enumerate(clips)]
    messages = []
    while streams := [stream for stream in streams if stream]:
        messages.append(random.choice(streams).pop(0))  # a clip's messages stay in order, clips are mixed
    found = {}
    unpacker = Unpacker(lambda key, end, embeddings: found.update({key: (end, embeddings)}))
    for batch in pack_frames(messages, rows, 1):
        assert batch.squares.shape == (rows, 3, 1, 1)
        assert sum(count for _, count in batch.runs) <= rows
        unpacker(batch, batch.squares.flatten(1).numpy().astype(np.float16))
    assert set(found) == set(range(len(clips)))
    assert not unpacker.parts
    for key, (end, embeddings) in found.items():
        assert end is ends[key]
        if isinstance(end, Decoded):
            np.testing.assert_array_equal(embeddings, np.concatenate(clips[key]).reshape(-1, 3))
        else:
            assert embeddings is None


# ---- splits

GROUPS = st.lists(st.tuples(st.text(max_size=3), st.text(max_size=3)), max_size=40)  # group and audio hash of each row
FRACTIONS = (
    st.lists(st.integers(0, 10), min_size=3, max_size=3)
    .filter(any)
    .map(lambda parts: {split: part / sum(parts) for split, part in zip(SPLITS, parts, strict=True)})
)


def manifest(rows: list[tuple[str, str]], first: int = 0) -> Manifest:
    """A manifest of rows (group, audio hash); ids are numbers."""
    values = ({"id": str(first + i), "group": group, "sound": sound} for i, (group, sound) in enumerate(rows))
    return Manifest([fields.get(name, "") for name in COLUMNS] for fields in values)


@few
@given(GROUPS, FRACTIONS)
def test_every_row_is_in_one_split_and_a_group_is_never_divided(rows, fractions):
    split = split_rows(manifest(rows), "group", fractions)
    assert sorted(np.concatenate(list(split.values())).tolist()) == list(range(len(rows)))
    home = {}
    for name, chosen in split.items():
        assert fractions[name] > 0 or not len(chosen)
        for row in chosen.tolist():
            group, sound = rows[row]
            assert home.setdefault(group or sound or row, name) == name


@few
@given(GROUPS, GROUPS, st.randoms())
def test_a_row_keeps_its_split_when_rows_are_added_or_moved(rows, more, random):
    def where(pairs: Manifest) -> dict[str, str]:
        return {pair.id: name for name, chosen in split_rows(pairs, "group").items() for pair in pairs.take(chosen)}

    before = where(manifest(rows))
    both = manifest([*rows, *more])
    order = list(range(len(both)))
    random.shuffle(order)
    after = where(both.take(np.array(order, np.int64)))
    assert {name: after[name] for name in before} == before


@few
@given(st.integers(0, 60), st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_smaller_fraction_is_part_of_a_larger_one(count, a, b):
    pairs, rows = manifest([("", "")] * count), np.arange(count)
    small, large = (set(fraction_of(pairs, rows, x).tolist()) for x in sorted((a, b)))
    assert small <= large <= set(range(count))


# ---- names of files

PARTS = st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=12).filter(
    lambda part: part not in (".", "..")
)
PATHS = st.lists(PARTS, min_size=1, max_size=4).map("/".join)
# names that are likely to meet when folders are joined and suffixes dropped
CLOSE = st.lists(st.sampled_from(["a", "b", "a_b", "..", "a.jpg", "_"]), min_size=1, max_size=3).map("/".join)


def attempt(function: Callable[[], Any]) -> tuple[Any, str]:
    """What a call returns, and the message of its ValueError."""
    try:
        return function(), ""
    except ValueError as error:
        return None, str(error)


def is_inside(path: Path, folder: Path) -> bool:
    return Path(os.path.normpath(path)).is_relative_to(folder)


@few
@given(st.lists(st.tuples(PATHS | CLOSE, st.sampled_from([".jpg", ".png", ".JPG", ".mp4"])), max_size=6, unique=True))
def test_inputs_have_names_of_their_own_that_stay_in_the_output_folder(files):
    root = Path("/in")
    inputs = [Input("", "photo", root / f"{path}{suffix}") for path, suffix in files]
    named, error = attempt(lambda: name_inputs(inputs, root))
    if error:
        assert "would have the name" in error
        return
    outputs = Outputs(Path("/out"))
    paths = [outputs.path(level, item.name, n) for item in named for level in ("low", "up") for n in (0, 1, 100)]
    assert len(set(paths)) == len(paths)
    assert all(path.parent in (Path("/out/low"), Path("/out/up")) for path in paths)


@few
@given(st.text(max_size=300) | PATHS | CLOSE)
def test_any_name_is_rejected_or_stays_in_the_output_folder(name):
    """Names also come from manifests and ids that somebody else wrote."""
    path, error = attempt(lambda: Outputs(Path("/out")).path("up", name, 0))
    if error:
        assert "cannot be a file name" in error
        return
    assert path.parent == Path("/out/up")
    assert is_inside(path, Path("/out/up"))
    assert len(os.fsencode(path.name)) <= 255


@few
@given(st.text(max_size=300) | PATHS | CLOSE)
def test_any_id_is_rejected_or_stays_in_the_pairs_folder(name):
    _, error = attempt(lambda: Sources("any", [Source(name, image="image.jpg")]))
    if error:
        assert error.startswith("image.jpg: id")
        return
    for path in (Path("/pairs/wav") / f"{name}.wav", Path("/pairs/clip") / f"{name}.npy"):
        assert path.parent == Path(f"/pairs/{path.parent.name}")
        assert is_inside(path, path.parent)
        assert len(path.name.encode("utf-8", "surrogateescape")) <= 255


@few
@given(st.text(min_size=1, max_size=200))
def test_a_text_becomes_a_file_name(text):
    assume(text.strip())
    path = Outputs(Path("/out")).path("up", text_input(text).name, 0)
    assert path.parent == Path("/out/up")


def test_two_sources_never_share_an_id():
    with pytest.raises(ValueError, match="several sources have the id 'a'"):
        Sources("any", [Source("a", image="x/a.jpg"), Source("a", image="y/a.jpg")])
