import math

import pytest
import torch

from im2wav.codec import LEVELS, AudioCodec
from im2wav.codec.losses import Bandwidth, CodecLoss, linf, magnitude, multispectral_distance, spectral_convergence
from im2wav.codec.quantizer import Codebook


def tiny(**options) -> AudioCodec:
    torch.manual_seed(0)
    return AudioCodec(**{"width": 8, "depth": 2, "code_dim": 16, "codebook_size": 32, **options})


def test_shapes_and_hops():
    codec = tiny().eval()
    wav = torch.randn(2, 1, 4096) * 0.1
    codec.train()(wav)  # the first step fills the codebooks
    codec.eval()
    codes = codec.encode(wav)
    assert {level: tuple(c.shape) for level, c in codes.items()} == {"up": (2, 512), "low": (2, 128)}
    output = codec(wav)
    for level in LEVELS:
        assert output.wav[level].shape == wav.shape
        assert (output.codes[level] == codes[level]).all()
        torch.testing.assert_close(output.wav[level], codec.decode(codes, level))
        torch.testing.assert_close(codec.decode(codes[level], level), codec.decode(codes, level))


def test_official_size_has_the_official_number_of_parameters():
    with torch.device("meta"):
        assert sum(p.numel() for p in AudioCodec().parameters()) == 448_770


def test_straight_through_is_the_identity_for_gradients():
    book = Codebook(4, 3).train()
    latents = torch.randn(2, 3, 8, requires_grad=True)
    weight = torch.randn(2, 3, 8)
    (book(latents).latents * weight).sum().backward()
    torch.testing.assert_close(latents.grad, weight)


def four_vectors(**options) -> tuple[Codebook, torch.Tensor]:
    book = Codebook(2, 1, decay=0.9, restart_threshold=0.5, **options).train()
    book.codebook.copy_(torch.tensor([[0.0], [10.0]]))
    book.code_sum.copy_(torch.tensor([[0.0], [10.0]]))
    book.code_usage.fill_(1.0)
    book.initialised.fill_(True)
    return book, torch.tensor([1.0, 2.0, 3.0, 8.0]).view(1, 1, 4)


def test_moving_averages_by_hand_on_four_vectors():
    book, latents = four_vectors()
    quantised = book(latents)
    assert quantised.codes.tolist() == [[0, 0, 0, 1]]
    assert quantised.latents.flatten().tolist() == [0, 0, 0, 10]  # of the codebook before the update
    assert quantised.commit_loss.item() == pytest.approx((1 + 4 + 9 + 4) / 4)
    # sums 0.9*0 + 0.1*6 and 0.9*10 + 0.1*8; usages 0.9 + 0.1*3 and 0.9 + 0.1
    torch.testing.assert_close(book.codebook.flatten(), torch.tensor([0.6 / 1.2, 9.8 / 1.0]))
    book.eval()(latents)
    torch.testing.assert_close(book.code_usage, torch.tensor([1.2, 1.0]))  # evaluation changes nothing


@pytest.mark.parametrize("reset", [True, False])
def test_a_dead_code_restarts_at_a_latent(reset):
    book, latents = four_vectors(reset_usage_on_restart=reset)
    book.code_usage[1] = 0.4
    book(latents.clamp_max(3))  # nobody chooses code 1: usage 0.36 < 0.5
    assert book.codebook[1].item() in (1, 2, 3)
    if reset:
        assert book.code_usage[1].item() == 0.5
        torch.testing.assert_close(book.code_sum[1], 0.5 * book.codebook[1])
    else:
        assert book.code_usage[1].item() == pytest.approx(0.36)
        assert book.code_sum[1].item() == pytest.approx(9.0)


def restarting(size: int, latents: torch.Tensor) -> Codebook:
    """A fresh codebook after three updates in which most codes are drawn anew."""
    book = Codebook(size, 1, restart_threshold=1.5).train()
    for step in range(3):
        torch.manual_seed(step)
        book(latents + step)
    return book


def _two_processes(rank: int, port: int, latents: torch.Tensor, queue) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    book, _ = four_vectors()
    book(latents[rank : rank + 1])
    restarted = [restarting(size, latents[rank : rank + 1]).codebook.numpy() for size in (4, 16)]
    queue.put((rank, book.codebook.numpy(), book.code_usage.numpy(), restarted))
    dist.destroy_process_group()


