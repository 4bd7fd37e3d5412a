"""Super-resolution from other LR images than bicubic ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from harness.base.errors import UserError
from harness.config.variants import Variant
from harness.images.bicubic import downscale
from harness.images.cache import TrainingCache
from harness.images.degradation import box
from harness.images.files import read_image
from harness.images.patches import sample_batch
from harness.images.sources import find_data
from harness.runs.options import TrainingOptions, configure
from harness.tasks.sr import SuperResolution
from tests.harness.conftest import write_images

CPU = torch.device("cpu")
KEY: dict[str, Any] = {"seed": 3, "step": 7, "batch": 4, "patch": 6}


def memory_cache(scale: int = 2) -> TrainingCache:
    rng = np.random.default_rng(0)
    hr = [rng.integers(0, 256, (20 * scale, 24 * scale, 3), dtype=np.uint8) for _ in range(3)]
    lr = [downscale(image, scale) for image in hr]
    return TrainingCache(scale, [f"mine/{n}" for n in range(3)], hr, lr, "0" * 64)


def test_the_default_gives_the_patches_that_it_gave() -> None:
    cache = memory_cache()
    for task in (SuperResolution(cache), SuperResolution(cache, degradation="bicubic", noise=0)):
        batch = task.batch(**KEY)
        lr, hr = sample_batch(cache, **KEY, scale=2)
        np.testing.assert_array_equal(batch.inputs, lr)
        np.testing.assert_array_equal(batch.targets, hr)
        assert task.settings == {}


@pytest.mark.parametrize("scale", [2, 3])
def test_lr_patches_are_those_of_the_hr_patches(scale: int) -> None:
    """In whichever orientation: the top left pixel is that of the patch that the network sees."""
    cache = memory_cache(scale)
    _, hr = sample_batch(cache, **KEY, scale=scale)
    nearest = SuperResolution(cache, degradation="nearest").batch(**KEY)
    mean = SuperResolution(cache, degradation="box").batch(**KEY)
    np.testing.assert_array_equal(nearest.targets, hr)
    np.testing.assert_array_equal(nearest.inputs, hr[:, ::scale, ::scale])
    np.testing.assert_array_equal(mean.inputs, box(hr, scale))


def test_noise_is_drawn_by_seed_and_step() -> None:
    task = SuperResolution(memory_cache(), noise=10)
    first, again = task.batch(**KEY), task.batch(**KEY)
    np.testing.assert_array_equal(first.inputs, again.inputs)
    clean = SuperResolution(memory_cache()).batch(**KEY).inputs
    changed = first.inputs.astype(int) - clean
    assert changed.std() == pytest.approx(10, rel=0.15)
    for other in ({"step": 8}, {"seed": 4}):
        noisy, plain = (t.batch(**(KEY | other)).inputs.astype(int) for t in (task, _plain()))
        assert (noisy - plain != changed).mean() > 0.8


def _plain() -> SuperResolution:
    return SuperResolution(memory_cache())


def test_lr_files_are_used_for_bicubic_alone(tmp_path: Path) -> None:
    folder = write_images(tmp_path)
    stored = np.full((12, 15, 3), 77, dtype=np.uint8)
    place = folder / "Tiny" / "LR_bicubic" / "X4" / "e0x4.png"
    place.parent.mkdir(parents=True)
    Image.fromarray(stored).save(place)
    source, hr = find_data(folder), read_image(folder / "Tiny" / "HR" / "e0.png")

    def first(**options: Any) -> np.ndarray:
        task = SuperResolution(None, source, 4, **options)
        image = next(iter(task.test_set("Tiny")))
        np.testing.assert_array_equal(image.hr, hr)
        return image.lr

    np.testing.assert_array_equal(first(), stored)
    np.testing.assert_array_equal(first(degradation="box"), box(hr, 4))
    np.testing.assert_array_equal(first(degradation="nearest"), hr[::4, ::4])
    noisy = first(noise=20.0)
    np.testing.assert_array_equal(noisy, first(noise=20.0))
    assert np.std(noisy.astype(int) - stored) == pytest.approx(20, rel=0.2)
    Image.fromarray(stored[1:]).save(place)  # it no longer fits, and only bicubic minds
    assert first(degradation="box").shape == (12, 15, 3)
    with pytest.raises(UserError, match="does not fit"):
        first(noise=20.0)


def test_only_other_lr_images_change_the_configuration(image_folder: Path) -> None:
    source = find_data(image_folder)
    options = TrainingOptions(blocks=4, channels=8)

    def config(**chosen: Any) -> Any:
        task = SuperResolution(None, source, 4, **chosen)
        return configure(options, task, Variant("none"), 0, CPU)

    plain, default = config(), config(degradation="bicubic", noise=0.0)
    assert plain == default
    assert plain.task is None
    others = [config(degradation="box"), config(degradation="nearest"), config(noise=5)]
    assert len({one.run_id for one in (plain, *others)}) == 4
    box_task = others[0].task
    assert (box_task.name, box_task.loss, box_task.positions) == ("sr", "l1", (0, 1, 2, 3, 4))
    assert box_task.options == {"degradation": "box", "noise": 0.0}
    assert others[0].run_id.startswith("baseline-sr-degradation-box-noise-0-quick-x4-s0-")


def test_a_task_without_images_says_so() -> None:
    with pytest.raises(ValueError, match="needs a scale"):
        SuperResolution()
    with pytest.raises(ValueError, match="training images only"):
        SuperResolution(memory_cache()).test_set("Set5")
    with pytest.raises(UserError, match="unknown degradation"):
        SuperResolution(memory_cache(), degradation="area")
