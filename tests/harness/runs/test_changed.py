"""Test images that change after a run: its numbers are never those of other images."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from msgspec.structs import replace
from PIL import Image

from harness.base import folders
from harness.images.files import read_image
from harness.images.sources import find_data
from harness.records.changed import changed_sets
from harness.records.shapes import UNSET, Run
from harness.records.store import load_records, save_record
from harness.tasks.denoise import Denoise
from harness.tasks.sr import SuperResolution
from tests.harness.conftest import Cli, write_image, write_images
from tests.harness.tiny import make_config, run_tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


@pytest.fixture
def job(tiny: list[str], folder: Path) -> list[str]:
    return [*tiny, "--skip-latency", "--data", str(folder)]


def quality(results: Path, name: str) -> dict[str, float]:
    """PSNR of each image of the module's only run."""
    (found,) = (r for r in load_records(results, Run) if r.variant.name == name)
    return {image.name: image.psnr for image in found.quality["Tiny"].images}


def without_digests(results: Path) -> None:
    """Write the records as older versions did."""
    for record in load_records(results, Run):
        old = {n: replace(q, sha256=UNSET, lr_files=UNSET) for n, q in record.quality.items()}
        save_record(results, replace(record, quality=old), replace=True)


@pytest.mark.parametrize("older", [False, True])
def test_a_replaced_image_is_evaluated_anew_from_the_weights(
    cli: Cli, job: list[str], results: Path, folder: Path, tmp_path: Path, older: bool
) -> None:
    cli("run", "--attn", "none", *job)
    before = quality(results, "none")
    if older:
        without_digests(results)
    write_image(folder / "Tiny" / "HR" / "e0.png", 48, 60, seed=99)
    printed = cli("run", "--attn", "none", "conv", *job).out
    assert "the images of Tiny have changed since baseline-quick" in " ".join(printed.split())
    after = quality(results, "none")
    assert after["e0"] != before["e0"]
    assert after["e1"] == before["e1"]
    # As if the images had been these from the beginning.
    cli("run", "--attn", "none", *job, "--results", tmp_path / "other")
    assert quality(tmp_path / "other", "none") == after
    records = {r.variant.name: r for r in load_records(results, Run)}
    assert [name for name, r in records.items() if r.evaluated] == ["none"]
    assert "--attn none conv" in records["none"].evaluated.command
    assert records["none"].evaluated.machine == records["conv"].machine
    assert records["none"].created <= records["none"].evaluated.created
    bicubic = [[image.bicubic_psnr for image in r.quality["Tiny"].images] for r in records.values()]
    assert bicubic[0] == bicubic[1]
    # And once only.
    assert "have changed" not in cli("run", "--attn", "none", *job).out


def test_a_published_run_on_other_images_is_trained_here(
    cli: Cli,
    tiny: list[str],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the same images it is read; of others the user's own run takes its place."""
    published, here = tmp_path / "published", tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(folders, "PUBLISHED", published)
    words = ["--attn", "none", *tiny, "--skip-latency", "--data", str(folder), "--results"]
    cli("run", *words, published)
    cli("run", *words, folders.OWN)
    assert not (folders.OWN / "records" / "runs").exists()
    write_image(folder / "Tiny" / "HR" / "e0.png", 48, 60, seed=99)
    cli("run", *words, folders.OWN)
    assert quality(folders.OWN, "none")["e0"] != quality(published, "none")["e0"]
    assert (folders.OWN / "records" / "runs").exists()


def test_images_that_stay_are_not_evaluated_anew(
    cli: Cli, job: list[str], results: Path, folder: Path
) -> None:
    """Other bytes of the same pixels are no other images, and older records need no digest."""
    cli("run", "--attn", "none", *job)
    path = folder / "Tiny" / "HR" / "e0.png"
    Image.fromarray(read_image(path)).save(path.with_suffix(".bmp"))
    path.unlink()
    (record,) = (results / "records" / "runs").iterdir()
    for _ in range(2):
        before = record.read_bytes()
        cli("run", "--attn", "none", *job)
        assert record.read_bytes() == before
        without_digests(results)


def test_lr_files_that_change_are_other_images(tmp_path: Path, folder: Path) -> None:
    record = run_tiny(make_config(), folder, tmp_path)
    assert record.quality["Tiny"].lr_files == 0
    source = find_data(folder)
    assert changed_sets(record, SuperResolution(None, source, 4)) == []
    write_image(folder / "Tiny" / "LR_bicubic" / "X4" / "e0x4.png", 12, 15, seed=5)
    task = SuperResolution(None, source, 4)
    assert changed_sets(record, task) == ["Tiny"]
    again = run_tiny(make_config(), folder, tmp_path)
    assert again.quality["Tiny"].lr_files == 1
    assert changed_sets(again, task) == []


def test_without_weights_the_run_is_refused(
    cli: Cli, job: list[str], results: Path, folder: Path
) -> None:
    cli("run", "--attn", "none", *job)
    shutil.rmtree(results / "runs")
    (record,) = (results / "records" / "runs").iterdir()
    before = record.read_bytes()
    write_image(folder / "Tiny" / "HR" / "e2.png", 48, 60, seed=99)
    line = cli.refused("run", "--attn", "none", *job)
    assert f"its weights are not kept: restore the images, or delete {record}" in line
    # Those of another run do not stand in for them.
    cli("run", "--attn", "conv", *job)
    (other,) = (results / "runs").glob("conv-*/weights.safetensors")
    shutil.copytree(other.parent, results / "runs" / record.stem)
    assert f"holds the weights of {other.parent.name}" in cli.refused("run", "--attn", "none", *job)
    assert record.read_bytes() == before


def test_a_sweep_evaluates_anew_too(
    cli: Cli, job: list[str], results: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("run", "--attn", "none", *job)
    before = quality(results, "none")
    write_image(folder / "Tiny" / "HR" / "e0.png", 48, 60, seed=99)
    words = [word for word in job if word != "--skip-latency"]
    asked = []
    monkeypatch.setattr(
        "harness.runs.engines.run_job", lambda words, *_, **__: asked.append(words) or 1
    )
    cli("sweep", "--attn", "none", *words, status=1)
    cli("run", *asked[0][: asked[0].index("--device")])
    assert quality(results, "none")["e0"] != before["e0"]
    cli("sweep", "--attn", "none", *words)
    assert len(asked) == 1


def test_noisy_images_of_older_records(
    cli: Cli, job: list[str], results: Path, folder: Path
) -> None:
    cli("run", "--task", "denoise", "--attn", "none", *job[:-3], "--data", folder)
    without_digests(results)
    (record,) = load_records(results, Run)
    assert record.quality["Tiny"].sha256 is UNSET
    assert changed_sets(record, Denoise(None, find_data(folder), 1)) == []
    write_image(folder / "Tiny" / "HR" / "e0.png", 48, 60, seed=99)
    assert changed_sets(record, Denoise(None, find_data(folder), 1)) == ["Tiny"]


@pytest.mark.data
def test_published_records_are_of_the_published_images(sr_data: Path) -> None:
    """They hold no digest: bicubic's PSNR of each image carries them over."""
    runs = load_records(Path(__file__).parents[3] / "results", Run)
    task = SuperResolution(None, find_data(sr_data), 4)
    of_set5 = [r for r in runs if r.config.data.test == ["Set5"]]
    assert of_set5
    assert [r.id for r in of_set5 if changed_sets(r, task)] == []
