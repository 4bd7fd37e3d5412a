"""The training cache and the patches cut from it."""

from __future__ import annotations

import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from harness.base.errors import UserError
from harness.base.machine import map_threads, usable_cores
from harness.images.bicubic import crop_to_multiple, downscale
from harness.images.cache import TrainingCache, cache_folder, training_cache
from harness.images.files import ImageSet, find_images, read_image
from harness.images.patches import check_patch, sample_batch


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for n, shape in enumerate([(41, 53, 3), (33, 32, 3), (50, 35)]):
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{n}.png")
    return ImageSet("mine", find_images(folder))


def memory_cache(count: int = 3, scale: int = 2, side: int = 12) -> TrainingCache:
    """HR pixels that tell their image, row and column; LR takes every scale-th of them."""
    hr = []
    for n in range(count):
        height, width = side * scale + 2 * scale * n, side * scale + 4 * scale
        rows, columns = np.mgrid[:height, :width]
        hr.append(np.stack([np.full_like(rows, n), rows, columns], axis=2).astype(np.uint8))
    lr = [image[::scale, ::scale] for image in hr]
    return TrainingCache(scale, [f"mine/{n}" for n in range(count)], hr, lr, "")


@pytest.mark.parametrize("scale", [2, 4])
def test_holds_hr_and_lr(images: ImageSet, scale: int) -> None:
    cache = training_cache([images], scale)
    assert len(cache) == 3
    assert cache.scale == scale
    assert cache.names == ["mine/0.png", "mine/1.png", "mine/2.png"]
    for path, hr, lr in zip(images.paths, cache.hr, cache.lr, strict=True):
        expected = crop_to_multiple(read_image(path), scale)
        np.testing.assert_array_equal(hr, expected)
        np.testing.assert_array_equal(lr, downscale(expected, scale))
        assert hr.dtype == lr.dtype == np.uint8
        assert not hr.flags.writeable


