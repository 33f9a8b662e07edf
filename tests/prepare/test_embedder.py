"""Embedding overlaps: the copy of a batch starts before the previous one is unpacked, and waits for nothing later."""

import numpy as np
import pytest
import torch
from torch import nn

from im2wav.prepare import embedder
from im2wav.prepare.clip_reader import Decoded
from im2wav.prepare.embedder import Embedder, HostCopy, pack_frames


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
