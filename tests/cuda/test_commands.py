"""The commands that use trained models, on the card: `sample`, `embed`, `tokenize`, `evaluate`, and the Python API."""

import csv
import gc
import shutil

import pytest
import soundfile
import torch

from conftest import ASSETS, command, write_mp4
from cuda.training import WINDOW

pytestmark = [pytest.mark.fake_cuda, pytest.mark.slow]
PHOTO = ASSETS / "images" / "bird_02.jpg"
OTHER = ASSETS / "images" / "cat_03.jpg"
WAV = torch.randn(WINDOW, generator=torch.Generator().manual_seed(0)) * 0.1


@pytest.fixture
def sample(machine, card_runs, tmp_path):
    """Call `sample`: the files it wrote, by level."""

    def call(*arguments):
        shared = ["run_name=base", f"paths.runs={card_runs.folder}", f"out={tmp_path / 'out'}"]
        assert command("sample", *shared, *arguments) == 0
        assert machine.captured or "dry_run=true" in arguments, "no code was sampled on the card"
        return {level: sorted((tmp_path / "out" / level).glob("*.wav")) for level in ("up", "low")}

    return call


@pytest.fixture(scope="session")
def cpu_model(card_runs):
    from im2wav import Im2Wav

    return Im2Wav.from_pretrained(card_runs.folder / "base", device="cpu")


def on(card_runs, device: str, **options):
    from im2wav import Im2Wav

    return Im2Wav.from_pretrained(card_runs.folder / "base", device=device, **{"precision": "fp32", **options})


def assert_same(found, expected) -> None:
    """Two generated sounds are equal: all codes, and the samples but for rounding."""
    for level, codes in expected.codes.items():
        assert torch.equal(found.codes[level], codes), level
    torch.testing.assert_close(found.wav, expected.wav, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "request_of",
    [
        {},
        {"seconds": 0.15},
        {"negative": OTHER},
        {"continue_from": WAV, "seconds": 0.125},
        {"num_drafts": 3},
        {"top_k": 5, "temperature": 0.9},
    ],
    ids=["photo", "several_windows", "negative", "continuation", "drafts", "top_k"],
)
def test_generation_in_fp32_gives_the_codes_of_the_cpu(machine, card_runs, cpu_model, request_of):
    expected = cpu_model.generate(PHOTO, seed=1, **request_of)
    model = on(card_runs, "cuda")
    assert_same(model.generate(PHOTO, seed=1, **request_of), expected)
    assert_same(model.generate(PHOTO, seed=1, **request_of), expected)  # with the graphs of the first time


def test_inpainting_gives_the_codes_of_the_cpu(machine, card_runs, cpu_model):
    options = {"inpaint": cpu_model.generate(PHOTO, seed=1, seconds=0.15), "inpaint_interval": [0.05, 0.1], "seed": 2}
    assert_same(on(card_runs, "cuda").generate(OTHER, **options), cpu_model.generate(OTHER, **options))


def test_streaming_gives_the_samples_of_generate(machine, card_runs):
    model = on(card_runs, "cuda")
    streamed = torch.cat(list(model.stream(PHOTO, seed=1, seconds=0.15)))
    torch.testing.assert_close(streamed, model.generate(PHOTO, seed=1, seconds=0.15).wav, rtol=0, atol=1e-5)


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
def test_generation_on_a_named_device(two_devices, card_runs, cpu_model, device):
    assert_same(on(card_runs, device).generate(PHOTO, seed=1), cpu_model.generate(PHOTO, seed=1))


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
def test_models_on_two_devices_in_one_process(two_devices, card_runs, cpu_model):
    models = [on(card_runs, "cuda:0"), on(card_runs, "cuda:1")]
    for seed in (1, 2):
        expected = cpu_model.generate(PHOTO, seed=seed)
        for model in models:
            assert_same(model.generate(PHOTO, seed=seed), expected)


def test_memory_is_freed_with_the_model_without_garbage_collection(machine, card_runs):
    gc.collect()
    gc.disable()
    try:
        before = machine.allocated()
        model = on(card_runs, "cuda")
        model.generate(PHOTO, seed=1)
        assert machine.allocated() > before
        del model
        assert machine.allocated() == before
    finally:
        gc.enable()


def test_sample_a_photo(sample):
    files = sample(f"input={PHOTO}", "num_samples=2")
    assert [path.name for path in files["up"]] == ["bird_02_00.wav", "bird_02_01.wav"]
    assert soundfile.info(files["up"][0]).frames == WINDOW


def test_sample_a_video(sample, tmp_path):
    files = sample(f"input={write_mp4(tmp_path / 'clip.mp4', seconds=0.2, audio=False)}")
    assert abs(soundfile.info(files["up"][0]).frames - 3200) < 500


def test_sample_drafts(sample):
    files = sample(f"input={PHOTO}", "num_drafts=3", "keep=1", "seconds=0.15")
    assert (len(files["low"]), len(files["up"])) == (3, 1)


def test_sample_inpainting_keeps_the_length(sample, tmp_path):
    original = tmp_path / "original.wav"
    soundfile.write(original, WAV.repeat(3).numpy(), 16000)
    (path,) = sample(f"input={PHOTO}", f"inpaint={original}", "inpaint_interval=[0.05,0.1]")["up"]
    assert soundfile.info(path).frames == 3 * WINDOW


def test_sample_a_continuation(sample, tmp_path):
    soundfile.write(tmp_path / "prompt.wav", WAV.numpy(), 16000)
    (path,) = sample(f"input={PHOTO}", f"continue_from={tmp_path / 'prompt.wav'}", "seconds=0.15")["up"]
    assert soundfile.info(path).frames == 2400


def test_sample_a_pairs_folder_on_device_0(sample, pairs):
    assert len(sample(f"input={pairs}", "device=0")["up"]) == 6


def test_sample_shared_out_by_a_trainer(sample, pairs):
    gloo = "trainer.strategy={_target_: lightning.pytorch.strategies.DDPStrategy, process_group_backend: gloo}"
    try:  # on the one device that there is; NCCL is not simulated
        assert len(sample(f"input={pairs}", "trainer.devices=-1", "batch_size=2", gloo)["up"]) == 6
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def test_embed(machine, tmp_path):
    source = tmp_path / "images"
    source.mkdir()
    for path in (PHOTO, OTHER):
        shutil.copy(path, source)
    options = ["encoder=efficientnet_lite2", "batch_size=2", "num_workers=1"]
    assert command("embed", f"input={source}", f"out={tmp_path / 'card'}", *options) == 0
    assert machine.operations["convolution"], "no image was embedded on the card"


def test_tokenize(machine, card_runs, pairs, tmp_path):
    root = shutil.copytree(pairs, tmp_path / "pairs")
    codec = f"codec={card_runs.folder}/base/vqvae/last.ckpt"
    assert command("tokenize", f"data.root={root}", codec, f"data.num_samples={WINDOW}", "data.num_workers=0") == 0
    assert machine.operations["convolution"], "no sound was encoded on the card"


def test_evaluate_a_model(machine, card_runs, pairs, tmp_path):
    fast = ["resamples=50", "resamples_fd=3", "examples=1", "batch_size=6"]
    arguments = [f"model={card_runs.folder / 'base'}", f"data={pairs}", "split=all", "suite=offline", *fast]
    assert command("evaluate", *arguments, f"out={tmp_path / 'out'}") == 0
    assert machine.captured, "no code was sampled on the card"
    with (tmp_path / "out" / "items.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 6
