from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from harness.bicubic import upscale
from harness.config import Variant
from harness.data import find_data
from harness.edsr import build_network
from harness.evaluate import MAX_PSNR, evaluate, super_resolve
from harness.metrics import quality


class Nearest(nn.Module):
    """Repeats pixels; it has a parameter so that its device can be read."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gain * x.repeat_interleave(4, 2).repeat_interleave(4, 3)


def test_pixels_go_through_unchanged() -> None:
    lr = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(super_resolve(Nearest(), lr, 4), lr.repeat(4, 0).repeat(4, 1))


def test_output_is_clipped_and_rounded() -> None:
    lr = np.full((4, 4, 3), 200, np.uint8)
    assert super_resolve(Nearest(2.0), lr, 4).max() == 255
    assert super_resolve(Nearest(-1.0), lr, 4).max() == 0
    assert (super_resolve(Nearest(0.5031), lr, 4) == 101).all()


@pytest.mark.parametrize("size", [(40, 50), (33, 17), (16, 16)])
def test_tiles_fit_together(size: tuple[int, int]) -> None:
    """The receptive field of four blocks exceeds the overlap, so only the middle must agree."""
    lr = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    assert np.array_equal(super_resolve(Nearest(), lr, 4, 16), super_resolve(Nearest(), lr, 4))


def test_evaluate_reports_the_metrics_of_each_image(image_folder: Path) -> None:
    images = find_data(image_folder).test_set("Tiny", 4)
    result = evaluate(Nearest(), images, len(images), 4, "test", tile=12)
    rows = result["images"]
    assert [row["name"] for row in rows] == ["e0", "e1"]
    for row, image in zip(rows, images, strict=True):
        nearest = quality(image.lr.repeat(4, 0).repeat(4, 1), image.hr, 4)
        bicubic = quality(upscale(image.lr, 4), image.hr, 4)
        assert row["psnr"] == pytest.approx(nearest.psnr, abs=1e-6)
        assert row["ssim"] == pytest.approx(nearest.ssim, abs=1e-6)
        assert row["bicubic_psnr"] == pytest.approx(bicubic.psnr, abs=1e-6)
        assert row["tile"] == 12
    assert result["psnr"] == pytest.approx(np.mean([r["psnr"] for r in rows]), abs=1e-5)


def test_identical_images_have_a_finite_psnr(image_folder: Path) -> None:
    image = next(iter(find_data(image_folder).test_set("Tiny", 4)))
    flat = type(image)("flat", np.full_like(image.hr, 7), np.full_like(image.lr, 7))
    result = evaluate(Nearest(), [flat], 1, 4, "test")
    assert result["psnr"] == MAX_PSNR


@pytest.mark.data
def test_bicubic_baseline_of_set5(sr_data: Path) -> None:
    """28.42 dB / 0.810, as every paper prints it."""
    images = find_data(sr_data).test_set("Set5", 4)
    result = evaluate(Nearest(), images, len(images), 4, "test")
    assert result["bicubic_psnr"] == pytest.approx(28.42, abs=0.005)
    assert result["bicubic_ssim"] == pytest.approx(0.810, abs=0.0005)
    assert result["psnr"] < result["bicubic_psnr"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nla", "nlsa", "criss-cross", "enlca", "conv"])
def test_a_whole_large_image_stays_under_4_gb(name: str) -> None:
    """256x256 LR pixels, 1024x1024 HR: the largest in Urban100."""
    from harness.memory import peak_memory

    network = build_network(Variant(name), blocks=8, channels=32, scale=4)
    lr = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    peak = peak_memory(lambda: super_resolve(network, lr, 4), torch.device("cpu"))
    assert peak is not None
    assert peak < 2e9
