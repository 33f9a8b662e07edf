"""Audio files with no or very few samples: one line that names the file, wherever a file is read."""

from types import SimpleNamespace

import numpy as np
import pytest

from conftest import command, tone, write_wav
from im2wav.decoding import SamplingOptions
from im2wav.decoding.decoder import Networks
from im2wav.evaluation.audio_files import SHORTEST, Reading, describe_audio, find_audio_files
from im2wav.inference.inputs import Input
from im2wav.inference.request import make_request
from im2wav.media.reading import MediaError, read_audio


@pytest.mark.parametrize("rate", [8000, 44100])
@pytest.mark.parametrize("suffix", ["wav", "aiff"])
@pytest.mark.parametrize("samples", [0, 1, 10, 400])
@pytest.mark.parametrize("where", ["generated", "reference"])
def test_evaluate_names_the_file(tmp_path, capfd, samples, suffix, rate, where):
    for folder in ("generated", "reference"):
        (tmp_path / folder).mkdir()
        write_wav(tmp_path / folder / "good.wav", tone(1.0, rate), rate)
    write_wav(tmp_path / where / f"a.b.{suffix}", np.full(samples, 0.5), rate)
    arguments = [f"{name}={tmp_path / name}" for name in ("generated", "reference", "out")]
    assert command("evaluate", *arguments, "missing=skip") == 2
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: {where}={tmp_path / where}: 1 files cannot be used: a.b.{suffix} (too short: ")
    assert f"{samples} samples, expected at least 0.1 s" in line
    assert not (tmp_path / "out").exists()


def test_a_length_that_networks_cannot_use(tmp_path, capfd):
    assert command("evaluate", f"generated={tmp_path}", f"reference={tmp_path}", "seconds=0.01") == 2
    assert capfd.readouterr().err == "error: seconds=0.01: expected at least 0.1\n"


def test_the_shortest_audio_that_is_accepted_is_enough_for_every_network(tmp_path):
    pytest.importorskip("ai_edge_litert")
    from im2wav.evaluation.taggers import Yamnet
    from im2wav.report.plots import log_mel, mel_image

    write_wav(tmp_path / "a.wav", tone(SHORTEST))
    (file,) = find_audio_files(tmp_path, "generated")
    wav = Reading(16000, file.seconds, -20).raw(file)
    assert Yamnet().analyse(wav).rows.isfinite().all()
    assert log_mel(wav, 16000).isfinite().all()
    assert mel_image(wav, 16000).size[0] > 0


def test_audio_that_only_ffmpeg_reads_has_its_length(tmp_path):
    import av

    path = tmp_path / "a.m4a"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone(1.0, 44100).astype(np.float32)[None], format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    file = describe_audio(path, "a")
    assert file.rate == 44100
    assert file.seconds == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("samples", [0, 1, 31])
def test_an_audio_prompt_that_is_too_short_is_named(tmp_path, samples):
    networks = SimpleNamespace(codec=SimpleNamespace(hop_lengths={"low": 32}), device="cpu")
    networks.encode = lambda wav, pad=True: Networks.encode(networks, wav, pad)
    model = SimpleNamespace(sample_rate=16000, networks=networks, recording=160_000)
    path = write_wav(tmp_path / "short.wav", np.full(samples, 0.5))
    with pytest.raises(ValueError, match=r"short\.wav.* (no samples|is too short: expected at least 32)"):
        make_request(model, Input("a", "photo"), SamplingOptions(), continue_from=path)


@pytest.mark.parametrize("rate", [7350, 16000, 44100, 192000])
@pytest.mark.parametrize("samples", [0, 1, 2, 3])
def test_reading_gives_samples_or_names_the_file(tmp_path, samples, rate):
    path = write_wav(tmp_path / "a.wav", np.full(samples, 0.5), rate)
    if samples:
        wav = read_audio(path, 16000)
        assert len(wav) == -(-samples * 16000 // rate)
    else:
        with pytest.raises(MediaError, match=r"empty audio: .*a.wav contains no samples"):
            read_audio(path, 16000)
