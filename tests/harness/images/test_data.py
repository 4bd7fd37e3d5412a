"""Data folders, the embedded default, and ``python -m harness.data``."""

from __future__ import annotations

import csv
import errno
import hashlib
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness import data as data_module
from harness.base.errors import UserError
from harness.images import embedded, sources
from harness.images.bicubic import crop_to_multiple, downscale
from harness.images.degradation import BICUBIC, Decimation, Degradation
from harness.images.files import read_image
from harness.images.left_out import left_out
from harness.images.patches import check_patch
from harness.images.sources import find_data, set_sha256
from tests.harness.conftest import Cli


def save(path: Path, height: int = 40, width: int = 44, seed: int = 0) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two training sets of 3 and 4 images, two test sets."""
    root = tmp_path / "photos"
    for n, name in enumerate(("B/0", "B/1", "B/2", "A/0", "A/1", "A/2", "A/3")):
        save(root / "train" / f"{name}.png", seed=n)
    save(root / "Set5" / "HR" / "img_1.png", 42, 47, seed=20)
    save(root / "Set5" / "HR" / "img_2.png", 50, 61, seed=21)
    save(root / "City" / "HR" / "x.bmp", 44, 44, seed=22)
    (root / "notes").mkdir()
    return root


def test_folder(folder: Path) -> None:
    source = find_data(folder)
    assert source.name == "photos"
    assert source.train_sets == ["A", "B"]
    assert source.test_sets == ["City", "Set5"]
    cache = source.training_images(2)
    assert len(cache) == 7
    assert cache.names[:5] == ["A/0.png", "A/1.png", "A/2.png", "A/3.png", "B/0.png"]
    assert find_data(folder, train_sets=["B"]).training_images(2).names[0] == "B/0.png"
    assert find_data(folder, train_sets=["B", "A", "B"]).train_sets == ["A", "B"]


def test_test_set_makes_lr_images(folder: Path) -> None:
    images = find_data(folder).test_set("Set5", 4)
    assert (images.name, len(images)) == ("Set5", 2)
    first, second = images
    assert (first.name, second.name) == ("img_1", "img_2")
    hr = crop_to_multiple(read_image(folder / "Set5" / "HR" / "img_1.png"), 4)
    np.testing.assert_array_equal(first.hr, hr)
    assert first.hr.shape == (40, 44, 3)
    np.testing.assert_array_equal(first.lr, downscale(hr, 4))


def test_test_set_takes_stored_lr_images(folder: Path) -> None:
    lr = save(folder / "Set5" / "LR_bicubic" / "X4" / "img_1x4.bmp", 10, 11, seed=30)
    first, second = find_data(folder).test_set("Set5", 4)
    np.testing.assert_array_equal(first.lr, lr)
    np.testing.assert_array_equal(second.lr, downscale(second.hr, 4))
    (at_2, _) = find_data(folder).test_set("Set5", 2)
    np.testing.assert_array_equal(at_2.lr, downscale(at_2.hr, 2))
    save(folder / "Set5" / "LR_bicubic" / "X4" / "img_1x4.bmp", 10, 12)
    message = r"img_1x4\.bmp is 12x10, which does not fit .*img_1\.png \(44x40 after cropping\)"
    with pytest.raises(UserError, match=message):
        next(iter(find_data(folder).test_set("Set5", 4)))


def test_div2k_layouts(tmp_path: Path) -> None:
    save(tmp_path / "one" / "DIV2K" / "DIV2K_train_HR" / "0001.png")
    save(tmp_path / "two" / "DIV2K_train_HR" / "0001.png")
    for name in ("one", "two"):
        source = find_data(tmp_path / name)
        assert source.train_sets == ["DIV2K"]
        assert source.training_images(2).names == ["DIV2K/0001.png"]


def test_holdout(folder: Path) -> None:
    source = find_data(folder, holdout=3)
    assert source.test_sets == ["City", "Set5", "Holdout"]
    held_out = [image.name for image in source.test_set("Holdout", 2)]
    assert held_out == ["2", "1"]  # A/2 and B/1: the third and the sixth of seven
    kept = ["A/0.png", "A/1.png", "A/3.png", "B/0.png", "B/2.png"]
    assert source.training_images(2).names == kept
    with pytest.raises(UserError, match="holdout must be 0"):
        find_data(folder, holdout=1)
    with pytest.raises(UserError, match="7 training images are too few for a holdout of 8"):
        find_data(folder, holdout=8)
    save(folder / "Holdout" / "HR" / "a.png")
    with pytest.raises(UserError, match="has a test set called Holdout of its own: rename it"):
        find_data(folder, holdout=3)


def test_centre_crops_of_held_out_images(folder: Path) -> None:
    whole = find_data(folder, holdout=3)
    source = find_data(folder, holdout=3, holdout_crop=24)
    assert source.training_images(2).sha256 == whole.training_images(2).sha256
    for one, image in zip(source.test_set("Holdout", 2), whole.test_set("Holdout", 2), strict=True):
        height, width = image.hr.shape[:2]
        top, left = (height - 24) // 2, (width - 24) // 2
        expected = image.hr[top : top + 24, left : left + 24]
        np.testing.assert_array_equal(one.hr, expected)
        np.testing.assert_array_equal(one.lr, downscale(expected, 2))
    assert source.test_set("Holdout", 2).sha256() != whole.test_set("Holdout", 2).sha256()
    assert source.test_set("Set5", 2).sha256() == whole.test_set("Set5", 2).sha256()
    wide = next(iter(find_data(folder, holdout=3, holdout_crop=10_000).test_set("Holdout", 2)))
    np.testing.assert_array_equal(wide.hr, next(iter(whole.test_set("Holdout", 2))).hr)
    with pytest.raises(UserError, match="--holdout-crop applies only to --holdout"):
        find_data(folder, holdout_crop=24)
    with pytest.raises(UserError, match="holdout crop must be at least 20, got 19"):
        find_data(folder, holdout=3, holdout_crop=19)


def test_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SR_DATA", str(folder))
    assert find_data().name == "photos"
    monkeypatch.setenv("SR_DATA", str(folder / "missing"))
    with pytest.raises(UserError, match="missing does not exist"):
        find_data()
    monkeypatch.setenv("SR_DATA", "")
    assert find_data().name == "embedded"


@pytest.mark.parametrize(("place", "reason"), [("file", "file is not a folder"), ("file/sub", "")])
def test_a_bad_variable_is_named(
    place: str, reason: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SR_DATA", str(tmp_path / place))
    with pytest.raises(UserError, match=f"^SR_DATA: .*{reason}"):
        find_data()
    monkeypatch.setenv("SR_CACHE", str(tmp_path / place))
    message = "into .*: .*file is not a folder; set SR_CACHE to a folder that can be written"
    with pytest.raises(UserError, match=message):
        find_data(folder).training_images(2)


def test_a_cache_that_cannot_be_written_names_its_variable(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SR_CACHE", str(tmp_path / "cache"))

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(UserError, match="No space left on device; free space, or set SR_CACHE"):
        find_data(folder).training_images(2)
    # What is wrong with an image has nothing to do with it.
    monkeypatch.setattr(os, "fsync", lambda _: None)
    (folder / "train" / "A" / "1.png").write_bytes(b"torn")
    with pytest.raises(UserError, match="cannot read the image") as raised:
        find_data(folder).training_images(2)
    assert "SR_CACHE" not in str(raised.value)


def test_bad_folders(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, message in [
        (tmp_path / "nowhere", "nowhere does not exist: set --data or SR_DATA"),
        (folder / "train" / "A" / "1.png", "is not a folder"),
        (folder / "notes", r"found no images in .*: expected test sets as <Set>/HR"),
    ]:
        with pytest.raises(UserError, match=message):
            find_data(path)
    source = find_data(folder)
    with pytest.raises(UserError, match=r"'set5': it has City, Set5; did you mean Set5\?"):
        source.test_set("set5", 4)
    with pytest.raises(UserError, match=r"no training set in photos is called 'Z': it has A, B$"):
        find_data(folder, train_sets=["Z"])
    save(folder / "City" / "HR" / "x.bmp", 18, 90)
    with pytest.raises(UserError, match=r"x\.bmp is 90x18: x4 needs 20x20 or more"):
        list(source.test_set("City", 4))

    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UserError, match=r"cannot read the folder .*: Permission denied"):
        find_data(folder)


def test_a_folder_without_training_sets(tmp_path: Path) -> None:
    save(tmp_path / "Set5" / "HR" / "a.png")
    source = find_data(tmp_path)
    assert source.train_sets == []
    with pytest.raises(UserError, match="has no training sets: put images into train/<Set>/"):
        source.training_images(4)


def test_embedded_default() -> None:
    source = find_data()
    assert (source.name, source.train_sets) == ("embedded", ["Embedded-train"])
    assert source.test_sets == ["Embedded"]
    cache = source.training_images(4)
    assert len(cache) == len(embedded.TRAIN) == 9
    check_patch(cache, 48)
    names = [image.name for image in source.test_set("Embedded", 4)]
    assert names == ["brick", "camera", "chelsea", "coffee"]
    # Training and test photographs differ.
    paths = [path for s in (*source.train, *source.test) for path in s.paths]
    hashes = [hashlib.sha256(path.read_bytes()).digest() for path in paths]
    assert len(set(hashes)) == len(hashes) == 13


def test_embedded_image_missing() -> None:
    with pytest.raises(UserError, match=r"scikit-image [\d.]+ does not ship nothing\.png"):
        embedded.embedded_set("mine", {"nothing.png": ""})


def test_layouts_that_people_have(tmp_path: Path) -> None:
    """EDSR-PyTorch's folder, and names in lower case."""
    save(tmp_path / "benchmark" / "Set5" / "HR" / "a.png")
    lr = save(tmp_path / "benchmark" / "Set5" / "LR_bicubic" / "X4" / "ax4.png", 10, 11)
    save(tmp_path / "Mine" / "hr" / "b.png")
    small = save(tmp_path / "Mine" / "lr_bicubic" / "x4" / "bx4.png", 10, 11, seed=1)
    save(tmp_path / "Train" / "Photos" / "c.png")
    source = find_data(tmp_path)
    assert (source.test_sets, source.train_sets) == (["Mine", "Set5"], ["Photos"])
    for name, expected in (("Set5", lr), ("Mine", small)):
        (image,) = source.test_set(name, 4)
        assert image.lr_file
        np.testing.assert_array_equal(image.lr, expected)
    assert left_out(tmp_path, source.train, source.test) == []


