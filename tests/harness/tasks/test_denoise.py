"""Denoising: its pairs, its score, and runs with tables of their own."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor, nn

from harness import run, tables
from harness.base.errors import UserError
from harness.images.degradation import grey
from harness.images.files import read_image
from harness.images.inputs import MAX_PSNR
from harness.images.metrics import ssim
from harness.images.sources import find_data
from harness.measuring.quality import evaluate
from harness.network.weights import load_weights
from harness.records.shapes import UNSET, Run, ShapeError, typed, untyped
from harness.records.store import load_records, setting_label
from harness.reporting.report.page import write_report
from harness.tasks.denoise import Denoise

TINY = ["--blocks", "4", "--channels", "8", "--steps", "3", "--batch", "2", "--patch", "8"]
DENOISE = ["--task", "denoise", *TINY]

Main = Callable[..., int]


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, image_folder: Path) -> Main:
    """Run ``harness.run``; gives its exit status."""

    def called(*words: str | Path) -> int:
        places = [] if "--results" in words else ["--results", tmp_path]
        places += [] if "--data" in words else ["--data", image_folder]
        monkeypatch.setattr(sys, "argv", [str(w) for w in ("harness.run", *words, *places)])
        try:
            run.main()
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return called


def make_tables(monkeypatch: pytest.MonkeyPatch, results: Path) -> dict[Path, bytes]:
    monkeypatch.setattr(sys, "argv", ["harness.tables", "--results", str(results)])
    tables.main()
    return {path: path.read_bytes() for path in (results / "tables").rglob("*.*")}


class Fixed(nn.Module):
    """A network that adds to the three channels of its input what it is given."""

    def __init__(self, *added: float) -> None:
        super().__init__()
        self.added = nn.Parameter(torch.tensor(added, dtype=torch.float32).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.added


# -- pairs ----------------------------------------------------------------------------------


def test_patches_are_grey_with_noise_and_depend_on_seed_and_step(image_folder: Path) -> None:
    source = find_data(image_folder)
    task = Denoise(None, source, sigma=25)
    key = {"seed": 1, "step": 2, "batch": 8, "patch": 24}
    batch = task.batch(**key)
    assert batch.inputs.shape == batch.targets.shape == (8, 24, 24, 3)
    assert (np.ptp(batch.targets, axis=-1) == 0).all()
    assert (np.ptp(batch.inputs, axis=-1) == 0).all()
    noise = 255 * batch.inputs[..., 0] - batch.targets[..., 0]
    assert noise.std() == pytest.approx(25, rel=0.05)
    whole = [grey(image) for image in task.cache.hr]
    found = batch.targets[0, ..., 0]
    turned = [np.rot90(f, k) for f in (found, found.T) for k in range(4)]
    assert any(
        (image[y : y + 24, x : x + 24] == patch).all()
        for image in whole
        for patch in turned
        for y in range(len(image) - 23)
        for x in range(image.shape[1] - 23)
    )
    again = Denoise(None, source, sigma=25).batch(**key)
    np.testing.assert_array_equal(again.inputs, batch.inputs)
    for other in ({"step": 3}, {"seed": 2}):
        assert (task.batch(**(key | other)).inputs != batch.inputs).mean() > 0.99
    stronger = Denoise(None, source, sigma=50).batch(**key)
    np.testing.assert_array_equal(stronger.targets, batch.targets)


def test_test_images_are_whole_and_their_noise_is_fixed(image_folder: Path) -> None:
    source = find_data(image_folder)
    weak, strong, again = ([*Denoise(None, source, sigma=s).test_set("Tiny")] for s in (25, 50, 50))
    for first, second, third in zip(weak, strong, again, strict=True):
        clean = grey(read_image(image_folder / "Tiny" / "HR" / f"{first.name}.png"))
        for image in (first, second):
            np.testing.assert_array_equal(image.hr, clean[..., None].repeat(3, axis=-1))
        np.testing.assert_array_equal(second.lr, third.lr)
        # The same draw, twice as strong.
        np.testing.assert_allclose(second.lr - first.lr, first.lr - first.hr / 255, atol=1e-6)
    a, b = (255 * image.lr[..., 0] - image.hr[..., 0] for image in weak)
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.1


def test_without_the_task_there_are_no_test_images_of_scale_1(image_folder: Path) -> None:
    """``harness.evaluate`` would measure networks on clean images otherwise."""
    with pytest.raises(UserError, match="networks of scale 1 enlarge no LR images"):
        next(iter(find_data(image_folder).test_set("Tiny", 1)))


# -- the score ------------------------------------------------------------------------------


def test_the_score_is_psnr_of_the_rounded_mean_over_the_whole_image(image_folder: Path) -> None:
    images = [*Denoise(None, find_data(image_folder), sigma=25).test_set("Tiny")]
    found = evaluate(Fixed(0.1, -0.02, 0.01), images, 2, 1, "test", grey=True)
    for row, image in zip(found.images, images, strict=True):
        clean = image.hr[..., 0]
        mean = 255 * (image.lr[..., 0].astype(float) + 0.03)
        result = np.clip(np.rint(mean), 0, 255).astype(np.uint8)
        assert row.psnr == pytest.approx(
            peak_signal_noise_ratio(clean, result, data_range=255), abs=1e-3
        )
        assert row.ssim == pytest.approx(ssim(result, clean, 0), abs=1e-4)
        noise = 255 * image.lr[..., 0].astype(float) - clean
        assert row.noisy_psnr == pytest.approx(10 * np.log10(255**2 / np.mean(noise**2)), abs=1e-5)
        assert row.noisy_psnr == pytest.approx(20 * np.log10(255 / 25), abs=0.3)
        assert row.bicubic_psnr is UNSET
    assert found.noisy_psnr == pytest.approx(np.mean([row.noisy_psnr for row in found.images]))


def test_perfect_denoising_has_the_greatest_psnr(image_folder: Path) -> None:
    (image, _) = Denoise(None, find_data(image_folder)).test_set("Tiny")

    class Knows(Fixed):
        def forward(self, x: Tensor) -> Tensor:
            return torch.from_numpy(image.hr).permute(2, 0, 1)[None] / 255

    found = evaluate(Knows(0, 0, 0), [image], 1, 1, "test", grey=True)
    assert (found.psnr, found.ssim) == (MAX_PSNR, 1)


def test_tiles_give_the_whole_image(image_folder: Path) -> None:
    images = [*Denoise(None, find_data(image_folder)).test_set("Tiny")]
    whole, tiled = (
        evaluate(Fixed(0, 0, 0.1), images, 2, 1, "test", tile, grey=True) for tile in (None, 20)
    )
    assert whole.psnr == tiled.psnr
    assert tiled.images[0].tile == 20


# -- runs -----------------------------------------------------------------------------------


def test_a_run_leaves_a_record_and_a_table_of_its_own(
    main: Main, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*DENOISE, "--sigma", "25", "--attn", "none", "enlca", "--m", "4"]
    assert main(*words) == 0
    printed = capsys.readouterr().out
    assert "denoise sigma 25" in printed
    assert "noisy image" in printed
    assert "paper" not in printed
    assert "GFLOPs" not in printed

    baseline, enlca = load_records(tmp_path, Run)
    config = enlca.config
    assert config.image_task is not None
    assert config.image_task.options == {"sigma": 25.0}
    assert (config.image_task.loss, config.image_task.positions) == ("l1", [0, 1, 2, 3, 4])
    assert (config.scale, config.data.test) == (1, ["Tiny"])
    assert enlca.id.startswith("enlca-m4-denoise-sigma-25-quick-x1-s0-")
    assert setting_label(enlca).startswith("denoise-sigma-25-quick-x1-scratch-")
    assert "res_scale" not in (enlca.variant.changed or {})
    assert not (tmp_path / "records" / "costs").exists()
    weights = tmp_path / "runs" / enlca.id / "weights.safetensors"
    assert [*load_weights(weights).network.attention] == ["0", "1", "2", "3", "4"]
    for row in enlca.quality["Tiny"].images:
        assert row.noisy_psnr == pytest.approx(20 * np.log10(255 / 25), abs=0.3)
    content = json.loads(json.dumps(untyped(enlca)))
    assert "bicubic_psnr" not in json.dumps(content)
    del content["quality"]["Tiny"]["images"][1]["noisy_ssim"]
    with pytest.raises(ShapeError, match=r"images\[1\].noisy_ssim' is missing"):
        typed(content)

    made = make_tables(monkeypatch, tmp_path)
    assert {path.name for path in made} == {"quality.csv", "quality.md"}
    (path,) = (path for path in made if path.suffix == ".csv")
    with path.open() as file:
        rows = [*csv.DictReader(file)]
    assert [row["method"] for row in rows] == ["Noisy image", "Baseline", "ENLCA-m4"]
    assert {row["task"] for row in rows} == {"denoise sigma 25"}
    difference = enlca.quality["Tiny"].psnr - baseline.quality["Tiny"].psnr
    assert float(rows[2]["difference_db"]) == pytest.approx(difference, abs=1e-5)
    assert float(rows[0]["psnr_db_measured"]) == pytest.approx(enlca.quality["Tiny"].noisy_psnr)
    text = path.with_suffix(".md").read_text()
    assert "denoise sigma 25" in text
    assert "×1" not in text
    page, _ = write_report(tmp_path)
    assert "Denoising and other LR images" in page.read_text(encoding="utf-8")

    # Again: nothing is trained.
    monkeypatch.setattr("harness.runs.run.Trainer", None)
    assert main(*words) == 0


def test_settings_of_tasks_mix_with_none_of_super_resolution(
    main: Main, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["--attn", "none", *TINY, "--skip-latency"]
    assert main(*short) == 0
    before = make_tables(monkeypatch, tmp_path)
    capsys.readouterr()
    assert main("--task", "sr", "--degradation", "box", *short) == 0
    printed = capsys.readouterr().out
    assert "sr degradation box noise 0" in printed
    assert "×4 PSNR" not in printed  # the paper's
    assert main("--noise", "10", *short) == 0
    for sigma in ("25", "50"):
        assert main(*DENOISE, "--sigma", sigma, "--attn", "none") == 0
    after = make_tables(monkeypatch, tmp_path)
    assert before.items() <= after.items()
    new = {path.parent.name for path in after.keys() - before.keys()} - {"notes"}
    assert {re.sub(r"-quick.*", "", name) for name in new} == {
        "sr-degradation-box-noise-0",
        "sr-degradation-bicubic-noise-10",
        "denoise-sigma-25",
        "denoise-sigma-50",
    }
    for path in after.keys() - before.keys():
        assert path.stem == "quality"
    methods = [row["method"] for row in _rows(tmp_path, "sr-degradation-box")]
    assert methods == ["Bicubic", "Baseline"]


def _rows(results: Path, start: str) -> list[dict[str, Any]]:
    (path,) = (results / "tables").glob(f"{start}*/quality.csv")
    with path.open() as file:
        return [*csv.DictReader(file)]


def test_a_warm_start_begins_with_a_baseline_of_the_same_task(main: Main, tmp_path: Path) -> None:
    words = [*DENOISE, "--attn", "nla", "--protocol", "warm-start", "--start-steps", "2"]
    assert main(*words) == 0
    baseline, warm = load_records(tmp_path, Run)
    assert baseline.config.task == warm.config.task
    assert (baseline.config.protocol, warm.config.protocol) == ("scratch", "warm-start")


def test_held_out_images_and_chosen_sets(main: Main, tmp_path: Path) -> None:
    words = [*DENOISE, "--attn", "none", "--holdout", "3", "--test-sets", "Holdout"]
    assert main(*words) == 0
    (record,) = load_records(tmp_path, Run)
    assert [*record.quality] == ["Holdout"]
    assert record.config.data.train_images == 2


def test_preset_photographs_fixes_weight_number_and_tiles(main: Main, tmp_path: Path) -> None:
    words = ["--task", "denoise", "--preset", "photographs", "--steps", "1", "--batch", "1"]
    words += ["--channels", "8", "--patch", "8", "--test-sets", "Tiny"]
    assert main(*words, "--attn", "none", "nla", "criss-cross") == 0
    assert main(*words, "--attn", "nla", "--res-scale", "0.1", "--tile", "0", "--modules", "5") == 0
    found = {(one.variant.name, one.config.tile): one for one in load_records(tmp_path, Run)}
    none, nla, cross = (found[name, 32] for name in ("none", "nla", "criss-cross"))
    other = found["nla", None]
    for one in (none, nla, cross):
        assert one.config.task is not UNSET
        assert one.config.task.positions == [1, 3]
        assert (one.config.tile, one.config.blocks) == (32, 4)
    assert nla.variant.changed == {"res_scale": 1.0}
    assert none.variant.changed == cross.variant.changed == {}  # they have no weight
    assert other.variant.changed == {}
    assert other.config.tile is None
    assert other.config.task is not UNSET
    assert other.config.task.positions == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*DENOISE, "--sigma", "0"], "sigma must be 1 to 255, got 0"),
        ([*DENOISE, "--sigma", "nan"], "sigma must be 1 to 255, got nan"),
        (["--sigma", "25"], r"task sr has no option --sigma \(an option of denoise\)"),
        (
            [*DENOISE, "--noise", "25"],
            r"task denoise has no option --noise \(an option of sr, ",
        ),
        (["--task", "recall", "--degradation", "box"], "task recall has no option --degradation"),
        (["--noise", "-1"], "noise must be 0 to 255, got -1"),
        (["--degradation", "area"], "degradation"),
        ([*DENOISE, "--scale", "2"], "--scale applies only to --task sr$"),
        ([*DENOISE, "--skip-latency"], "--skip-latency applies only to --task sr$"),
        ([*DENOISE, "--preset", "paper"], "task denoise has no preset 'paper': choose from quick"),
        ([*DENOISE, "--blocks", "3"], "blocks must be at least 4"),
        ([*DENOISE, "--patch", "70"], "smaller than a patch of 70x70"),
        ([*DENOISE, "--test-sets", "Set5"], "no test set in .* is called 'Set5'"),
    ],
)
def test_mistakes_are_one_line(
    main: Main, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(*words) == 2
    *bar, line = capsys.readouterr().err.strip().splitlines()
    assert all("Decoding" in other for other in bar)
    assert re.search(message, line), line


@pytest.mark.slow
def test_a_short_training_denoises_the_embedded_images(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("SR_DATA", raising=False)
    words = ["--task", "denoise", "--attn", "none", "enlca", "--steps", "100", "--patch", "24"]
    monkeypatch.setattr(sys, "argv", ["harness.run", *words, "--results", str(tmp_path)])
    run.main()
    for record in load_records(tmp_path, Run):
        assert record.config.data.name == "embedded"
        found = record.quality["Embedded"]
        assert found.noisy_psnr == pytest.approx(20 * np.log10(255 / 50), abs=0.02)
        assert found.psnr > found.noisy_psnr + 8
        assert all(image.psnr > image.noisy_psnr + 5 for image in found.images)


@pytest.mark.data
def test_set5_has_the_psnr_that_its_noise_has(sr_data: Path) -> None:
    images = [*Denoise(None, find_data(sr_data), sigma=25).test_set("Set5")]
    found = evaluate(Fixed(0, 0, 0), images, len(images), 1, "test", grey=True)
    assert len(images) == 5
    assert found.noisy_psnr == pytest.approx(20 * np.log10(255 / 25), abs=0.02)
    assert found.psnr > found.noisy_psnr  # clipping takes some noise away
