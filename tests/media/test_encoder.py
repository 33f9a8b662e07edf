import numpy as np
import pytest
import torch
from PIL import Image

from conftest import ASSETS
from im2wav.media.encoder import ClipEncoder, EfficientNetLite2Encoder, build_encoder
from im2wav.media.reading import read_image

PICTURE = ASSETS / "images" / "owl_03.jpg"


def test_clip_is_the_quickgelu_tower_with_openai_s_preprocessing(clip_file):
    path, model = clip_file
    encoder = ClipEncoder(weights=str(path))
    image = read_image(PICTURE)
    embedding = encoder.encode([image])
    # OpenAI's preprocessing, written out: shorter side to 224 (bicubic), centre, its own mean and deviation
    scale = 224 / min(image.size)
    size = [max(224, int(side * scale)) for side in image.size]
    small = image.resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - 224) / 2), round((size[1] - 224) / 2)
    pixels = np.asarray(small.crop((left, top, left + 224, top + 224))) / 255
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    given = torch.from_numpy((pixels - mean) / std).float().permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model.encode_image(given), dim=-1)
    torch.testing.assert_close(embedding, expected, atol=1e-5, rtol=1e-4)
    assert embedding.shape == (1, 512)
    assert embedding.norm().item() == pytest.approx(1, abs=1e-5)
    activations = {type(m).__name__ for m in encoder.visual.modules()}
    assert "QuickGELU" in activations
    assert "GELU" not in activations
    assert encoder.name == "clip_vit_b32"
    assert len(encoder.weights_sha256) == 64


def test_openai_s_own_torchscript_file_loads(clip_file, tmp_path):
    path, model = clip_file

    class Archive(torch.nn.Module):
        """What the published ViT-B-32.pt looks like from outside: fp16 weights under the same names, three sizes."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    archive = Archive()
    for name, value in model.state_dict().items():
        owner = archive
        *parents, leaf = name.split(".")
        for parent in parents:
            if not hasattr(owner, parent):
                owner.add_module(parent, Archive())
            owner = getattr(owner, parent)
        owner.register_buffer(leaf, value.half())
    for name, size in (("input_resolution", 224), ("context_length", 77), ("vocab_size", 49408)):
        archive.register_buffer(name, torch.tensor(size))
    torch.jit.script(archive).save(str(tmp_path / "ViT-B-32.pt"))
    image = [read_image(PICTURE)]
    official, ours = (ClipEncoder(weights=str(p)).encode(image) for p in (tmp_path / "ViT-B-32.pt", path))
    assert torch.nn.functional.cosine_similarity(official, ours).item() > 0.9999


def test_texts_land_where_clip_s_text_tower_puts_them(clip_file):
    import open_clip

    path, model = clip_file
    texts = ["a dog barks", "rain on a tin roof"]
    ours = ClipEncoder(weights=str(path)).encode_text(texts)
    with torch.no_grad():
        theirs = torch.nn.functional.normalize(model.encode_text(open_clip.tokenize(texts)), dim=-1)
    assert ours.shape == (2, 512)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="encodes images only"):
        EfficientNetLite2Encoder().encode_text(texts)


def test_encoders_are_built_by_name_alone():
    assert build_encoder("efficientnet_lite2").dim == 1280
    with pytest.raises(ValueError, match="encoder=resnet: expected one of clip_vit_b32"):
        build_encoder("resnet")


def test_clip_without_weights_or_network_says_what_to_do(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("open_clip.download_pretrained", offline)
    with pytest.raises(ValueError, match=r"downloaded \(ConnectionError: no route to host\): set encoder\.weights="):
        ClipEncoder()
    with pytest.raises(ValueError, match="no such file"):
        ClipEncoder(weights=str(tmp_path / "none.pt"))
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"is not a CLIP ViT-B-32"):
        ClipEncoder(weights=str(tmp_path / "other.pt"))
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(ValueError, match=r"is not a CLIP ViT-B-32"):
        ClipEncoder(weights=str(tmp_path / "text.pt"))


def test_efficientnet_sees_what_images_have_in_common():
    encoder = EfficientNetLite2Encoder()
    names = ["didgeridoo_01", "car_horn_02", "car_passing_01", "cat_03", "kitten_01"]
    embeddings = encoder.encode([read_image(ASSETS / "images" / f"{name}.jpg") for name in names])
    assert embeddings.shape == (5, 1280)
    likeness = embeddings @ embeddings.T
    torch.testing.assert_close(likeness.diagonal(), torch.ones(5))
    assert likeness[3, 4] > likeness[3, :3].max()  # a cat is like a kitten
    assert likeness[1, 2] > likeness[1, [0, 3, 4]].max()  # and a car like a car
    assert (encoder.encode([read_image(ASSETS / "images" / "cat_03.jpg")]) - embeddings[3]).abs().max() < 1e-4


@pytest.mark.parametrize("shape", [(240, 320), (720, 1280), (500, 333), (224, 398), (260, 260), (90, 100), (61, 1000)])
def test_frames_are_cut_and_scaled_as_photos_are(shape):
    """Two ways agree: torch on arrays and Pillow on images, both against CLIP's own preprocessing."""
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
    from open_clip.transform import image_transform

    from im2wav.media.encoder import resized_centre, resized_square

    generator = np.random.default_rng(0)
    frame = np.kron(generator.integers(0, 256, (shape[0] // 4 + 1, shape[1] // 4 + 1, 3)), np.ones((4, 4, 1)))
    frame = frame[: shape[0], : shape[1]].astype(np.uint8)
    image = Image.fromarray(frame)
    transform = image_transform(
        224, False, mean=OPENAI_DATASET_MEAN, std=OPENAI_DATASET_STD, interpolation="bicubic", resize_mode="shortest"
    )
    mean, std = (torch.tensor(v)[:, None, None] for v in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    expected = ((transform(image) * std + mean) * 255).round().numpy()
    np.testing.assert_array_equal(resized_centre(image, 224), expected)
    assert np.abs(resized_centre(frame, 224) - expected).max() <= 2
    pair = [resized_square(picture, 260).astype(int) for picture in (frame, image)]
    assert np.abs(pair[0] - pair[1])[:, 4:-4, 4:-4].max() <= 2  # at the rim Pillow also sees what is cut off
    assert pair[0].shape == (3, 260, 260)