def test_train_and_benchmark_hold_sets_and_are_none(tmp_path: Path) -> None:
    for place in ("train/HR", "benchmark/HR", "benchmark/train/HR", "Train2/HR"):
        save(tmp_path / place / "a.png")
    source = find_data(tmp_path)
    assert source.train_sets == ["HR"]
    assert source.test == (
        sources.ImageSet("Train2", (tmp_path / "Train2" / "HR" / "a.png",)),
        sources.ImageSet("train", (tmp_path / "benchmark" / "train" / "HR" / "a.png",)),
    )
    assert left_out(tmp_path, source.train, source.test) == [
        "benchmark/HR: 1 image not read: put them into benchmark/<Set>/HR/ for a test set"
    ]


@pytest.mark.parametrize(
    ("place", "advice"),
    [
        ("train/T/HR", "sub-folders are not read, move them to train/T/"),
        ("train/T/DIV2K_valid_HR", "sub-folders are not read, move them to train/T/"),
        ("HR", "put them into <Set>/HR/ for a test set"),
        ("a/b/Set5/HR", "test sets lie in <Set>/HR/, training sets in train/<Set>/"),
    ],
)
def test_what_lies_elsewhere_is_told_where_to_go(place: str, advice: str, tmp_path: Path) -> None:
    save(tmp_path / place / "a.png")
    with pytest.raises(UserError) as raised:
        find_data(tmp_path)
    assert str(raised.value).endswith(f"; {place}: 1 image not read: {advice}")


