from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from harness.base.errors import UserError
from harness.config.network import NetworkConfig
from harness.config.variants import Variant
from harness.images.bicubic import upscale
from harness.images.inputs import MAX_PSNR, bicubic_quality
from harness.images.metrics import quality
from harness.images.sources import TestImage, find_data
from harness.measuring.quality import evaluate, super_resolve
from harness.network.edsr import build_network
from harness.network.official import published_method
from harness.network.weights import Architecture, save_weights
from harness.records.shapes import ImageQuality, Quality
from harness.reporting.tables.evaluation import evaluation_table
from tests.harness.conftest import Cli
from tests.reference import released


class Nearest(nn.Module):
    """Repeats pixels; it has a parameter so that its device can be read."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gain * x.repeat_interleave(4, 2).repeat_interleave(4, 3)


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((5, 7), {}),
        *((size, {"tile": 16}) for size in [(40, 50), (33, 17), (16, 16)]),
        *((size, {"chop": True}) for size in [(1, 1), (3, 40), (20, 31), (130, 1)]),
    ],
)
def test_pixels_go_through_unchanged(
    size: tuple[int, int], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole, in tiles, and in quarters of images that are smaller than one with its overlap."""
    monkeypatch.setattr("harness.measuring.quality.CHOP_PIXELS", 1000)
    lr = random_image(*size)
    found = super_resolve(Nearest(), lr, 4, **options)
    assert np.array_equal(found, lr.repeat(4, 0).repeat(4, 1))


@pytest.mark.parametrize("name", ["none", "nla", "nlsa", "enlca"])
def test_batches_of_tiles_do_not_matter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles that pass the network together give the pixels of tiles that pass one by one."""
    torch.manual_seed(0)
    network, lr = (
        build_network(Variant(name), NetworkConfig(blocks=4, channels=16), 2),
        random_image(90, 59),
    )
    seen = []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    together = super_resolve(network, lr, 2, tile=16)
    assert sorted(seen)[-1] == (8, 3, 32, 32)  # all inner tiles
    assert sum(shape[0] for shape in seen) == 6 * 4
    seen.clear()
    monkeypatch.setattr("harness.measuring.quality._POSITIONS", 1)
    alone = super_resolve(network, lr, 2, tile=16)
    assert [shape[0] for shape in seen] == [1] * 24
    assert np.abs(together.astype(int) - alone).max() <= 1


def test_output_is_clipped_and_rounded() -> None:
    lr = np.full((4, 4, 3), 200, np.uint8)
    assert super_resolve(Nearest(2.0), lr, 4).max() == 255
    assert super_resolve(Nearest(-1.0), lr, 4).max() == 0
    assert (super_resolve(Nearest(0.5031), lr, 4) == 101).all()


class Small(Nearest):
    """A network on a GPU that holds only so many LR pixels."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.pixels = pixels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] * x.shape[2] * x.shape[3] > self.pixels:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().forward(x)


def gradient_image(height: int, width: int) -> TestImage:
    hr = random_image(4 * height, 4 * width, seed=1)
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
    for line, tried, size in zip(told, ("whole", "in tiles of 75"), (75, 37), strict=True):
        assert line.startswith("warning: wall (LR 150x140) does not fit")
        assert f" {tried}: using tiles of {size} LR pixels" in line