def test_a_finished_cache_is_read_with_nothing_decoded_locked_or_written(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = training_cache([images], 2)
    for name in ("read_image", "lock", "write_atomic"):
        monkeypatch.setattr(f"harness.images.cache.{name}", None)
    second = training_cache([images], 2)
    assert second.sha256 == first.sha256
    np.testing.assert_array_equal(second.hr[2], first.hr[2])


def test_a_changed_file_makes_a_new_cache(images: ImageSet) -> None:
    first = training_cache([images], 2)
    path = images.paths[0]
    Image.fromarray(255 - read_image(path)).save(path)
    later = time.time_ns() + 10**9
    os.utime(path, ns=(later, later))
    second = training_cache([images], 2)
    np.testing.assert_array_equal(second.hr[0], crop_to_multiple(read_image(path), 2))
    assert second.sha256 != first.sha256


def test_fingerprint_depends_on_names_pixels_and_scale_only(
    images: ImageSet, tmp_path: Path
) -> None:
    first = training_cache([images], 2).sha256
    moved = tmp_path / "elsewhere"
    shutil.copytree(images.paths[0].parent, moved)
    for path in find_images(moved):
        os.utime(path, (1, 1))
    same = ImageSet("mine", find_images(moved))
    assert training_cache([same], 2).sha256 == first
    fewer, renamed = ImageSet("mine", same.paths[:2]), ImageSet("other", same.paths)
    for images, scale in ((fewer, 2), (renamed, 2), (same, 4)):
        assert training_cache([images], scale).sha256 != first


@pytest.mark.parametrize(
    "damage", ["flip", "cut", "remove", "index", "empty index", "other version", "other scale"]
)
def test_a_damaged_cache_is_built_again(
    images: ImageSet, own_cache: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = training_cache([images], 2)
    expected = [hr.copy() for hr in first.hr]
    (payload,) = own_cache.glob("*.bin")
    (index,) = own_cache.glob("*.json")
    content = bytearray(payload.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        payload.write_bytes(content)
    elif damage == "cut":
        payload.write_bytes(content[:-1])
    elif damage == "remove":
        payload.unlink()
    elif damage.startswith("other"):
        # Its pixels are whole, but a reader of this version must not trust what they mean.
        other = {damage.removeprefix("other "): 0}
        index.write_text(json.dumps(json.loads(index.read_text()) | other))
    else:
        index.write_text("{" if damage == "index" else "{}")
    again = training_cache([images], 2)
    assert "is damaged or of another version; rebuilding it" in capsys.readouterr().err
    assert again.sha256 == first.sha256
    assert all(map(np.array_equal, again.hr, expected))
    training_cache([images], 2)
    assert "damaged" not in capsys.readouterr().err


def test_two_builders_at_once(images: ImageSet, own_cache: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        caches = list(pool.map(lambda _: training_cache([images], 2), range(4)))
    assert len({cache.sha256 for cache in caches}) == 1
    assert sorted(p.suffix for p in own_cache.iterdir()) == [".bin", ".json", ".lock"]


def test_what_a_killed_builder_left_is_removed(images: ImageSet, own_cache: Path) -> None:
    training_cache([images], 2)
    (payload,) = own_cache.glob("*.bin")
    left = own_cache / f".{payload.name}.1234.abcd.tmp"
    payload.rename(left)
    training_cache([images], 2)
    assert not left.exists()
    assert payload.exists()


def test_a_bad_image_stops_the_build_and_leaves_nothing(images: ImageSet, own_cache: Path) -> None:
    images.paths[1].write_bytes(images.paths[1].read_bytes()[:200])
    with pytest.raises(UserError, match=r"cannot read the image .*1\.png"):
        training_cache([images], 2)
    assert [p.suffix for p in own_cache.iterdir()] == [".lock"]


def test_refuses_what_cannot_be_trained_on(
    images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="no training images"):
        training_cache([], 2)
    gone = ImageSet("mine", (tmp_path / "gone.png",))
    with pytest.raises(UserError, match=r"cannot read .*gone\.png: No such file"):
        training_cache([gone], 2)
    Image.new("RGB", (3, 8)).save(images.paths[0])
    with pytest.raises(UserError, match=r"mine/0\.png is smaller than 4x4"):
        training_cache([images], 4)
    (tmp_path / "file").touch()
    monkeypatch.setenv("SR_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot write"):
        training_cache([images], 2)


def test_a_disk_that_does_not_keep_what_is_written(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.images.cache._open", lambda *args: None)
    with pytest.raises(UserError, match="does not read back as written"):
        training_cache([images], 2)


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SR_CACHE")
    assert cache_folder().name == "attention-zoo"


def test_check_patch_names_the_image() -> None:
    cache = memory_cache(side=12)
    check_patch(cache, 12)
    message = (
        r"mine/0 is 32x24 \(cropped to multiples of 2\), smaller than a patch of 26x26 \(LR 13x13\)"
    )
    with pytest.raises(UserError, match=message):
        check_patch(cache, 13)


@given(seed=st.integers(0, 2**40), step=st.integers(0, 2**40), scale=st.sampled_from([2, 4]))
@settings(max_examples=25)
def test_patches_are_squares_of_one_image(seed: int, step: int, scale: int) -> None:
    cache = memory_cache(scale=scale)
    lr, hr = sample_batch(cache, seed=seed, step=step, batch=5, patch=8, scale=scale)
    assert lr.shape == (5, 8, 8, 3)
    assert hr.shape == (5, 8 * scale, 8 * scale, 3)
    for small, large in zip(lr, hr, strict=True):
        n = small[0, 0, 0]
        assert (large[..., 0] == n).all()
        rows, columns = large[..., 1].astype(int), large[..., 2].astype(int)
        top, left = rows.min(), columns.min()
        assert (top % scale, left % scale) == (0, 0)
        # The same square of LR, in the same orientation: found among the eight.
        source_hr = cache.hr[n][top : top + 8 * scale, left : left + 8 * scale]
        source_lr = cache.lr[n][top // scale :, left // scale :][:8, :8]
        matches = [
            np.array_equal(np.rot90(source_hr[::flip], turns), large)
            and np.array_equal(np.rot90(source_lr[::flip], turns), small)
            for turns in range(4)
            for flip in (1, -1)
        ]
        assert sum(matches) == 1


def test_batches_depend_on_seed_and_step_alone() -> None:
    cache = memory_cache()

    def batch(seed: int, step: int) -> np.ndarray:
        return sample_batch(cache, seed=seed, step=step, batch=8, patch=8, scale=2)[1]

    np.random.seed(1)  # noqa: NPY002  the global generator must not matter
    first = batch(3, 7)
    for other in (batch(3, 8), batch(4, 7)):
        assert not np.array_equal(other, first)
    np.testing.assert_array_equal(batch(3, 7), first)


def test_images_positions_and_orientations_are_uniform() -> None:
    cache = memory_cache(count=3, scale=2, side=12)
    _, hr = sample_batch(cache, seed=0, step=0, batch=6000, patch=12, scale=2)
    n, rows, columns = hr[..., 0], hr[..., 1].astype(int), hr[..., 2].astype(int)
    counts = np.bincount(n[:, 0, 0], minlength=3)
    assert (np.abs(counts - 2000) < 200).all()
    left = columns.min(axis=(1, 2)) // 2
    assert (np.abs(np.bincount(left, minlength=5) - 1200) < 180).all()
    top = rows[n[:, 0, 0] == 2].min(axis=(1, 2)) // 2
    assert (np.abs(np.bincount(top, minlength=5) - 400) < 100).all()
    across = columns[:, 0, 1] - columns[:, 0, 0]
    down = columns[:, 1, 0] - columns[:, 0, 0]
    rows_step = (rows[:, 0, 1] - rows[:, 0, 0]) + 2 * (rows[:, 1, 0] - rows[:, 0, 0])
    kinds, frequency = np.unique(np.stack([across, down, rows_step]), axis=1, return_counts=True)
    assert kinds.shape[1] == 8
    assert (np.abs(frequency - 750) < 130).all()


def test_refuses_another_scale() -> None:
    with pytest.raises(ValueError, match="scale 2, not 4"):
        sample_batch(memory_cache(scale=2), seed=0, step=0, batch=1, patch=4, scale=4)


def test_map_threads_keeps_order_and_stays_near_the_consumer() -> None:
    taken = []

    def items() -> object:
        for n in range(100):
            taken.append(n)
            yield n

    results = map_threads(lambda n: n * n, items())
    assert next(results) == 0
    assert len(taken) < 100 or usable_cores() > 40
    assert list(results) == [n * n for n in range(1, 100)]


def test_cores_without_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert usable_cores() >= 1
