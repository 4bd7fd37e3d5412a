"""A small folder of images, and commands run in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.harness.commands import Command


def write_image(path: Path, height: int, width: int, seed: int) -> None:
    """A smooth random picture, so that a network can learn something."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path)


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three training and two test images, in the layout of a data folder."""
    folder = tmp_path_factory.mktemp("images")
    for i in range(3):
        write_image(folder / "train" / "Some" / f"t{i}.png", 64, 72, i)
    for i in range(2):
        write_image(folder / "Tiny" / "HR" / f"e{i}.png", 48, 60, 10 + i)
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread of torch; what a test sets is put back.

    Tests that fork need it: OpenMP's threads are not there in a child, which would wait for them.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)