def test_two_processes_update_as_one_does_on_the_joined_batch():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    latents = torch.tensor([[1.0, 2.0, 9.0], [3.0, 8.0, 7.0]]).view(2, 1, 3)
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    workers = [context.Process(target=_two_processes, args=(rank, port, latents, queue)) for rank in range(2)]
    for worker in workers:
        worker.start()
    found = [queue.get() for _ in workers]
    for worker in workers:
        worker.join()
    book, _ = four_vectors()
    book(latents)
    for _, codebook, usage, restarted in found:
        torch.testing.assert_close(torch.from_numpy(codebook), book.codebook)
        torch.testing.assert_close(torch.from_numpy(usage), book.code_usage)
        for size, value in zip((4, 16), restarted, strict=True):  # drawn from both; 16 are more than there are latents
            torch.testing.assert_close(torch.from_numpy(value), restarting(size, latents).codebook)
    assert (found[0][1] == found[1][1]).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_batch_leaves_the_codebook_as_it_was(bad):
    book, latents = four_vectors()
    before = {name: value.clone() for name, value in book.state_dict().items()}
    book(torch.where(latents > 7, bad, latents))
    assert all((value == before[name]).all() for name, value in book.state_dict().items())
    fresh = Codebook(4, 1)
    fresh(torch.full((1, 1, 8), bad))
    assert not fresh.initialised


def test_losses_by_hand():
    target = torch.zeros(2, 1, 4096)
    output = target.clone()
    output[0, 0, :4] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert linf(output - target, 2).item() == pytest.approx((16 + 9) / 2 / 2)
    assert multispectral_distance(target, target).tolist() == [0, 0]
    assert spectral_convergence(target, output).tolist() == [0, 0]  # the target is silent
    assert spectral_convergence(output, 2 * output)[0].item() == pytest.approx(1.0, rel=1e-4)
    spectrum = magnitude(torch.ones(1, 1, 4096), 1024, 256, 512)
    assert spectrum.shape == (1, 513, 17)
    assert spectrum[0, 0].mean().item() == pytest.approx(256, rel=1e-4)  # the sum of a Hann window of 512


def test_equal_spectra_give_no_nan_gradient():
    output = torch.zeros(1, 1, 4096, requires_grad=True)
    multispectral_distance(torch.zeros(1, 1, 4096), output).sum().backward()
    assert output.grad.isfinite().all()


def test_losses_are_relative_to_the_collection():
    codec, wav = tiny().eval(), torch.randn(2, 1, 4096) * 0.1
    output = codec(wav)
    one, _ = CodecLoss(commit=0)(wav, output, Bandwidth(l1=1, l2=1, spec=1))
    half, _ = CodecLoss(commit=0)(wav, output, Bandwidth(l1=2, l2=2, spec=2))
    assert half.item() == pytest.approx(one.item() / 2, rel=1e-5)


def test_bandwidth_of_a_sine():
    wave = 0.5 * torch.sin(torch.arange(8000) * 2 * math.pi / 40)[None]
    found = Bandwidth.measure([wave, wave])
    assert found.l2 == pytest.approx(0.125, rel=1e-4)
    assert found.l1 == pytest.approx(1 / math.pi, rel=1e-2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tiny(strides=[[2, 2]]), "2 groups"),
        (lambda: tiny(strides=[[2, 3], [2]]), "even numbers"),
        (lambda: tiny().encode(torch.zeros(1, 1, 100)), "multiple of 32"),
        (lambda: tiny().encode(torch.zeros(1, 2, 4096)), r"\[B, 1, N\]"),
        (lambda: tiny().decode(torch.zeros(1, 4, dtype=torch.long), "middle"), "level='middle'"),
        (lambda: Bandwidth.measure([torch.zeros(1, 4096)]), "silent"),
        (lambda: Bandwidth.measure([]), "silent or missing"),
    ],
)
def test_what_does_not_fit_is_rejected(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_codebook_keeps_fp32_where_its_module_is_cast_to_bf16():
    codec = AudioCodec(width=8, depth=1, code_dim=8, codebook_size=16)
    with torch.no_grad():
        codec.codebooks["up"].codebook.uniform_()
    before = codec.codebooks["up"].codebook.clone()
    codec.to(torch.bfloat16)
    assert {p.dtype for p in codec.parameters()} == {torch.bfloat16}
    assert torch.equal(codec.codebooks["up"].codebook, before)
    assert codec.double().codebooks["up"].codebook.dtype == torch.float64