def test_what_systems_leave_is_no_data(folder: Path) -> None:
    plain = find_data(folder)
    names = (".ipynb_checkpoints", ".Trash-1000", ".git", "@eaDir", "__MACOSX", "$RECYCLE.BIN")
    for name in names:
        for place in (Path("train", name), Path("train", "A", name), Path(name, "HR")):
            save(folder / place / "a.png")
    for path in ("train/A/._0.png", "Set5/HR/.img_1.png", "Set5/@eaDir/HR/b.png"):
        save(folder / path)
    assert find_data(folder) == plain
    (folder / "notes" / "loop").symlink_to(folder)
    assert left_out(folder, plain.train, plain.test) == []
    (folder / "notes" / "loop").unlink()
    for name in names:
        save(folder / "notes" / name / "HR" / "a.png")
    with pytest.raises(UserError, match=r"found no images in .*\(png, webp, jpg, bmp\)$"):
        find_data(folder / "notes")


def test_equal_names_of_held_out_images_are_told_apart(tmp_path: Path) -> None:
    """Two training sets may both have an image 1; two files of one folder may not."""
    for n, name in enumerate(("A/0", "A/1", "B/0", "B/1")):
        save(tmp_path / "train" / f"{name}.png", seed=n)
    holdout = find_data(tmp_path, holdout=2).test_set("Holdout", 2)
    assert [image.name for image in holdout] == ["A/1", "B/1"]
    save(tmp_path / "Set5" / "HR" / "a.png")
    save(tmp_path / "Set5" / "HR" / "a.jpg")
    message = r"test set Set5 has both a\.jpg and a\.png: rename or remove one of them in .*HR$"
    with pytest.raises(UserError, match=message):
        list(find_data(tmp_path).test_set("Set5", 4))


