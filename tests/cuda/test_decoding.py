"""Codes are sampled on the card in a CUDA graph: the codes of the CPU, without a wait, at a known cost."""

import copy
import gc
import threading

import pytest
import torch

from cuda.budget import check_budget

pytestmark = pytest.mark.fake_cuda
LENGTH = 40


def prior(level: str, width: int = 32, depth: int = 6):
    from im2wav.prior import Prior

    options = {"frames": True, "timing": True, "guidance": True}
    if level == "up":
        options = {"upsampler": {"width": 16, "depth": 2}}
    torch.manual_seed(0)
    context = {"low": 128, "up": 512}[level]
    net = Prior(
        64, context, {"width": width, "depth": depth, "blocks": 8}, {"clip_dim": 16, "map_width": 16, **options}
    )
    return net.eval().requires_grad_(False)


def conditions(level: str, batch: int, seed: int):
    from im2wav.prior import Conditions, Timing

    random = torch.Generator().manual_seed(seed)
    timing = Timing(*(torch.full((batch,), value) for value in (160000.0, 0.0, 65536.0)))
    coarse = torch.randint(0, 64, (batch, 128), generator=random) if level == "up" else None
    return Conditions(torch.randn(batch, 3, 16, generator=random), timing, coarse)


def uniforms(batch: int, seed: int) -> torch.Tensor:
    return torch.rand(batch, LENGTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def start(decoder, level: str, seed: int = 0, batch: int = 2, prefix: int = 0, negative: bool = False, **options):
    """Begin to sample codes on the decoder's device."""
    from im2wav.decoding import SamplingOptions

    device = decoder.device
    given = torch.randint(0, 64, (batch, prefix), generator=torch.Generator().manual_seed(seed)).to(device)
    return decoder.start(
        conditions(level, batch, seed).to(device),
        uniforms(batch, seed).to(device),
        SamplingOptions(**options),
        given if prefix else None,
        conditions(level, batch, seed + 100).to(device) if negative else None,
    )


def sample(decoder, level: str, **options) -> torch.Tensor:
    decoding = start(decoder, level, **options)
    decoding.steps()
    codes = decoding.codes.cpu().clone()
    decoding.release()
    return codes


def decoders(level: str, *devices: str):
    from im2wav.decoding import Decoder

    net = prior(level)
    return [Decoder(copy.deepcopy(net).to(torch.device(device))) for device in devices]


@pytest.mark.parametrize("level", ["low", "up"])
@pytest.mark.parametrize(
    "options",
    [{}, {"prefix": 19}, {"top_k": 5, "prefix": 9}, {"top_p": 0.6}, {"negative": True}],
    ids=["plain", "prefix", "top_k", "top_p", "negative"],
)
def test_codes_in_fp32_are_those_of_the_cpu_also_when_the_graph_is_used_again(machine, level, options):
    if level == "up" and "negative" in options:
        options = {**options, "negative": False, "guidance_scale": 1.0}
    cpu, card = decoders(level, "cpu", "cuda")
    for seed in (1, 2):
        assert torch.equal(sample(card, level, seed=seed, **options), sample(cpu, level, seed=seed, **options))
    assert len(machine.captured) == 1


@pytest.mark.parametrize("level", ["low", "up"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_nothing_waits_after_the_first_code(machine, level, precision):
    from im2wav.decoding import Decoder

    decoding = start(Decoder(prior(level).to("cuda"), precision), level)
    decoding.step()
    machine.syncs.clear()
    decoding.steps(20)
    assert not +machine.syncs


@pytest.mark.parametrize("level", ["low", "up"])
def test_a_code_at_depth_48_stays_within_its_budget(machine, level):
    from im2wav.decoding import Decoder

    decoding = start(Decoder(prior(level, width=64, depth=48).to("cuda"), "bf16"), level, batch=1)
    decoding.step()
    machine.syncs.clear()
    decoding.step()
    (operations,) = machine.captured
    measured = {"operations": operations.total(), "syncs after the first code": machine.syncs.total()}
    check_budget(f"code of {level}, depth 48", measured, operations.most_common())


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
def test_codes_on_a_device_that_is_not_the_current_one(two_devices):
    cpu, card = decoders("low", "cpu", "cuda:1")
    assert torch.equal(sample(card, "low"), sample(cpu, "low"))


def test_codes_on_another_current_device(two_devices):
    torch.cuda.set_device(1)
    cpu, card = decoders("low", "cpu", "cuda")
    assert card.device.index == 1
    assert torch.equal(sample(card, "low"), sample(cpu, "low"))


def test_another_thread_may_use_cuda_during_the_capture(machine):
    from cuda.graph import during_capture

    def use_cuda_in_a_thread():  # as the thread that pins the batches of a DataLoader does
        thread = threading.Thread(target=torch.cuda.Event().query)
        thread.start()
        thread.join()

    during_capture.append(use_cuda_in_a_thread)
    try:
        (card,) = decoders("low", "cuda")
        start(card, "low").steps(3)
    finally:
        during_capture.clear()


def test_memory_is_freed_with_the_decoder_without_garbage_collection(machine):
    gc.collect()
    gc.disable()
    try:
        before = machine.allocated()
        (card,) = decoders("low", "cuda")
        sample(card, "low")
        assert machine.allocated() > before
        del card
        assert machine.allocated() == before
    finally:
        gc.enable()
