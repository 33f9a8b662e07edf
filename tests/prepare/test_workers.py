import os
import signal
import time

import numpy as np
import pytest
import torch

from im2wav.prepare.clip_reader import Decoded, Failed, Workers
from im2wav.prepare.embedder import Unpacker, pack_frames


def behave(job):
    """What a decoder may do to the process that it runs in."""
    yield "begun"
    if job == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if job == "hang":
        time.sleep(1000)
    if job == "raise":
        raise KeyError("nobody expected this")
    if job == "large":
        yield np.zeros(10_000_000, np.uint8)
    yield job


def test_a_job_that_dies_hangs_or_raises_costs_itself_alone():
    jobs = ["a", "die", "b", "hang", "raise", "large", *"cdefg", "die", "h"]
    messages: dict[int, list] = {}
    for key, message in Workers(behave, 2, timeout=3).run(enumerate(jobs)):
        messages.setdefault(key, []).append(message)
    assert sorted(messages) == list(range(len(jobs)))
    for key, job in enumerate(jobs):
        assert messages[key][0] == "begun"
        last = messages[key][-1]
        if job == "die":
            assert last == Failed("decoder died", "its process ended with exit code -9")
        elif job == "hang":
            assert last == Failed("decoder hung", "no message for 3 s (timeout)")
        elif job == "raise":
            assert last.reason == "decoder error"
            assert "nobody expected this" in last.detail
        else:
            assert last == job
    assert messages[5][1].shape == (10_000_000,)


def test_a_worker_waits_while_nobody_listens_and_is_not_taken_to_hang():
    stream = Workers(behave, 1, timeout=1).run(enumerate(["large", "a"]))
    assert next(stream) == (0, "begun")
    time.sleep(2)
    assert [type(message) for _, message in stream] == [np.ndarray, str, str, str]


class Aborting:
    """A task that ends the process that unpickles it."""

    def __call__(self, job):
        yield job

    def __reduce__(self):
        return os.abort, ()


def test_processes_that_cannot_start_are_an_error():
    with pytest.raises(ValueError, match="before its first file"):
        list(Workers(Aborting(), 1, timeout=5).run([(0, "a")]))
    with pytest.raises(ValueError, match="at least 1"):
        Workers(behave, 0, timeout=1)


@pytest.mark.parametrize("rows", [1, 5, 64])
def test_packing_and_unpacking_give_each_clip_its_own_frames(rows):
    generator = np.random.default_rng(0)
    clips = {key: generator.integers(0, 255, (key * 3 + 1, 3, 2, 2), dtype=np.uint8) for key in range(6)}
    pieces = [(key, piece) for key, clip in clips.items() for piece in np.array_split(clip, 2) if len(piece)]
    order = sorted(pieces, key=lambda piece: generator.random() if piece[0] != 2 else 0)
    order = sorted(
        range(len(pieces)), key=lambda i: (pieces[i][0] % 2, i)
    )  # clips 0, 2, 4 mixed with none, then 1, 3, 5
    messages = [pieces[i] for i in order]
    messages += [(key, Decoded(b"", 0, "", "")) for key in clips if key != 3] + [(3, Failed("cut", ""))]
    found = {}

    def finish(clip, end, embeddings):
        found[clip] = embeddings

    unpack = Unpacker(finish)
    for batch in pack_frames(messages, rows, 2):
        assert batch.squares.shape == (rows, 3, 2, 2)
        unpack(batch, batch.squares.flatten(1).numpy().astype(np.float16))
    assert found.pop(3) is None
    assert sorted(found) == [0, 1, 2, 4, 5]
    for key, embeddings in found.items():
        np.testing.assert_array_equal(embeddings, clips[key].reshape(len(embeddings), -1))
    assert not unpack.parts


@pytest.mark.parametrize("kind", ["clip", "efficientnet_lite2"])
def test_an_embedding_does_not_depend_on_its_batch_to_the_last_bit(kind, request):
    """Why batches have one size: sums of floats depend on it, but not on the row or on the other rows."""
    from im2wav.media.encoder import ClipEncoder, EfficientNetLite2Encoder

    encoder = ClipEncoder(weights=str(request.getfixturevalue("clip_file")[0])) if kind == "clip" else None
    encoder = encoder or EfficientNetLite2Encoder()
    generator = torch.Generator().manual_seed(0)
    squares = torch.randint(0, 256, (5, 3, encoder.size, encoder.size), dtype=torch.uint8, generator=generator)
    first = encoder(squares[[0, 1, 2, 3]])
    second = encoder(squares[[3, 0, 4, 1]])
    assert torch.equal(first[[0, 1, 3]], second[[1, 3, 0]])
