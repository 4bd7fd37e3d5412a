"""Visual comparisons: the crop is the rule's, and the numbers are the crop's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_maps import make

from harness.base.errors import UserError
from harness.config.variants import Variant
from harness.images.bicubic import upscale
from harness.images.files import ImageSet
from harness.images.metrics import psnr, rgb_to_y, ssim
from harness.images.sources import TestSet
from harness.measuring.quality import super_resolve
from harness.network.weights import TrainedNetwork, save_weights
from harness.pictures.crops import RULE, compare, find_crop
from tests.harness.conftest import Cli


def picture(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@settings(max_examples=25)
@given(
    st.integers(0, 10**6),
    st.integers(8, 18),
    st.integers(8, 18),
    st.integers(1, 5),
    st.integers(2, 3),
)
def test_the_crop_is_the_widest_spread_of_all_windows(
    seed: int, height: int, width: int, size: int, count: int
) -> None:
    border = 1
    hr = picture(seed, height, width)
    results = [picture(seed + i + 1, height, width) for i in range(count)]
    squares = [(rgb_to_y(r).astype(float) - rgb_to_y(hr).astype(float)) ** 2 for r in results]
    best = (-1.0, 0, 0)
    for top in range(border, height - border - size + 1):
        for left in range(border, width - border - size + 1):
            errors = [s[top : top + size, left : left + size].mean() for s in squares]
            if max(errors) - min(errors) > best[0] + 1e-9:
                best = (max(errors) - min(errors), top, left)
    top, left, spread = find_crop(hr, results, size, border)
    assert (spread, top, left) == (pytest.approx(best[0]), *best[1:])


def test_a_crop_that_does_not_fit_is_an_error() -> None:
    hr = picture(0, 20, 30)
    with pytest.raises(UserError, match="a crop of 17x17 does not fit into 30x20 pixels inside"):
        find_crop(hr, [hr, hr], 17, 2)
    assert find_crop(hr, [hr, hr], 16, 2) == (2, 2, 0.0)  # of equals the first


@pytest.fixture(scope="module")
def networks() -> list[TrainedNetwork]:
    return [make("nla-run", Variant("nla")), make("none-run", Variant("none"))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, networks: list[TrainedNetwork]) -> Path:
    """Runs, and a data folder with two test images, the first of which is flat."""
    folder = tmp_path_factory.mktemp("visual")
    for run in [*networks, make("x3-run", Variant("nla"), scale=3)]:
        path = folder / "results" / "runs" / run.name / "weights.safetensors"
        save_weights(path, run.network, run.architecture, run.name)
    hr = folder / "data" / "Some" / "HR"
    hr.mkdir(parents=True)
    Image.fromarray(np.full((40, 44, 3), 128, np.uint8)).save(hr / "flat.png")
    Image.fromarray(picture(3, 40, 48)).save(hr / "noise.png")
    return folder


def test_numbers_are_those_of_the_crop_and_of_the_image(
    folder: Path, networks: list[TrainedNetwork]
) -> None:
    path = folder / "data" / "Some" / "HR" / "noise.png"
    (image,) = TestSet(ImageSet("Some", (path,)), 2)
    found = compare(image, networks, ["NLA", "Baseline"], 12)
    outputs = [upscale(image.lr, 2)] + [super_resolve(run.network, image.lr, 2) for run in networks]
    assert [panel.label for panel in found.panels] == ["Bicubic", "NLA", "Baseline"]
    window = slice(found.top, found.top + 12), slice(found.left, found.left + 12)
    for panel, sr in zip(found.panels, outputs, strict=True):
        assert np.array_equal(panel.pixels, sr[window])
        y, hr = rgb_to_y(sr), rgb_to_y(image.hr)
        assert panel.crop.psnr == pytest.approx(psnr(y[window], hr[window], 0))
        assert panel.crop.ssim == pytest.approx(ssim(y[window], hr[window], 0))
        assert panel.image.psnr == pytest.approx(psnr(y, hr, 2))
    assert (found.top, found.left) == find_crop(image.hr, outputs[1:], 12, 2)[:2]
    # One network is set against bicubic.
    alone = compare(image, networks[:1], ["NLA"], 12)
    assert (alone.top, alone.left) == find_crop(image.hr, outputs[:2], 12, 2)[:2]


def typed(folder: Path, *words: str | Path) -> list[str | Path]:
    return [*words, "--results", folder / "results", "--data", folder / "data", "--threads", "1"]


def test_command_line(cli: Cli, folder: Path) -> None:
    words = typed(folder, "--runs", "nla-run", "none-run", "--crop", "12")
    stem = folder / "results" / "figures" / "visual-Some"
    files = [stem.with_suffix(suffix) for suffix in (".png", ".pdf", ".json")]
    assert cli("visual", *words).out.splitlines() == [str(path) for path in files]
    record = json.loads(files[2].read_text())
    assert str(folder) not in files[2].read_text()
    assert record["rule"] == RULE
    assert (record["images"], record["count"], record["runs"]) == (2, 1, ["nla-run", "none-run"])
    (crop,) = record["crops"]
    assert crop["image"] == "noise"  # where the results differ more
    assert [panel["run"] for panel in crop["panels"]] == [None, "nla-run", "none-run"]
    assert Image.open(files[0]).width == 1380  # 6.9 in at 200 dpi
    before = [path.read_bytes() for path in files]
    cli("visual", *words)
    assert [path.read_bytes() for path in files] == before
    assert "another figure" in cli.refused("visual", *words, "--count", "2")
    assert [path.read_bytes() for path in files] == before
    cli("visual", *words, "--count", "2", "--output", folder / "both")
    both = json.loads((folder / "both.json").read_text())
    assert [crop["image"] for crop in both["crops"]] == ["noise", "flat"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--runs", "nla-run", "x3-run"], "different scales (nla-run x2, x3-run x3)"),
        (["--runs", "nla-run", "--crop", "10"], "--crop must be at least 11 (SSIM's window)"),
        (["--runs", "nla-run", "--count", "0"], "--count must be at least 1, got 0"),
        (["--runs", "nla-run", "--tile", "8"], "--tile must be at least 16 LR pixels"),
        (["--runs", "nla-run", "--crop", "64"], "give a smaller --crop or larger images"),
        (["--runs", "nla-run", "--image", "a.png"], "give either --image, or --test-set and"),
        (["--runs", "nothing"], "nothing"),
        (["--runs", "nla-run", "--test-set", "Set99"], "Set99"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(
    cli: Cli, folder: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    line = cli.refused("visual", *typed(folder, *words), "--output", tmp_path / "figure")
    assert message in line
    assert not list(tmp_path.iterdir())
