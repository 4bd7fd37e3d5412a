"""Image files: order, colour modes, and files that must be refused with one clear line."""

from __future__ import annotations

import io
import random
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.base.errors import UserError
from harness.images.files import ImageSet, find_images, natural_key, read_image

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def test_natural_order() -> None:
    expected = ["9.png", "10.png", "b1.png", "img_1.png", "img_2.png", "img_10.png", "img_10a.png"]
    shuffled = random.Random(0).sample(expected, len(expected))
    assert sorted(shuffled, key=natural_key) == expected


def test_finds_images_only(tmp_path: Path) -> None:
    for name in ("a10.png", "a9.JPG", "a.webp", "a.bmp", "a.jpeg", "notes.txt", ".hidden.png"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [p.name for p in find_images(tmp_path)] == [
        "a9.JPG", "a10.png", "a.bmp", "a.jpeg", "a.webp"
    ]  # fmt: skip
    assert find_images(tmp_path / "missing") == ()


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UserError, match=r"cannot read the folder .*: Permission denied"):
        find_images(tmp_path)


def test_first_picture_of_a_cameras_file(tmp_path: Path) -> None:
    """MPO: JPEGs with a second view or a preview behind the picture."""
    path = tmp_path / "camera.jpg"
    first, second = (Image.fromarray(pixels) for pixels in (RGB, 255 - RGB))
    first.save(path, format="MPO", save_all=True, append_images=[second], quality=95)
    plain = tmp_path / "plain.jpg"
    first.save(plain, quality=95)
    np.testing.assert_array_equal(read_image(path), read_image(plain))


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp"])
def test_lossless_formats(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(RGB).save(path, lossless=True)
    image = read_image(path)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, RGB)


def test_jpeg_and_wrong_suffix(tmp_path: Path) -> None:
    path = tmp_path / "image.png"  # the content decides
    Image.fromarray(RGB).save(path, format="JPEG", quality=95)
    assert read_image(path).shape == RGB.shape


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA"])
def test_modes_become_three_channels(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "image.png"
    converted = Image.fromarray(RGB).convert(mode)
    converted.save(path)
    image = read_image(path)
    assert image.shape == (20, 30, 3)
    np.testing.assert_array_equal(image, np.asarray(converted.convert("RGB")))
    if mode in ("1", "L", "LA"):
        assert (image == image[..., :1]).all()


def png_16_bit_rgb() -> bytes:
    """A black image; Pillow cannot write this kind."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    rows = b"".join(b"\0" + bytes(6 * 16) for _ in range(16))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def see_through() -> Image.Image:
    image = Image.fromarray(RGB).convert("RGBA")
    image.putpixel((3, 3), (0, 0, 0, 128))
    return image


def encoded(image: Image.Image, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=image_format, **options)
    return buffer.getvalue()


PICTURE = Image.fromarray(RGB)
PNG = encoded(PICTURE, "PNG")
FRAMES: dict[str, Any] = {"save_all": True, "append_images": [Image.fromarray(255 - RGB)]}


def test_refuses_other_files(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    with pytest.raises(UserError, match="No such file"):
        read_image(path)
    for content, message in [
        (png_16_bit_rgb(), r"image\.png has 16 bits or more a channel"),
        (encoded(Image.fromarray(np.zeros((4, 4), np.uint16)), "PNG"), "16 bits or more"),
        (encoded(PICTURE.convert("CMYK"), "JPEG"), "colour space CMYK"),
        (encoded(see_through(), "PNG"), "transparent parts"),
        (encoded(PICTURE, "WEBP", **FRAMES), r"animated \(2 frames\)"),
        (encoded(PICTURE, "GIF"), "not a PNG"),
        (b"no image", "not a PNG, WebP, JPEG or BMP image"),
        (PNG[:60] + bytes([PNG[60] ^ 0xFF]) + PNG[61:], "cannot read the image"),
    ]:
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_image(path)


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "BMP", "WEBP"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_truncated_images(tmp_path: Path, image_format: str, share: float) -> None:
    content = encoded(Image.fromarray(np.tile(RGB, (5, 5, 1))), image_format)
    path = tmp_path / "cut.png"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=r"cannot read the image .*cut\.png: .*; replace it") as e:
        read_image(path)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("limit", [400, 200], ids=["warning", "error"])
@pytest.mark.parametrize("action", ["error", "ignore"])
def test_decompression_bombs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, action: Any
) -> None:
    path = tmp_path / "bomb.png"
    Image.fromarray(RGB).save(path)  # 600 pixels
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with (
        warnings.catch_warnings(action=action, category=Image.DecompressionBombWarning),
        pytest.raises(UserError, match=f"has more than {limit} pixels"),
    ):
        read_image(path)


def test_image_set_decodes_in_order(tmp_path: Path) -> None:
    for n in (1, 2, 10):
        Image.fromarray(RGB[:n]).save(tmp_path / f"{n}.png")
    images = ImageSet("mine", find_images(tmp_path))
    assert len(images) == 3
    assert [len(image) for image in images] == [1, 2, 10]