def test_missing_lr_files_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = find_data(folder)
    source.test_set("Set5", 4)  # without a folder of LR files nothing is missing
    assert capsys.readouterr().err == ""
    lr = folder / "Set5" / "LR_bicubic" / "X4"
    save(lr / "img_1.png", 10, 11)
    save(lr / "img_2x4.png", 12, 15)
    again = find_data(folder, train_sets=["B"])
    sources._warn_of_lr.cache_clear()  # as in the next command
    for _ in range(3):
        again.test_set("Set5", 4)
        again.test_set("Set5", 4, Decimation("box"))
        again.test_set("Set5", 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"warning: {lr} lacks LR images of 1 of 2 images (the first is img_1x4.*): bicubic ones "
        "are made in their place; img_1.png is not read, rename it to img_1x4.png"
    )
    assert [image.lr_file for image in again.test_set("Set5", 4)] == [False, True]


def test_digest_is_that_of_names_and_pixels(folder: Path, tmp_path: Path) -> None:
    def digest(scale: int = 4, degradation: Degradation = BICUBIC) -> str:
        images = find_data(folder).test_set("Set5", scale, degradation)
        found = images.sha256()
        assert set_sha256(image.sha256 for image in images) == found
        return found

    first = digest()
    hr = folder / "Set5" / "HR" / "img_1.png"
    pixels = read_image(hr)
    Image.fromarray(pixels).save(hr.with_suffix(".bmp"))
    hr.unlink()
    assert digest() == first  # other bytes, the same pixels
    Image.fromarray(crop_to_multiple(pixels, 4)).save(hr.with_suffix(".bmp"))
    assert digest() == first  # what is cropped is not used
    found = {first, digest(2)}
    save(folder / "Set5" / "LR_bicubic" / "X4" / "img_1x4.png", 10, 11)
    assert digest(degradation=Decimation("box")) == first  # which reads no LR files
    found.add(digest())
    hr.with_suffix(".bmp").rename(hr.with_name("img_3.bmp"))
    found.add(digest())
    pixels = pixels.copy()
    pixels[3, 5, 1] ^= 1
    Image.fromarray(pixels).save(hr.with_name("img_3.bmp"))
    found.add(digest())
    assert len(found) == 5


def test_folders_that_are_no_sets_are_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(folder / "Set9" / "a.png")
    save(folder / "DIV2K" / "DIV2K_train_HR" / "0001.png", 48, 48)
    save(folder / "DIV2K" / "DIV2K_train_LR_bicubic" / "X2" / "0001x2.png", 24, 24)
    source = find_data(folder)
    find_data(folder)
    (line,) = capsys.readouterr().err.splitlines()
    assert "Set9 is no test set, as its images (1) do not lie in Set9/HR: it is not read" in line
    source.training_images(2)
    lines = capsys.readouterr().err.splitlines()
    told = "DIV2K_train_LR_bicubic is not read: training LR images are made from HR"
    assert [told in line for line in lines if "warning" in line] == [True]


# -- command line ---------------------------------------------------------------------------


