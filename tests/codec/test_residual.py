"""The residual codec: spectra, quantiser, both levels, streaming, initialisation and adversarial training."""

import pytest
import torch

from im2wav.codec import ResidualCodec
from im2wav.codec.codec import BlockDecoder, decode_wave
from im2wav.codec.discriminator import Discriminator
from im2wav.codec.losses import Bandwidth, SpectralLoss, texture_distance
from im2wav.codec.quantizer import k_means
from im2wav.codec.spectra import HOP, band_filters, code_noise, spectra, waveform, with_noise

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


@pytest.mark.parametrize("noise_bands", [0, 4])
def test_streamed_audio_equals_audio_decoded_at_once(noise_bands):
    net = codec(noise_bands=noise_bands)
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
    got = nets[0].decoder.spectrum(latents)[0].abs().log1p()
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


def test_noise_is_white_and_a_function_of_the_codes_of_a_frame():
    codes = torch.randint(1024, (2, 200, 4))
    noise = code_noise(codes)
    assert noise.shape == (2, 1, 200 * 320)
    frames = noise.view(2, 200, 320)
    torch.testing.assert_close(code_noise(codes[:, 7:9])[:, 0], frames[:, 7:9].flatten(1))
    power = torch.fft.rfft(frames.flatten(0, 1)).abs().square().mean(0)[1:-1] / 320
    assert abs(power.mean() - 1) < 0.02
    assert power.std() < 0.1  # 1 / sqrt(400) of a white spectrum
    others = [frames[:, 1:], code_noise(codes, salt=1).view(2, 200, 320)[:, :-1]]
    changed = codes.clone()
    changed[..., 3] += 1
    others.append(code_noise(changed).view(2, 200, 320)[:, :-1])
    for other in others:
        assert (frames[:, :-1] * other).mean(-1).abs().max() < 0.3  # 5 deviations


def test_bands_of_noise_cover_all_bins():
    filters = band_filters(5)
    torch.testing.assert_close(filters.sum(0), torch.ones(321))
    assert filters[0].argmax() == 0
    assert filters[-1].argmax() == 320
    assert filters.argmax(1).diff().diff().min() > 0  # wider towards high frequencies


def test_decoded_noise_keeps_the_power_of_the_spectra():
    net = codec(noise_bands=4)
    codes = torch.randint(32, (4, 100, 4))
    latents, noise = net.quantizer.decode(codes), code_noise(codes)
    torch.nn.init.constant_(net.decoder.share.bias, 30.0)  # nothing but noise
    spectrum, share = net.decoder.spectrum(latents)
    torch.testing.assert_close(share, torch.ones_like(share))
    power = with_noise(spectrum, share, noise).abs().square().mean()
    torch.testing.assert_close(power, spectrum.abs().square().mean(), rtol=0.1, atol=0)
    one, other = net.decode(codes, "up"), net.decoder(latents, code_noise(codes, salt=1))
    assert torch.nn.functional.cosine_similarity(one, other, -1).abs().max() < 0.3
    torch.nn.init.constant_(net.decoder.share.bias, -30.0)
    torch.testing.assert_close(net.decode(codes, "up"), net.decoder(latents))


def test_texture_tells_noise_from_tones_and_clicks_and_not_noise_from_noise():
    torch.manual_seed(0)
    noise, other = 0.1 * torch.randn(2, 4, 1, 6400)
    tone = 0.2 * torch.sin(6.2832 * 440 / 16000 * torch.arange(6400)).expand(4, 1, -1)
    clicks = torch.zeros(4, 1, 6400)
    clicks[..., ::800] = 3.0
    between = {name: texture_distance(noise, wav, 16000, 1e-2).item() for name, wav in
               {"noise": other, "half as loud": 0.5 * other, "tone": tone, "clicks": clicks}.items()}  # fmt: skip
    assert between["noise"] < 0.15
    assert between["half as loud"] < 0.15
    assert between["tone"] > 4 * between["noise"]
    assert between["clicks"] > 4 * between["noise"]


@pytest.mark.parametrize("kind", ["noise", "tones"])
def test_shares_of_noise_learn_the_texture_and_not_the_spectra(kind):
    """What is smooth without noise, as decoders make rain, gets noise; the loss of spectra has no part in it."""
    torch.manual_seed(0)
    share, finite = torch.full((1, 321, 40), -1.0, requires_grad=True), []
    wav = 0.2 * torch.randn(4, 1, 6400) if kind == "noise" else torch.stack(tones(4))
    spectrum = spectra(wav) if kind == "tones" else spectra(wav).abs().mean((0, 2), keepdim=True).expand(1, 321, 40)
    optimizer = torch.optim.Adam([share], 0.2)
    for salt in range(40):
        noise = code_noise(torch.randint(32, (len(wav), 20, 4)), salt)
        noisy = waveform(with_noise(spectrum + 0j, share.sigmoid(), noise))
        optimizer.zero_grad()
        texture_distance(wav, noisy, 16000, 1e-2).backward()
        finite.append(share.grad.isfinite().all())
        optimizer.step()
    assert all(finite)
    learnt = share.sigmoid().mean()  # 0.27 at the beginning
    assert learnt > 0.3 if kind == "noise" else learnt < 0.15

    net = codec(noise_bands=4).train()
    for bias in (-30.0, 0.0, 30.0):
        torch.nn.init.constant_(net.decoder.share.bias, bias)
        out = net.training_output(wav, [0, 1, 2, 3])
        for weights in ({"texture": 0.0}, {"mel": 0.0, "stft": 0.0, "commit": 0.0}):
            net.zero_grad()
            loss, parts = SpectralLoss(**weights)(wav, out, Bandwidth())
            loss.backward(retain_graph=True)
            of_share = net.decoder.share.weight.grad.abs().sum() > 1e-8
            assert of_share == ("texture" not in weights and bias == 0)
            assert (net.decoder.out.weight.grad.abs().sum() > 0) == ("texture" in weights)
            assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())
        assert parts["texture/up"] > 0
