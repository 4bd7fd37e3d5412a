"""Where a network's quality comes from: self-similar parts, and non-local use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from torch import Tensor

from attention_zoo import create_attention
from attention_zoo.base import Attention
from harness.config.network import NetworkConfig
from harness.config.variants import Variant
from harness.images.metrics import psnr, rgb_to_y
from harness.images.sources import TestImage
from harness.measuring import analysis
from harness.measuring.analysis import Analysis, attention_confined, confined
from harness.network.edsr import EDSR, build_network
from harness.records.shapes import ImageQuality

SIZE = NetworkConfig(blocks=4, channels=4)
ROW = ImageQuality(name="a", psnr=20.0, ssim=0.5, bicubic_psnr=20, bicubic_ssim=0.5, tile=None)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SR_CACHE", str(tmp_path))


def make_image(seed: int = 0, height: int = 24, width: int = 28, scale: int = 1) -> TestImage:
    rng = np.random.default_rng(seed)
    hr = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return TestImage("a", hr, hr[::scale, ::scale].copy())


def measured(network: EDSR, image: TestImage, scale: int = 1, **changes: Any) -> ImageQuality:
    """What is measured, non-local use alone by default."""
    parts = {"reach": 4, "grey": False, "self_similar": False, "non_local_use": True} | changes
    output, _ = analysis.restore(network, image, scale, grey=bool(parts["grey"]))
    return Analysis(network=network.eval(), scale=scale, **parts)(image, output, ROW)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 23), st.integers(1, 23), st.integers(1, 12), st.data())
def test_a_position_sees_what_is_near_and_nothing_beyond_the_reach(
    height: int, width: int, reach: int, data: st.DataObject
) -> None:
    y, x = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    single = torch.zeros(1, 2, height, width)
    single[0, :, y, x] = 1
    seen = confined(lambda part: part.sum((2, 3), keepdim=True).expand_as(part), single, reach)
    distance = torch.maximum(
        (torch.arange(height)[:, None] - y).abs(), (torch.arange(width) - x).abs()
    )
    assert not seen[0, :, distance > reach].any()
    assert (seen[0, :, distance <= (reach + 1) // 2] == 1).all()


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))
def test_with_tiles_of_one_position_it_is_the_masked_softmax(
    reach: int, height: int, width: int
) -> None:
    torch.manual_seed(0)
    module = create_attention("nla", channels=4, reduction=1).double()
    x = torch.randn(1, 4, height, width, dtype=torch.float64)
    q, k, v = (part.flatten(2)[0].T for part in module.project(x))
    place = torch.cartesian_prod(torch.arange(height), torch.arange(width)).reshape(-1, 2)
    far = (place[:, None] - place).abs().amax(-1) > reach
    weights = (q @ k.T).masked_fill(far, -torch.inf).softmax(1)
    wanted = module.residual(x, (weights @ v).T.reshape(1, 4, height, width))
    with torch.no_grad():
        torch.testing.assert_close(confined(module, x, reach), wanted)


def test_batches_of_windows_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module, x = create_attention("enlca", channels=4, m=8), torch.randn(1, 4, 20, 17)
    with torch.no_grad():
        wanted = confined(module, x, 6)
        monkeypatch.setattr(analysis, "_POSITIONS", 1)
        torch.testing.assert_close(confined(module, x, 6), wanted)


def test_images_of_a_batch_are_confined_one_by_one() -> None:
    torch.manual_seed(0)
    module, x = create_attention("nla", channels=4), torch.randn(3, 4, 20, 17)
    with torch.no_grad():
        wanted = torch.cat([confined(module, image[None], 6) for image in x])
        torch.testing.assert_close(confined(module, x, 6), wanted)


def test_a_network_without_attention_uses_none(monkeypatch: pytest.MonkeyPatch) -> None:
    network, image = build_network(Variant("none"), SIZE, 1), make_image()
    output, _ = analysis.restore(network, image, 1)
    monkeypatch.setattr(analysis, "restore", None)  # nothing is computed again
    row = Analysis(network, 1, 12, False, False, True)(image, output, ROW)
    assert row == replace(ROW, lost_as_mean=0.0, lost_confined=0.0)


@pytest.mark.parametrize("name", ["nla", "nlsa", "enlca", "mean", "conv"])
def test_attention_without_weight_is_not_used(name: str) -> None:
    network = build_network(Variant(name, {"res_scale": 0.0}), SIZE, 2)
    row = measured(network, make_image(scale=2), 2)
    assert (row.lost_as_mean, row.lost_confined) == (0.0, 0.0)


def test_a_convolution_is_local_and_a_mean_is_a_mean() -> None:
    image = make_image(scale=2)
    network = build_network(Variant("conv", {"res_scale": 1.0}), SIZE, 2)
    row = measured(network, image, 2)
    assert row.lost_confined == 0 != row.lost_as_mean
    network = build_network(Variant("mean", {"res_scale": 1.0}), SIZE, 2)
    row = measured(network, image, 2)
    assert row.lost_as_mean == 0 != row.lost_confined


class Copy(Attention):
    """The values half the map's width away."""

    name = "copy"

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x, x, x

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return v.roll(v.shape[3] // 2, 3)


class Average(EDSR):
    """The mean of each pixel and its copy."""

    def forward(self, x: Tensor) -> Tensor:
        half: Tensor = self.attention["0"](x) / 2
        return half


def test_a_network_that_averages_far_copies_uses_them() -> None:
    """It halves the noise's power, which is 3 dB; the copies lie 20 pixels away."""
    rng = np.random.default_rng(0)
    half = rng.integers(60, 200, (30, 20, 1))
    hr = np.tile(half, (1, 2, 3)).astype(np.uint8)
    noisy = (hr + rng.normal(0, 10, (30, 40, 1))) / 255
    image = TestImage("a", hr, noisy.astype(np.float32))
    network = Average(SIZE, 1)
    network.insert([Copy(3, res_scale=1.0)], [0])
    row = measured(network, image, reach=15, grey=True)
    of_noise = 20 * np.log10(255 / 10)
    output, _ = analysis.restore(network, image, 1, grey=True)
    assert psnr(output[..., 0], hr[..., 0], 0) == pytest.approx(of_noise + 3.01, abs=0.3)
    assert isinstance(row.lost_as_mean, float)
    assert row.lost_as_mean > 3
    assert isinstance(row.lost_confined, float)
    assert row.lost_confined > 3
    assert not {"forward", "attend"} & network.attention_modules[0].__dict__.keys()
    # Farther than the copies, confining changes nothing.
    assert measured(network, image, reach=120, grey=True).lost_confined == 0


def test_a_module_is_as_before_when_a_forward_fails() -> None:
    network = build_network(Variant("nla"), SIZE, 1)
    with pytest.raises(RuntimeError), attention_confined(network, 3):
        raise RuntimeError
    assert all("forward" not in module.__dict__ for module in network.attention_modules)


@pytest.mark.parametrize("grey", [False, True])
def test_psnr_of_the_self_similar_part(monkeypatch: pytest.MonkeyPatch, grey: bool) -> None:
    scale = 1 if grey else 2
    image = make_image(1)
    hr = np.broadcast_to(image.hr[..., :1], image.hr.shape).copy() if grey else image.hr
    image = TestImage("a", hr, hr[::scale, ::scale].copy())
    mask = np.random.default_rng(2).random((24, 28)) < 0.3
    asked = []

    def of_image(hr: np.ndarray, scale: int, reach: int) -> np.ndarray:
        asked.append((hr is image.hr, scale, reach))
        return mask

    monkeypatch.setattr(analysis, "self_similar", of_image)
    network = build_network(Variant("none"), SIZE, scale)
    row = measured(network, image, scale, grey=grey, self_similar=True, non_local_use=False)
    assert asked == [(True, scale, 4)]
    output, _ = analysis.restore(network, image, scale, grey=grey)
    lumas = (output[..., 0], hr[..., 0]) if grey else (rgb_to_y(output), rgb_to_y(hr))
    border = 0 if grey else scale
    squares = [
        (float(lumas[0][y, x]) - float(lumas[1][y, x])) ** 2
        for y in range(border, 24 - border)
        for x in range(border, 28 - border)
        if mask[y, x]
    ]
    wanted = 10 * np.log10(255**2 / np.mean(squares))
    assert row.self_similar_psnr == pytest.approx(wanted, abs=1e-6)
    pixels = (24 - 2 * border) * (28 - 2 * border)
    assert row.self_similar_share == pytest.approx(len(squares) / pixels, abs=1e-6)
    mask[:] = False
    mask[12, 12:15] = True
    row = measured(network, image, scale, grey=grey, self_similar=True, non_local_use=False)
    assert row.self_similar_psnr is None
    assert row.self_similar_share == pytest.approx(3 / pixels, abs=1e-6)
