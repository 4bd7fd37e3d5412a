from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from harness import convert
from harness import evaluate as evaluation
from harness.base.errors import UserError
from harness.config.network import NetworkConfig
from harness.config.variants import Variant
from harness.images.bicubic import upscale
from harness.images.metrics import quality
from harness.images.sources import TestImage, find_data
from harness.measuring.quality import MAX_PSNR, bicubic_quality, evaluate, super_resolve
from harness.network.edsr import build_network
from harness.network.official import published_method
from harness.network.weights import Architecture, save_weights
from harness.records.shapes import ImageQuality, Quality
from harness.reporting.tables.evaluation import evaluation_table
from tests.reference import released


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


class Small(Nearest):
    """A network on a GPU that holds only so many LR pixels."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.pixels = pixels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[2] * x.shape[3] > self.pixels:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().forward(x)


def gradient_image(height: int, width: int) -> TestImage:
    hr = np.random.default_rng(1).integers(0, 256, (4 * height, 4 * width, 3), dtype=np.uint8)
    return TestImage("wall", hr, hr[::4, ::4].copy())


def test_an_image_too_large_for_the_gpu_is_cut_into_tiles(
    capsys: pytest.CaptureFixture[str],
) -> None:
    images = [gradient_image(140, 150), gradient_image(40, 50)]
    whole = evaluate(Nearest(), images, 2, 4, "test")
    tiled = evaluate(Small(60 * 60), images, 2, 4, "test")
    # 75 with its overlaps is too large still, 37 is not; the small image goes through whole.
    assert [row.tile for row in tiled.images] == [37, None]
    assert [row.psnr for row in tiled.images] == [row.psnr for row in whole.images]
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert told == [
        "warning: wall (LR 150x140) does not fit into memory whole: using tiles of 75 "
        "LR pixels, as the result records",
        "warning: wall (LR 150x140) does not fit into memory in tiles of 75: using "
        "tiles of 37 LR pixels, as the result records",
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, r"wall \(LR 150x140\) does not fit .* in tiles of 37; .*--device"),
        ({"chop": True}, "with --chop"),
        ({"tile": 40}, "in tiles of 40"),
    ],
)
def test_a_gpu_too_small_for_any_tile(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(Small(100), [gradient_image(140, 150)], 1, 4, "test", **values)


def test_evaluate_reports_the_metrics_of_each_image(image_folder: Path) -> None:
    images = find_data(image_folder).test_set("Tiny", 4)
    result = evaluate(Nearest(), images, len(images), 4, "test", tile=12)
    rows = result.images
    assert [row.name for row in rows] == ["e0", "e1"]
    for row, image in zip(rows, images, strict=True):
        nearest = quality(image.lr.repeat(4, 0).repeat(4, 1), image.hr, 4)
        bicubic = quality(upscale(image.lr, 4), image.hr, 4)
        assert row.psnr == pytest.approx(nearest.psnr, abs=1e-6)
        assert row.ssim == pytest.approx(nearest.ssim, abs=1e-6)
        assert row.bicubic_psnr == pytest.approx(bicubic.psnr, abs=1e-6)
        assert row.tile == 12
    assert result.psnr == pytest.approx(np.mean([r.psnr for r in rows]), abs=1e-5)


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache folder of the test's own; gives the place of the bicubic numbers."""
    monkeypatch.setenv("SR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bicubic"


def test_bicubic_is_measured_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [gradient_image(20, 30), gradient_image(24, 20)]
    first = evaluate(Nearest(), images, 2, 4, "test")
    assert len(list(cache.iterdir())) == 2
    monkeypatch.setattr("harness.measuring.quality.upscale", None)  # it is not called again
    assert evaluate(Nearest(), images, 2, 4, "test") == first


@pytest.mark.parametrize("change", ["lr", "hr", "scale", "released_psnr", "version"])
def test_bicubic_of_anything_else_is_measured(
    change: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, scale, released_luma = gradient_image(20, 30), 4, False
    kept = bicubic_quality(image, scale)
    if change in ("lr", "hr"):
        image = dataclasses.replace(image, **{change: 255 - getattr(image, change)})
    elif change == "scale":
        scale = 2
        image = dataclasses.replace(image, hr=image.hr[:40, :60].copy())
    elif change == "released_psnr":
        released_luma = True
    else:
        monkeypatch.setattr("harness.measuring.quality.BICUBIC_VERSION", 0)
    found = bicubic_quality(image, scale, released_luma)
    assert len(list(cache.iterdir())) == 2
    assert (found == kept) == (change == "version")


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-10],
        lambda text: text.replace('"psnr": ', '"psnr": 1'),
        lambda text: text.replace('"ssim": ', '"ssim": "a", "x": '),
        lambda text: text.replace('"psnr": ', '"psnr": NaN, "x": '),
        lambda text: text.replace('"psnr": ', f'"psnr": {10**400}, "x": '),
        lambda text: "[]",
    ],
)
def test_damaged_bicubic_numbers_are_measured_again(
    damage: Callable[[str], str], cache: Path
) -> None:
    image = gradient_image(20, 30)
    kept = bicubic_quality(image, 4)
    (path,) = cache.iterdir()
    text = path.read_text()
    path.write_text(damage(text))
    assert bicubic_quality(image, 4) == kept
    assert path.read_text() == text


