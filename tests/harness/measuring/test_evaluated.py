"""An interrupted evaluation goes on, and never with the result of another image or network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.images.sources import TestImage, find_data
from harness.measuring.evaluated import EvaluatedImages, discard_evaluated
from harness.measuring.quality import evaluate
from harness.records.shapes import Quality

BASIS: dict[str, Any] = {"weights": "a", "tile": None}


class Counted(torch.nn.Module):
    """Nearest neighbour, x4; counts its images and fails at one, as if the process ended."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.count, self.fail_at = 0, fail_at

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.count == self.fail_at:
            raise KeyboardInterrupt
        self.count += 1
        return x.repeat_interleave(4, 2).repeat_interleave(4, 3)


def _images(count: int = 3) -> list[TestImage]:
    generator = np.random.default_rng(0)
    hr = generator.integers(0, 256, (count, 48, 56, 3), dtype=np.uint8)
    return [TestImage(f"e{i}", x, x[::4, ::4].copy()) for i, x in enumerate(hr)]


def _evaluate(images: list[TestImage], evaluated: EvaluatedImages | None) -> tuple[Quality, int]:
    """The quality, and how many images the network was given."""
    network = Counted()
    found = evaluate(network, images, len(images), 4, "test", evaluated=evaluated)
    return found, network.count


def _interrupted(folder: Path, save_every: float = 0) -> None:
    evaluated = EvaluatedImages(folder, BASIS, save_every)
    with pytest.raises(KeyboardInterrupt):
        evaluate(Counted(fail_at=2), _images(), 3, 4, "test", evaluated=evaluated)


def test_it_goes_on_after_the_last_image(tmp_path: Path) -> None:
    _interrupted(tmp_path)
    found, count = _evaluate(_images(), EvaluatedImages(tmp_path, BASIS))
    assert count == 1
    assert found == _evaluate(_images(), None)[0]
    discard_evaluated(tmp_path)
    discard_evaluated(tmp_path)  # as after a kill between the two
    assert not list(tmp_path.iterdir())


def test_it_is_not_written_after_every_quick_image(tmp_path: Path) -> None:
    _interrupted(tmp_path, save_every=60)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["weights", "tile"])
def test_of_another_basis_nothing_is_used(key: str, tmp_path: Path) -> None:
    _interrupted(tmp_path)
    assert _evaluate(_images(), EvaluatedImages(tmp_path, BASIS | {key: 32}))[1] == 3


@pytest.mark.parametrize("change", ["lr", "hr", "name"])
def test_another_image_is_evaluated(change: str, tmp_path: Path) -> None:
    _interrupted(tmp_path)
    images = _images()
    other: Any = "other" if change == "name" else 255 - getattr(images[0], change)
    images[0] = replace(images[0], **{change: other})
    assert _evaluate(images, EvaluatedImages(tmp_path, BASIS))[1] == 2


@pytest.mark.parametrize("damage", ["cut", "changed", "another", "empty"])
def test_a_damaged_file_is_measured_anew(damage: str, tmp_path: Path) -> None:
    _interrupted(tmp_path)
    [path] = tmp_path.iterdir()
    text = path.read_text()
    content = {"cut": text[:-40], "another": '{"images": 3, "sha256": ""}', "empty": "[]"}
    content["changed"] = text.replace('"psnr": ', '"psnr": 1', 1)
    path.write_text(content[damage])
    assert _evaluate(_images(), EvaluatedImages(tmp_path, BASIS)) == _evaluate(_images(), None)


def test_images_read_again_keep_their_results(image_folder: Path, tmp_path: Path) -> None:
    images = list(find_data(image_folder).test_set("Tiny", 4))
    first, _ = _evaluate(images, EvaluatedImages(tmp_path, BASIS, 0))
    assert _evaluate(images, EvaluatedImages(tmp_path, BASIS)) == (first, 0)
