"""Generation on a real card: nothing waits, and a reused CUDA graph generates the same codes."""

import pytest
import torch

from conftest import ASSETS
from cuda.test_decoding import prior, start

pytestmark = pytest.mark.gpu


def test_a_seed_gives_the_same_codes_twice(trained):
    from im2wav import Im2Wav

    model = Im2Wav.from_pretrained(trained / "base", device="cuda")
    first, second = (model.generate(ASSETS / "images" / "bird_02.jpg", seed=1) for _ in range(2))
    assert torch.equal(first.codes["up"], second.codes["up"])  # also with the graph of the first time


@pytest.mark.parametrize("level", ["low", "up"])
def test_nothing_waits_after_the_first_code(level):
    from im2wav.decoding import Decoder

    decoding = start(Decoder(prior(level).to("cuda"), "bf16"), level)
    decoding.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        decoding.steps(20)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert decoding.codes[:, :21].max() < 64