def test_tiles_that_fit_one_by_one_stay_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Too little memory for a batch makes no tile smaller: the record would have other pixels."""
    image = gradient_image(100, 90)
    found, wanted = (
        evaluate(network, [image], 1, 4, "test", 32) for network in (Small(48 * 48), Nearest())
    )
    assert found == wanted
    assert [row.tile for row in found.images] == [32]
    assert "warning" not in capsys.readouterr().err


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
        assert row.bicubic_ssim == pytest.approx(bicubic.ssim, abs=1e-6)
        assert row.tile == 12
    for name in ("psnr", "ssim", "bicubic_psnr", "bicubic_ssim"):
        mean = np.mean([getattr(row, name) for row in rows])
        assert getattr(result, name) == pytest.approx(mean, abs=1e-5)


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache folder of the test's own; gives the place of the bicubic numbers."""
    monkeypatch.setenv("SR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bicubic"


def test_bicubic_is_measured_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [gradient_image(20, 30), gradient_image(24, 20)]
    first = evaluate(Nearest(), images, 2, 4, "test")
    assert len(list(cache.iterdir())) == 2
    monkeypatch.setattr("harness.images.inputs.upscale", None)  # it is not called again
    assert evaluate(Nearest(), images, 2, 4, "test") == first


@pytest.mark.parametrize("change", ["lr", "hr", "scale", "released_psnr", "version"])
def test_bicubic_of_anything_else_is_measured(
    change: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = gradient_image(20, 30)
    kept = bicubic_quality(image, 4)
    if change in ("lr", "hr"):
        image = dataclasses.replace(image, **{change: 255 - getattr(image, change)})
    elif change == "scale":
        image = dataclasses.replace(image, hr=image.hr[:40, :60].copy())
    elif change == "version":
        monkeypatch.setattr("harness.images.inputs.BICUBIC_VERSION", 0)
    found = bicubic_quality(image, 2 if change == "scale" else 4, change == "released_psnr")
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

    height, width = lr.shape[:2]
    h, w = (4 * math.ceil((height // 2 + 11) / 4), 8 * math.ceil((width // 2 + 11) / 8))
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
    lr = random_image(*size)
    found = super_resolve(PatchDependent(), lr, 4, chop=True)
    assert np.array_equal(found, in_quarters(PatchDependent(), lr, largest))


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


def test_official_and_converted_weights_give_the_same_bits(
    cli: Cli, official: Path, image_folder: Path, tmp_path: Path
) -> None:
    converted, first, second = (tmp_path / n for n in ("own.safetensors", "a.json", "b.json"))
    assert "ENLCA-m4, 8 blocks x 8 channels, x4" in cli("convert", official, converted).out
    common = ("--data", image_folder, "--threads", 1, "--output")
    shown = cli("evaluate --official", official, *common, first).out
    cli("evaluate --weights", converted, *common, second)
    record, other = (json.loads(path.read_text()) for path in (first, second))
    assert record["quality"] == other["quality"]
    assert record["architecture"] == other["architecture"]
    assert record["architecture"]["image_range"] == 255
    assert [row["name"] for row in record["quality"]["Tiny"]["images"]] == ["e0", "e1"]
    assert str(tmp_path) not in first.read_text()
    assert "ENLCAx4: ENLCA-m4, 8 blocks x 8 channels, x4" in shown
    row = next(line.split() for line in shown.splitlines() if line.startswith("Tiny"))
    result = record["quality"]["Tiny"]
    ours = f"{result['psnr']:.2f} {result['ssim']:.4f}"
    bicubic = f"{result['bicubic_psnr']:.2f} / {result['bicubic_ssim']:.4f}"
    assert row == f"Tiny {ours} {bicubic} 2".split()
    cli("evaluate --chop --official", official, *common, first)
    cli("evaluate --psnr released --official", official, *common, second)
    chopped, released_luma = (json.loads(path.read_text()) for path in (first, second))
    assert (chopped["chop"], chopped["psnr"]) == (True, "rounded")
    assert (released_luma["chop"], released_luma["psnr"]) == (False, "released")
    assert released_luma["quality"]["Tiny"]["psnr"] != result["psnr"]
    cli("evaluate --task sr --degradation box --official", official, *common, first)
    box = json.loads(first.read_text())
    assert (box["task"]["options"], box["trained_on"]) == ({"degradation": "box", "noise": 0}, None)
    assert box["quality"]["Tiny"]["bicubic_psnr"] != result["bicubic_psnr"]


def test_a_run_of_ours_is_evaluated(cli: Cli, image_folder: Path, tmp_path: Path) -> None:
    architecture = Architecture(Variant("none"), NetworkConfig(4, 8), 2)
    path = tmp_path / "runs" / "none-1" / "weights.safetensors"
    save_weights(path, architecture.build(), architecture, "none-1")
    words = ("--results", tmp_path, "--data", image_folder)
    shown = cli("evaluate --weights none --tile 16 --test-sets Tiny Tiny", *words).out
    assert "none-1: Baseline, 4 blocks x 8 channels, x2" in shown


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
    cli: Cli, official: Path, image_folder: Path, tmp_path: Path
) -> None:
    train_only = tmp_path / "train_only"
    (train_only / "train").mkdir(parents=True)
    (train_only / "train" / "Some").symlink_to(image_folder / "train" / "Some")
    data = ("--data", image_folder)
    given = ("--official", official, *data)
    for line, words, message in [
        ("evaluate", data, "give one of --official FILE and --weights RUN-OR-FILE"),
        ("evaluate --weights x", given, "give one of --official"),
        ("evaluate --tile 16 --chop", given, "--chop exclude each other"),
        ("evaluate --tile 8", given, "--tile must be at least 16"),
        ("evaluate --threads 0", given, "threads must be at least 1"),
        ("evaluate --test-sets Tny", given, "did you mean Tiny"),
        ("evaluate", ("--official", official, "--data", train_only), "train_only has no test sets"),
        ("evaluate --weights x --block-res-scale 1", data, "--block-res-scale"),
        ("evaluate", ("--official", tmp_path / "no.pt", *data), "no weights at"),
        ("evaluate --psnr best", given, "invalid choice"),
        ("convert", (official, official), "exists already"),
        ("convert", (official, image_folder / "train" / "Some" / "t0.png" / "a"), "cannot write"),
        ("convert", (tmp_path / "no.pt", tmp_path / "new"), "no weights at"),
    ]:
        assert message in cli.refused(line, *words)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nla", "nlsa", "criss-cross", "enlca", "conv"])
def test_a_whole_large_image_stays_under_4_gb(name: str) -> None:
    """256x256 LR pixels, 1024x1024 HR: the largest in Urban100."""
    from harness.measuring.memory import peak_memory

    network = build_network(Variant(name), NetworkConfig(8, 32), 4)
    lr = random_image(256, 256)
    peak = peak_memory(lambda: super_resolve(network, lr, 4), torch.device("cpu"))
    assert peak is not None
    assert peak < 2e9
