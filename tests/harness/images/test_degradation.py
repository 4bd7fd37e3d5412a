"""Degradations: against slow, obvious forms; noise that is fixed, and as strong as it says."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from harness.base.errors import UserError
from harness.images.bicubic import downscale
from harness.images.degradation import (
    Decimation,
    GreyNoise,
    box,
    grey,
    image_generator,
    patch_generator,
)


def picture(height: int, width: int, seed: int = 0, batch: tuple[int, ...] = ()) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (*batch, height, width, 3), dtype=np.uint8)


@settings(max_examples=25)
@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    scale=st.integers(1, 4),
    seed=st.integers(0, 9),
)
def test_box_is_the_mean_rounded_half_up(rows: int, columns: int, scale: int, seed: int) -> None:
    images = picture(rows * scale, columns * scale, seed, batch=(2,))
    found = box(images, scale)
    for n, row, column, channel in np.ndindex(*found.shape):
        cell = images[n, row * scale :, column * scale :, channel][:scale, :scale]
        values = [int(value) for value in cell.ravel()]
        low, rest = divmod(sum(values), len(values))
        assert found[n, row, column, channel] == low + (2 * rest >= len(values))


def test_nearest_is_the_top_left_pixel_and_bicubic_the_lr_image() -> None:
    hr = picture(12, 20)
    generator = image_generator("Set", "image")
    nearest, target = Decimation("nearest").pair(hr, None, 4, generator)
    assert [[*nearest[row, column]] for row in range(3) for column in range(5)] == [
        [*hr[4 * row, 4 * column]] for row in range(3) for column in range(5)
    ]
    assert target is hr
    np.testing.assert_array_equal(Decimation().pair(hr, None, 4, generator)[0], downscale(hr, 4))
    given_lr = picture(3, 5, 1)  # patches bring theirs
    np.testing.assert_array_equal(Decimation().pair(hr, given_lr, 4, generator)[0], given_lr)


def test_grey_is_that_of_pillow() -> None:
    values = np.arange(256, dtype=np.uint8)
    hard = np.stack(np.meshgrid(values[::5], values[::3], values[::7]), axis=-1).reshape(1, -1, 3)
    for image in (picture(40, 50), hard):
        expected = np.asarray(Image.fromarray(image).convert("L"))
        np.testing.assert_array_equal(grey(image), expected)
    equal = np.repeat(values[None, :, None], 3, axis=-1)  # a grey file keeps its values
    np.testing.assert_array_equal(grey(equal)[0], values)


@pytest.mark.parametrize("sigma", [1.0, 25.0, 50.0])
def test_noise_is_gaussian_white_and_not_clipped(sigma: float) -> None:
    hr = picture(200, 300) // 200 * 255  # black and white: half of all noise leaves 0…255
    noisy, clean = GreyNoise(sigma).pair(hr, None, 1, image_generator("Set", "image"))
    assert (noisy.dtype, clean.dtype) == (np.float32, np.uint8)
    assert (np.ptp(noisy, axis=-1) == 0).all()
    np.testing.assert_array_equal(clean[..., 0], grey(hr))
    noise = 255 * noisy[..., 0].astype(float) - clean[..., 0]
    count = noise.size
    assert noise.min() < -2 * sigma
    assert noisy.min() < 0
    assert abs(noise.mean()) < 4 * sigma / count**0.5
    assert noise.std() == pytest.approx(sigma, rel=4 / (2 * count) ** 0.5)
    assert np.mean(noise**4) / sigma**4 == pytest.approx(3, rel=0.05)
    beside = np.mean(noise[:, 1:] * noise[:, :-1]) / sigma**2
    assert abs(beside) < 4 / count**0.5


def test_noise_of_super_resolution_is_rounded_and_clipped() -> None:
    hr = picture(80, 120)
    found, _ = Decimation("box", 30.0).pair(hr, None, 2, image_generator("Set", "image"))
    noise = image_generator("Set", "image").standard_normal((40, 60, 3))
    exact = box(hr, 2) + 30.0 * noise
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.clip(np.rint(exact), 0, 255))
    assert {0, 255} <= {*found.ravel()}


def test_the_noise_of_a_test_image_is_always_the_same() -> None:
    """Other bytes are other test images: published numbers would no longer be comparable."""
    ramp = np.arange(16 * 24, dtype=np.uint32).reshape(16, 24, 1).repeat(3, axis=-1) % 256
    noisy, _ = GreyNoise(25).pair(ramp.astype(np.uint8), None, 1, image_generator("Set5", "baby"))
    digest = hashlib.sha256(np.round(noisy, 5).astype("<f4").tobytes()).hexdigest()
    assert digest == "7d9d6b7c27d988fd0cc46b45c82aaa7d6a6dd041f071845259490022d8c11520"
    draws = [
        tuple(image_generator(*names).standard_normal(3))
        for names in (("Set5", "baby"), ("Set5", "bird"), ("Set14", "baby"), ("Set5", "baby"))
    ]
    assert draws[0] == draws[3]
    assert len({*draws}) == 3


@given(
    a=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 10**6)),
    b=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 10**6)),
)
def test_the_noise_of_patches_depends_on_seed_and_step(
    a: tuple[int, int], b: tuple[int, int]
) -> None:
    draws = [patch_generator(*key).standard_normal() for key in (a, b, a)]
    assert draws[0] == draws[2]
    assert (draws[0] == draws[1]) == (a == b)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Decimation("linear"), "unknown degradation 'linear': choose from bicubic, box"),
        (lambda: Decimation("box", -1), "noise must be 0 to 255, got -1"),
        (lambda: Decimation("box", float("nan")), "noise must be 0 to 255, got nan"),
        (lambda: GreyNoise(0.5), "sigma must be 1 to 255, got 0.5"),
        (lambda: GreyNoise(256), "sigma must be 1 to 255, got 256"),
        (lambda: GreyNoise(float("inf")), "sigma must be 1 to 255, got inf"),
    ],
)
def test_values_out_of_range(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(UserError, match=message):
        make()