def test_bicubic_without_a_cache(cache: Path) -> None:
    cache.parent.write_text("a file where a folder should be")
    assert bicubic_quality(gradient_image(20, 30), 4)[0] > 0


def test_identical_images_have_a_finite_psnr(image_folder: Path) -> None:
    image = next(iter(find_data(image_folder).test_set("Tiny", 4)))
    flat = type(image)("flat", np.full_like(image.hr, 7), np.full_like(image.lr, 7))
    result = evaluate(Nearest(), [flat], 1, 4, "test")
    assert result.psnr == MAX_PSNR


class PatchDependent(Nearest):
    """Shifts by the size and the mean of what it is given, so that every cut shows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) / 2 + x.mean() / 4 + x.shape[2] / 800 + x.shape[3] / 500


def in_quarters(network: nn.Module, lr: np.ndarray, largest: int) -> np.ndarray:
    """The released forward_chop, one output pixel after the other, x4."""

    def extended(half: int, multiple: int) -> int:
        size = half + 10 + 1
        while size % multiple:
            size += 1
        return size

    height, width = lr.shape[:2]
    h, w = extended(height // 2, 4), extended(width // 2, 8)
    cut = super_resolve if h * w < largest else lambda n, part, _: in_quarters(n, part, largest)
    corners = {
        (top, left): cut(network, lr[top : top + h, left : left + w], 4)
        for top in (0, height - h)
        for left in (0, width - w)
    }
    sr = np.empty((4 * height, 4 * width, 3), np.uint8)
    for row in range(4 * height):
        for column in range(4 * width):
            top = 0 if row < 4 * (height // 2) else height - h
            left = 0 if column < 4 * (width // 2) else width - w
            sr[row, column] = corners[top, left][row - 4 * top, column - 4 * left]
    return sr


@pytest.mark.parametrize(("size", "largest"), [((57, 61), 120_000), ((78, 90), 2800)])
def test_chop_is_the_released_one(
    size: tuple[int, int], largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.measuring.quality.CHOP_PIXELS", largest)
    lr = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    found = super_resolve(PatchDependent(), lr, 4, chop=True)
    assert np.array_equal(found, in_quarters(PatchDependent(), lr, largest))


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (20, 31), (130, 1)])
def test_chop_of_images_smaller_than_a_quarter_with_its_overlap(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.measuring.quality.CHOP_PIXELS", 1000)
    lr = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    assert np.array_equal(super_resolve(Nearest(), lr, 4, chop=True), lr.repeat(4, 0).repeat(4, 1))


def released_psnr(sr: np.ndarray, hr: np.ndarray, scale: int) -> float:
    """utility.calc_psnr of EDSR-PyTorch, NLSN and ENLCA, from its formula, pixel by pixel."""
    height, width = hr.shape[:2]
    squares = []
    for row in range(scale, height - scale):
        for column in range(scale, width - scale):
            difference = (sr[row, column].astype(float) - hr[row, column]) / 255
            luma = sum(w * d for w, d in zip((65.738, 129.057, 25.064), difference, strict=True))
            squares.append((luma / 256) ** 2)
    return -10 * math.log10(sum(squares) / len(squares))


def test_released_psnr(image_folder: Path) -> None:
    images = find_data(image_folder).test_set("Tiny", 4)
    ours = evaluate(Nearest(), images, len(images), 4, "test")
    theirs = evaluate(Nearest(), images, len(images), 4, "test", released_psnr=True)
    for image, row, other in zip(images, theirs.images, ours.images, strict=True):
        expected = released_psnr(image.lr.repeat(4, 0).repeat(4, 1), image.hr, 4)
        assert row.psnr == pytest.approx(expected, abs=1e-5)
        expected = released_psnr(upscale(image.lr, 4), image.hr, 4)
        assert row.bicubic_psnr == pytest.approx(expected, abs=1e-5)
        assert row.ssim == other.ssim
        assert row.psnr != other.psnr


# -- command line ---------------------------------------------------------------------------


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """A small ENLCN in the authors' naming."""
    torch.manual_seed(0)
    enlcn = released.Network(8, 8, 4, partial(released.ENLCA, m=4), image_range=255.0)
    path = tmp_path / "ENLCAx4.pt"
    torch.save(enlcn.state_dict(), path)
    return path