def test_list(folder: Path, cli: Cli) -> None:
    out = cli("data list --data", folder).out
    for expected in ("Images of photos", r"train\W+A\W+4 ", r"test\W+Set5\W+2 "):
        assert re.search(expected, out)
    assert "chelsea.png: Chelsea the cat" in cli("data list").out
    assert "data folder" in cli.refused("data list --data", folder / "nowhere")


def test_list_counts_what_is_left_out(folder: Path, cli: Cli) -> None:
    for path in (
        *("train/loose.png", "train/A/sub/a.png", "train/A/b.tif", "train/A/c.tif"),
        *("Set5/HR/d.jfif", "Set5/HR/sub/e.png", "Set5/LR_bicubic/X4/img_1.png"),
        *("Set5/LR_bicubic/X4/img_2x4.png", "Set9/f.png", "DIV2K_valid_HR/0801.png", "g.png"),
        *("DIV2K_train_LR_bicubic/X2/0001x2.png", "DIV2K_train_LR_bicubic/X4/0001x4.png"),
    ):
        kept = path.replace(".jfif", ".jpg")
        save(folder / kept)
        (folder / kept).rename(folder / path)
    table, listed = cli("data list --data", folder).out.split("└")
    assert re.search(r"Set5\W+2\W+[\d.]+\W+x4: 1\W", table)
    assert listed.splitlines()[1:-1] == [
        ".: 1 image not read: put them into train/<Set>/ or <Set>/HR/",
        "DIV2K_train_LR_bicubic: 2 images not read: LR images of DIV2K are made from HR",
        "DIV2K_valid_HR: 1 image not read: rename the folder to DIV2K_valid/HR for a test set",
        "Set5/HR: 1 .jfif image not read: rename them to .jpg",
        "Set5/HR/sub: 1 image not read: sub-folders are not read, move them to Set5/HR/",
        "Set5/LR_bicubic/X4: 1 image not read: LR images lie in LR_bicubic/X4/ and are called "
        "<HR's stem>x4.*",
        "Set9: 1 image not read: put them into Set9/HR/ for a test set, or train/Set9/ for "
        "training",
        "train: 1 image not read: put them into a folder, such as train/Photos/",
        "train/A: 2 .tif images not read: convert them to PNG",
        "train/A/sub: 1 image not read: sub-folders are not read, move them to train/A/",
    ]
    for path in (folder / "train").rglob("*"):
        if path.is_file() and path.parent != folder / "train":
            path.unlink()
    for name in ("Set5", "City"):
        (folder / name / "HR").rename(folder / name / "GT")
    refused = cli.refused("data list --data", folder)
    assert refused.endswith("; .: 1 image not read: put them into train/<Set>/ or <Set>/HR/")


def write_tables(folder: Path) -> None:
    """MANIFEST.csv and LR_bicubic_pixels.csv that fit the folder."""
    files: list[list[object]] = [["path", "width", "height", "bytes", "sha256"]]
    for path in sorted(folder.rglob("*.png")):
        content = path.read_bytes()
        height, width = read_image(path).shape[:2]
        name = path.relative_to(folder).as_posix()
        files.append([name, width, height, len(content), hashlib.sha256(content).hexdigest()])
    made: list[list[object]] = [
        ["set", "image", "scale", "width", "height", "channels", "sha256_of_uint8_pixels"]
    ]
    for stem, channels in (("img_1", 3), ("img_2", 1)):
        image = read_image(folder / "Set5" / "HR" / f"{stem}.png")
        lr = downscale(crop_to_multiple(image, 2), 2)
        digest = hashlib.sha256(lr[..., :channels].tobytes()).hexdigest()
        made.append(["Set5", stem, 2, lr.shape[1], lr.shape[0], channels, digest])
    for table, rows in (("MANIFEST.csv", files), ("LR_bicubic_pixels.csv", made)):
        mark = "-sig" if table == "MANIFEST.csv" else ""  # as a spreadsheet writes it
        with (folder / table).open("w", newline="", encoding=f"utf-8{mark}") as file:
            csv.writer(file).writerows(rows)


