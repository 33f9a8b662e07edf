"""The residual codec: spectra, quantiser, both levels, streaming, initialisation and adversarial training."""

import pytest
import torch

from im2wav.codec import ResidualCodec
from im2wav.codec.codec import BlockDecoder, decode_wave
from im2wav.codec.discriminator import Discriminator
from im2wav.codec.losses import Bandwidth, SpectralLoss
from im2wav.codec.quantizer import k_means
from im2wav.codec.residual import HOP, spectra, waveform

SIZES = {"codebook_size": 32, "codebooks": 4, "latent": 12, "encoder_width": 16, "encoder_depth": 1}


def codec(**options) -> ResidualCodec:
    torch.manual_seed(0)
    net = ResidualCodec(**{**SIZES, "decoder_width": 16, "decoder_depth": 2, **options})
    net.initialise_from(tones(6))
    return net.eval()


def tones(count: int, samples: int = 6400) -> list[torch.Tensor]:
    """Sums of two sines and some noise, [1, N]."""
    torch.manual_seed(3)
    time = torch.arange(samples) / 16000
    parts = [torch.sin(6.2832 * time * f)[None] for f in 200 + 3000 * torch.rand(2 * count)]
    return [0.3 * a + 0.2 * b + 0.01 * torch.randn(1, samples) for a, b in zip(parts[::2], parts[1::2], strict=True)]


def test_spectra_can_be_inverted():
    wav = torch.randn(2, 1, 3200)
    assert spectra(wav).shape == (2, 321, 3200 // HOP)
    torch.testing.assert_close(waveform(spectra(wav)), wav, atol=1e-5, rtol=0)


def test_levels_are_the_first_codebooks_and_all_of_them():
    net, wav = codec(), torch.stack(tones(3))
    codes = net.encode(wav)
    assert codes["low"].shape == (3, 20, 2)
    assert codes["up"].shape == (3, 20, 4)
    assert torch.equal(codes["low"], codes["up"][..., :2])
    assert codes["up"].min() >= 0
    assert codes["up"].max() < 32
    assert torch.equal(net.encode(wav, ["low"])["low"], codes["low"])
    for level in ("low", "up"):
        assert net.decode(codes, level).shape == wav.shape
        assert torch.equal(net.decode(codes, level), net.decode(codes[level], level))
    with pytest.raises(ValueError, match="multiple of 320"):
        net.encode(wav[..., :-1])
    with pytest.raises(ValueError, match="low_codebooks=4"):
        codec(low_codebooks=4)


def test_each_codebook_brings_the_quantised_latents_closer():
    net, wav = codec(), torch.stack(tones(6))
    with torch.no_grad():
        latents = net.encoder(wav)
        parts = [latents - net.quantizer.decode(net.quantizer.encode(latents, n)) for n in range(1, 5)]
    errors = [part.square().mean().item() for part in parts]
    assert sorted(errors, reverse=True) == errors
    assert errors[-1] < 0.5 * latents.square().mean()


def test_streamed_audio_equals_audio_decoded_at_once():
    net = codec()
    codes = torch.randint(32, (150, 4))
    decoder, pieces = BlockDecoder(net, "up", len(codes), 3200), []
    for known in range(0, 151, 7):
        pieces += decoder.push(codes, known)
    pieces += decoder.push(codes, 150)
    assert torch.equal(torch.cat(pieces), decode_wave(net, codes, "up", 3200))
    whole = net.decode(codes[None], "up")[0, 0].clamp(-1, 1)
    torch.testing.assert_close(torch.cat(pieces), whole, atol=1e-5, rtol=0)


def test_codes_depend_on_no_more_audio_than_the_encoder_says():
    net, wav = codec(), torch.randn(1, 1, 320 * 60) * 0.1
    changed = wav.clone()
    changed[..., 320 * 30 : 320 * 31] += torch.randn(320)
    differs = (net.encode(wav)["up"] != net.encode(changed)["up"]).any(-1)[0].nonzero().flatten()
    assert len(differs)
    assert (differs - 30).abs().max() * 320 <= net.encoder_reach


def test_initialisation_is_deterministic_and_reconstructs_magnitudes():
    nets = [codec() for _ in range(2)]
    for one, other in zip(nets[0].state_dict().values(), nets[1].state_dict().values(), strict=True):
        assert torch.equal(one, other)
    wav = torch.stack(tones(6))
    latents = nets[0].encoder(wav)
    want = spectra(wav).abs().log1p()
    got = nets[0].decoder.spectrum(latents).abs().log1p()
    assert (got - want).abs().mean() < 0.4 * (want - want.mean()).abs().mean()


def test_k_means_finds_separated_centres_and_leaves_none_empty():
    torch.manual_seed(0)
    true = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    points = torch.cat([centre + 0.1 * torch.randn(200, 2) for centre in true])
    centres, counts = k_means(points, 4)
    assert counts.sum() == 800
    assert counts.min() > 0
    assert torch.cdist(true, centres).min(1).values.max() < 0.1


def test_quantiser_dropout_depends_on_the_seed_of_an_item_only():
    net = codec(dropout=0.5)
    counts = net.counts(range(200))
    assert set(counts.tolist()) == {2, 3, 4}
    assert torch.equal(counts[[7, 3]], net.counts([7, 3]))
    assert set(codec(dropout=0.0).counts(range(20)).tolist()) == {4}


def test_one_step_trains_codec_and_discriminator_with_gradients_of_their_own_losses():
    net, judge = codec().train(), Discriminator(n_ffts=[256], channels=4)
    wav = torch.stack(tones(2))
    out = net(wav, torch.tensor([4, 2]))
    loss, parts = SpectralLoss()(wav, out, Bandwidth())
    for_codec, for_judge, judged = judge.losses(wav, out.wav["up"])
    assert {*parts, *judged} == {"mel/up", "stft/up", "commit/up", "discriminator", "adversarial", "matching"}
    own = torch.autograd.grad(for_judge, [*judge.parameters()], retain_graph=True)
    assert all(gradient.isfinite().all() for gradient in own)
    assert own[0].abs().sum() > 0
    (loss + for_codec + for_judge).backward()
    for parameter, gradient in zip(judge.parameters(), own, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)  # nothing of the codec's losses
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_training_lowers_the_loss():
    net, wav = codec().train(), torch.stack(tones(6))
    optimizer, losses = torch.optim.AdamW(net.parameters(), 3e-3), []
    for _ in range(25):
        loss, _ = SpectralLoss()(wav, net(wav, torch.full((6,), 4)), Bandwidth())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
