"""MATLAB-style bicubic: against exact fractions, published LR files and published hashes."""

from __future__ import annotations

import csv
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from harness.images.bicubic import crop_to_multiple, downscale, imresize, upscale
from harness.images.files import find_images, lr_path, read_image
from harness.images.verify import pixel_hash
from tests.reference.imresize import imresize as reference

SCALES = [Fraction(1, 4), Fraction(1, 3), Fraction(1, 2), Fraction(2, 3), Fraction(5, 4), 2, 3, 4]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (13, 8), (9, 6, 3)])
def test_equals_exact_fractions(scale: Fraction, shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)
    np.testing.assert_array_equal(imresize(image, scale), reference(image, Fraction(scale)))


@given(image=arrays(np.uint8, (8, 8)), scale=st.sampled_from([Fraction(1, 4), Fraction(1, 2), 2]))
@settings(max_examples=15)
def test_equals_exact_fractions_on_any_pixels(image: np.ndarray, scale: Fraction) -> None:
    np.testing.assert_array_equal(imresize(image, scale), reference(image, Fraction(scale)))


def test_rounds_ties_up_and_clips() -> None:
    # Halving [0, 0, 1, 1] weighs the inner pair as 1/2 + 1/2: ties at every middle sample.
    step = np.repeat(np.array([[0, 255]], dtype=np.uint8), 8, axis=1).repeat(8, axis=0)
    enlarged = upscale(step, 4)
    assert enlarged.min() == 0  # undershoot is clipped, not wrapped
    assert enlarged.max() == 255
    odd = np.array([[0, 0, 0, 1, 1, 1]], dtype=np.uint8).repeat(6, axis=0)
    middle = imresize(odd, Fraction(1, 6))
    assert middle.tolist() == [[1]]  # exactly one half


@given(
    value=st.integers(0, 255),
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    scale=st.fractions(Fraction(1, 6), 6, max_denominator=6),
)
@settings(max_examples=60)
def test_constant_images_stay_constant(
    value: int, height: int, width: int, scale: Fraction
) -> None:
    result = imresize(np.full((height, width), value, dtype=np.uint8), scale)
    assert result.shape == (-(-height * scale // 1), -(-width * scale // 1))
    assert (result == value).all()


@given(image=arrays(np.uint8, (12, 8, 3)), flip=st.sampled_from([0, 1]))
@settings(max_examples=20)
def test_commutes_with_flips(image: np.ndarray, flip: int) -> None:
    for scale in (Fraction(1, 4), Fraction(2)):
        flipped = imresize(np.flip(image, flip), scale)
        np.testing.assert_array_equal(flipped, np.flip(imresize(image, scale), flip))


def test_channels_are_independent() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 16, 3), dtype=np.uint8)
    for channel in range(3):
        np.testing.assert_array_equal(
            downscale(image, 4)[..., channel], downscale(image[..., channel], 4)
        )


@given(height=st.integers(1, 40), width=st.integers(1, 40), scale=st.integers(1, 5))
def test_crop_keeps_the_top_left(height: int, width: int, scale: int) -> None:
    image = np.arange(height * width).reshape(height, width).astype(np.uint8)
    crop = crop_to_multiple(image, scale)
    assert all(
        0 <= n - c < scale and c % scale == 0 for n, c in zip(image.shape, crop.shape, strict=True)
    )
    np.testing.assert_array_equal(crop, image[: crop.shape[0], : crop.shape[1]])


def test_refuses_other_arrays_and_scales() -> None:
    for other in (np.zeros((4, 4)), np.zeros(4, np.uint8), np.zeros((0, 4), np.uint8)):
        with pytest.raises(ValueError, match="takes uint8"):
            imresize(other, 2)
    image = np.zeros((6, 8), np.uint8)
    with pytest.raises(ValueError, match="positive"):
        imresize(image, 0)
    with pytest.raises(ValueError, match="6x8 is not a multiple of the scale 4"):
        downscale(image, 4)


@pytest.mark.data
@pytest.mark.parametrize(("name", "step"), [("Set5", 1), ("Set14", 1), ("B100", 10)])
def test_reproduces_stored_lr_files(sr_data: Path, name: str, step: int) -> None:
    for path in find_images(sr_data / name / "HR")[::step]:
        stored = lr_path(path, 4)
        assert stored is not None
        ours = downscale(crop_to_multiple(read_image(path), 4), 4)
        np.testing.assert_array_equal(ours, read_image(stored), err_msg=str(path))


@pytest.mark.data
@pytest.mark.slow
def test_reproduces_all_published_hashes(sr_data: Path) -> None:
    with (sr_data / "LR_bicubic_pixels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 438  # (5 + 14 + 100 + 100) images, x2 and x4
    hr = {(s, p.stem): p for s in ("Set5", "Set14", "B100", "Urban100")
          for p in find_images(sr_data / s / "HR")}  # fmt: skip
    differing = []
    for row in rows:
        scale = int(row["scale"])
        image = crop_to_multiple(read_image(hr[row["set"], row["image"]]), scale)
        ours = pixel_hash(downscale(image, scale), int(row["channels"]))
        if ours != row["sha256_of_uint8_pixels"]:
            differing.append((row["set"], row["image"], scale))
    assert not differing