def test_verify(folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    grey = folder / "Set5" / "HR" / "img_2.png"
    Image.fromarray(read_image(grey)).convert("L").save(grey)
    ours = downscale(crop_to_multiple(read_image(folder / "Set5" / "HR" / "img_1.png"), 4), 4)
    stored = folder / "Set5" / "LR_bicubic" / "X4" / "img_1x4.png"
    stored.parent.mkdir(parents=True)
    Image.fromarray(ours).save(stored)
    write_tables(folder)
    out = cli("data verify --data", folder).out
    assert re.search(r"Set5\W+2/2\W+2/2\W+1/1\W+3/3\W", out)
    assert re.search(r"A\W+4/4\W+4/4\W", out)
    # Too small for the presets' patches, but not for smaller ones.
    told = [line for line in out.splitlines() if line.startswith("training image ")]
    assert len(told) == 7
    assert re.search(r"A/0\.png is 44x40: x4 needs 112x112 for the patches of the presets", told[0])

    # Another maker's LR image is counted, and no fault by itself.
    Image.fromarray(ours // 8 * 8).save(stored)
    (folder / "MANIFEST.csv").unlink()
    assert re.search(r"Set5\W+2/2\W+2/2\W+0/1\W", cli("data verify --data", folder).out)
    # One of another photograph is.
    Image.fromarray(np.full_like(ours, 255)).save(stored)
    told = cli("data verify --data", folder, status=2).out
    assert re.search(r"img_1x4\.png does not show what .*img_1\.png shows", told)
    assert re.search(r"Embedded\W+4/4", cli("data verify").out)


def test_verify_finds_faults(folder: Path, cli: Cli) -> None:
    write_tables(folder)
    save(folder / "Set5" / "HR" / "img_1.png", 42, 47, seed=99)  # other pixels
    torn = folder / "train" / "A" / "1.png"
    torn.write_bytes(torn.read_bytes()[:300])
    (folder / "train" / "B" / "0.png").unlink()
    lr = folder / "Set5" / "LR_bicubic" / "X4" / "img_1x4.png"
    lr.parent.mkdir(parents=True)
    lr.write_bytes(b"no image")
    problems, error = cli("data verify --data", folder, status=2)
    for problem in (
        "img_1.png: x2 LR pixels differ from LR_bicubic_pixels.csv",
        "1.png: image file is truncated",
        "0.png: No such file or directory",
        "A/1.png: size or SHA-256 differs from MANIFEST.csv",
        "img_1x4.png: not a PNG",
    ):
        assert problem in problems
    assert error.rstrip().endswith("error: 6 checks failed, listed above")


def test_verify_finds_what_a_run_would_refuse(folder: Path, cli: Cli) -> None:
    hr = folder / "Set5" / "HR"
    save(hr / "img_1.bmp", seed=20)
    save(hr / "thin.png", 1, 64)
    save(folder / "train" / "B" / "flat.png", 3, 64)
    for ending in ("png", "bmp"):
        save(folder / "City" / "LR_bicubic" / "X4" / f"xx4.{ending}", 11, 11)
    save(folder / "Set5" / "LR_bicubic" / "X2" / "img_2x2.png", 24, 30)
    shutil.copy(hr / "img_2.png", folder / "train" / "A" / "9.png")
    problems, error = cli("data verify --data", folder, status=2)
    for problem in (
        "A/9.png is test image ",
        "test set Set5 has both img_1.bmp and img_1.png: rename or remove",
        "thin.png is 64x1: x4 needs 20x20",
        "flat.png is 64x3: x4 needs 112x112",
        "X4 has both xx4.bmp and xx4.png, LR images of x.bmp: remove one of them",
        "img_2x2.png is 30x24, not 30x25 as ",
    ):
        assert problem in problems
    assert error.rstrip().endswith("error: 6 checks failed, listed above")


def test_download_command(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fake(archive: object, folder: Path) -> bool:
        asked.append((archive, folder))
        return len(asked) == 1

    monkeypatch.setattr(data_module, "download_archive", fake)
    out = cli("data download --data", tmp_path).out
    assert "div2k: done" in out
    assert "benchmark: already there" in out
    cli("data download --sets benchmark --data", tmp_path)
    assert len(asked) == 3
    assert asked[0][1] == tmp_path


@pytest.mark.data
def test_shared_data_is_found(sr_data: Path) -> None:
    source = find_data(sr_data)
    assert {"B100", "Set5", "Set14", "Urban100"} <= set(source.test_sets)
    urban = source.test_set("Urban100", 4)
    first = next(iter(urban))
    assert (len(urban), first.name) == (100, "img_001")
    assert first.hr.shape[0] == 4 * first.lr.shape[0]
