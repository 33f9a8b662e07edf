"""Images of all kinds are read as the same 8-bit RGB picture."""

import numpy as np
import pytest
from PIL import Image

from im2wav.media.reading import MediaError, read_image


@pytest.fixture
def plain():
    rows, columns = np.mgrid[0:24, 0:32]
    grey = Image.fromarray((rows * 8 + columns).astype(np.uint8))
    return grey.convert("RGB")


def as_array(path):
    return np.asarray(read_image(path)).astype(int)


SAVED = {
    "palette.png": lambda image: image.convert("P", palette=Image.Palette.ADAPTIVE, colors=256),
    "grey.png": lambda image: image.convert("L"),
    "sixteen_bits.png": lambda image: Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257),
    "sixteen_bits.tiff": lambda image: Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257),
    "thirty_two_bits.tiff": lambda image: Image.fromarray(np.asarray(image.convert("L")).astype(np.int32) * 257),
    "alpha.png": lambda image: image.convert("RGBA"),
    "alpha.webp": lambda image: image.convert("RGBA"),
    "cmyk.tiff": lambda image: image.convert("CMYK"),
    "photo.heic": lambda image: image,
    "photo.avif": lambda image: image,
    "photo.jfif": lambda image: image,
}


@pytest.mark.parametrize("name", SAVED)
def test_an_image_is_read_as_plain_rgb(name, plain, tmp_path):
    path = tmp_path / name
    kind = {"jfif": "jpeg", "heic": "heif"}.get(path.suffix[1:], path.suffix[1:])
    lossless = {"lossless": True} if kind == "webp" else {"quality": 100} if kind in ("jpeg", "heif", "avif") else {}
    SAVED[name](plain).save(path, format=kind, **lossless)
    assert np.abs(as_array(path) - np.asarray(plain)).max() <= (4 if kind in ("jpeg", "heif", "avif") else 0)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_white(mode, tmp_path):
    image = Image.new("RGBA", (8, 8), (200, 10, 10, 0))
    image.putpixel((0, 0), (0, 0, 0, 255))
    image.convert(mode).save(tmp_path / "a.png")
    found = as_array(tmp_path / "a.png")
    assert found[4, 4].tolist() == [255, 255, 255]
    assert found[0, 0].tolist() == [0, 0, 0]


def test_orientation_by_exif(plain, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned clockwise by 90 degrees
    plain.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(as_array(tmp_path / "a.png"), np.rot90(np.asarray(plain), -1))


def test_a_heic_file_that_is_called_jpg_is_read(plain, tmp_path):
    plain.save(tmp_path / "a.heic", quality=100)
    (tmp_path / "a.heic").rename(tmp_path / "a.jpg")
    assert np.abs(as_array(tmp_path / "a.jpg") - np.asarray(plain)).max() <= 4


def test_pixels_without_a_known_range_are_an_error(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(MediaError, match="floating-point numbers; save the image with 8 or 16 bits"):
        read_image(tmp_path / "a.tiff")
