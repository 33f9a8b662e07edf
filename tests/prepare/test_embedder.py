"""Embedding overlaps: the copy of a batch starts before the previous one is unpacked, and waits for nothing later.

Batches are packed from the frames of several clips, of which each gets its own embeddings.
"""

import numpy as np
import pytest
import torch
from torch import nn

from im2wav.prepare import embedder
from im2wav.prepare.clip_reader import Decoded, Failed
from im2wav.prepare.embedder import Embedder, HostCopy, Unpacker, pack_frames


def needs_cuda(test):
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")(test))


class Trainer:
    global_rank, world_size = 0, 1

    class strategy:  # noqa: N801
        barrier = staticmethod(lambda: None)


def embed(clips, rows):
    found = {}
    model = Embedder(nn.Flatten(), lambda clip, end, embeddings: found.update({clip: embeddings}), lambda: None, 1)
    model._trainer = Trainer()
    messages = [(number, message) for number, clip in clips.items() for message in (clip, Decoded(b"", 0, "", ""))]
    model.on_predict_start()
    for number, batch in enumerate(pack_frames(messages, rows, 2)):
        model.predict_step(model.transfer_batch_to_device(batch, torch.device("cpu"), 0), number)
    model.on_predict_end()
    return found


def test_a_batch_is_copied_before_the_previous_one_is_waited_for(monkeypatch):
    events = []

    class Recorder(HostCopy):
        count = 0

        def __init__(self, tensor):
            super().__init__(tensor)
            self.number, Recorder.count = Recorder.count, Recorder.count + 1
            events.append(("copy", self.number))

        def numpy(self):
            events.append(("wait", self.number))
            return super().numpy()

    monkeypatch.setattr(embedder, "HostCopy", Recorder)
    generator = np.random.default_rng(0)
    clips = {number: generator.integers(0, 255, (5, 3, 2, 2), dtype=np.uint8) for number in range(3)}
    found = embed(clips, rows=4)
    for number, clip in clips.items():
        np.testing.assert_array_equal(found[number], clip.reshape(5, 12))
    order = [("copy", 0), ("copy", 1), ("wait", 0), ("copy", 2), ("wait", 1), ("copy", 3), ("wait", 2), ("wait", 3)]
    assert events == order


@needs_cuda
def test_waiting_for_a_copy_does_not_wait_for_later_work():
    values = torch.arange(1000, device="cuda").half()
    copy = HostCopy(values)
    torch.cuda._sleep(2_000_000_000)  # cycles: about a second
    later = torch.cuda.Event()
    later.record()
    np.testing.assert_array_equal(copy.numpy(), np.arange(1000).astype(np.float16))
    assert not later.query()


@needs_cuda
def test_packed_batches_are_pinned_on_request():
    frames = np.ones((3, 3, 2, 2), np.uint8)
    (batch,) = pack_frames([(0, frames), (0, Decoded(b"", 0, "", ""))], 4, 2, pinned=True)
    assert batch.squares.is_pinned()
    assert batch.squares[3:].sum() == 0


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