def command(module: object, monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["harness", *map(str, words)])
    module.main()  # type: ignore[attr-defined]


def test_official_and_converted_weights_give_the_same_bits(
    official: Path,
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    converted, first, second = (tmp_path / n for n in ("own.safetensors", "a.json", "b.json"))
    command(convert, monkeypatch, official, converted)
    assert "ENLCA-m4, 8 blocks x 8 channels, x4" in capsys.readouterr().out
    common = ("--data", image_folder, "--threads", 1, "--output")
    command(evaluation, monkeypatch, "--official", official, *common, first)
    shown = capsys.readouterr().out
    command(evaluation, monkeypatch, "--weights", converted, *common, second)
    record, other = (json.loads(path.read_text()) for path in (first, second))
    assert record["quality"] == other["quality"]
    assert record["architecture"] == other["architecture"]
    assert record["architecture"]["image_range"] == 255
    assert [row["name"] for row in record["quality"]["Tiny"]["images"]] == ["e0", "e1"]
    assert str(tmp_path) not in first.read_text()
    assert "ENLCAx4: ENLCA-m4, 8 blocks x 8 channels, x4" in shown
    row = next(line.split() for line in shown.splitlines() if line.startswith("Tiny"))
    result = record["quality"]["Tiny"]
    assert row == [
        "Tiny",
        f"{result['psnr']:.2f}",
        f"{result['ssim']:.4f}",
        f"{result['bicubic_psnr']:.2f}",
        "/",
        f"{result['bicubic_ssim']:.4f}",
        "2",
    ]
    command(evaluation, monkeypatch, "--official", official, *common, first, "--chop")
    command(evaluation, monkeypatch, "--official", official, *common, second, "--psnr", "released")
    chopped, released_luma = (json.loads(path.read_text()) for path in (first, second))
    assert (chopped["chop"], chopped["psnr"]) == (True, "rounded")
    assert (released_luma["chop"], released_luma["psnr"]) == (False, "released")
    assert released_luma["quality"]["Tiny"]["psnr"] != result["psnr"]


def test_a_run_of_ours_is_evaluated(
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    architecture = Architecture(Variant("none"), NetworkConfig(4, 8), 2)
    path = tmp_path / "runs" / "none-1" / "weights.safetensors"
    save_weights(path, architecture.build(), architecture, "none-1")
    words = ("--weights", "none", "--results", tmp_path, "--data", image_folder, "--tile", 16)
    command(evaluation, monkeypatch, *words, "--test-sets", "Tiny", "Tiny")
    assert "none-1: Baseline, 4 blocks x 8 channels, x2" in capsys.readouterr().out


def test_the_papers_figures_stand_beside_a_published_network() -> None:
    values = {"psnr": 27.0, "ssim": 0.8, "bicubic_psnr": 23.14, "bicubic_ssim": 0.657}
    image = ImageQuality(name="img001", tile=None, **values)
    results = {name: Quality(images=[image], **values) for name in ("Urban100", "Mine")}

    def rows(scale: int, blocks: int = 32) -> list[list[str]]:
        architecture = Architecture(Variant("enlca"), NetworkConfig(blocks, 256, 0.1), scale)
        table = evaluation_table("x", results, scale, published_method(architecture))
        return [[str(column.header), *map(str, column.cells)] for column in table.columns]

    assert rows(4)[-1] == ["paper's\nENLCN", "27.12 / 0.8141", ""]
    assert rows(2)[-1] == ["paper's\nENLCN", "33.56 / 0.9398", ""]
    for other in (rows(3), rows(4, blocks=8)):
        assert other[-1] == ["images", "1", "1"]


def test_mistakes_are_one_line_and_status_2(
    official: Path,
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train_only = tmp_path / "train_only"
    (train_only / "train").mkdir(parents=True)
    (train_only / "train" / "Some").symlink_to(image_folder / "train" / "Some")
    data, given = ("--data", image_folder), ("--official", official)
    for module, words, message in [
        (evaluation, data, "give one of --official FILE and --weights RUN-OR-FILE"),
        (evaluation, (*given, "--weights", "x", *data), "give one of --official"),
        (evaluation, (*given, *data, "--tile", 16, "--chop"), "--chop exclude each other"),
        (evaluation, (*given, *data, "--tile", 8), "--tile must be at least 16"),
        (evaluation, (*given, *data, "--threads", 0), "threads must be at least 1"),
        (evaluation, (*given, *data, "--test-sets", "Tny"), "did you mean Tiny"),
        (evaluation, (*given, "--data", train_only), "train_only has no test sets"),
        (evaluation, ("--weights", "x", "--block-res-scale", 1, *data), "--block-res-scale"),
        (evaluation, ("--official", tmp_path / "no.pt", *data), "no weights at"),
        (evaluation, (*given, "--psnr", "best"), "invalid choice"),
        (convert, (official, official), "exists already"),
        (convert, (official, image_folder / "train" / "Some" / "t0.png" / "a"), "cannot write"),
        (convert, (tmp_path / "no.pt", tmp_path / "new"), "no weights at"),
    ]:
        with pytest.raises(SystemExit) as stopped:
            command(module, monkeypatch, *words)
        error = capsys.readouterr().err
        assert stopped.value.code == 2
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.data
def test_bicubic_baseline_of_set5(sr_data: Path) -> None:
    """28.42 dB / 0.810, as every paper prints it."""
    images = find_data(sr_data).test_set("Set5", 4)
    result = evaluate(Nearest(), images, len(images), 4, "test")
    assert result.bicubic_psnr == pytest.approx(28.42, abs=0.005)
    assert result.bicubic_ssim == pytest.approx(0.810, abs=0.0005)
    assert result.psnr < result.bicubic_psnr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nla", "nlsa", "criss-cross", "enlca", "conv"])
def test_a_whole_large_image_stays_under_4_gb(name: str) -> None:
    """256x256 LR pixels, 1024x1024 HR: the largest in Urban100."""
    from harness.measuring.memory import peak_memory

    network = build_network(Variant(name), NetworkConfig(8, 32), 4)
    lr = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    peak = peak_memory(lambda: super_resolve(network, lr, 4), torch.device("cpu"))
    assert peak is not None
    assert peak < 2e9
