"""A small folder of images, and commands that run in the test's process."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from harness.base import machine
from tests.harness.tiny import TINY_WORDS


def write_image(path: Path, height: int, width: int, seed: int) -> None:
    """A smooth random picture, so that a network can learn something."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path)


def write_images(folder: Path, tests: int = 2, height: int = 48, width: int = 60) -> Path:
    """Three training images and some test images of a size, in the layout of a data folder."""
    for i in range(3):
        write_image(folder / "train" / "Some" / f"t{i}.png", 64, 72, i)
    for i in range(tests):
        write_image(folder / "Tiny" / "HR" / f"e{i}.png", height, width, 10 + i)
    return folder


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three training and two test images, in the layout of a data folder."""
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread of torch; what a test sets is put back.

    Tests that fork need it: OpenMP's threads are not there in a child, which would wait for them.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that must come about."""
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


class Cli:
    """Runs commands in this process, as ``python -m harness.<command>`` does in its own."""

    def __init__(self, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]) -> None:
        self._patch, self._capture = patch, capture

    def __call__(
        self, command: str | Callable[[], None], *words: object, status: int = 0
    ) -> pytest.CaptureResult[str]:
        """What a command prints; its exit status must be ``status``.

        Args:
            command: its name, and options as they are typed; or a ``main`` of its own.
            words: further words, which may have spaces.
            status: of its end.
        """
        name, *options = command.split() if isinstance(command, str) else ["main"]
        main = (
            importlib.import_module(f"harness.{name}").main if isinstance(command, str) else command
        )
        self._patch.setattr(sys, "argv", [f"harness.{name}", *options, *map(str, words)])
        self._capture.readouterr()
        found: object = 0
        try:
            main()
        except SystemExit as stop:
            found = stop.code or 0
        printed = self._capture.readouterr()
        assert found == status, printed
        return printed

    def refused(self, command: str, *words: object) -> str:
        """The one line of a refused command; only progress may stand before it."""
        *before, line = self(command, *words, status=2).err.strip().splitlines()
        progress = r"(Decoding training images|Comparing|Timing|\S+: measuring for up to )"
        assert all(re.match(progress, text) for text in before), before
        assert line.startswith("error: ")
        return line


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capsys)


@pytest.fixture(autouse=True)
def allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``harness.speed`` sets for the processes that it starts does not outlive a test."""
    for name in machine.KEEP_MEMORY:
        if name not in os.environ:
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder that does not exist yet."""
    return tmp_path / "results"


@pytest.fixture
def tiny(image_folder: Path, results: Path) -> list[str]:
    """Options of a training of a second; those that follow them hold instead."""
    return [*TINY_WORDS, "--data", str(image_folder), "--results", str(results)]


def train(results: Path, *lines: str, data: Path | None = None) -> None:
    """Train with the main job, in this process, for fixtures of a whole module.

    Args:
        results: folder of the records.
        lines: options of each call, without ``--results``.
        data: folder of the images.
    """
    with pytest.MonkeyPatch.context() as patch:
        if data is not None:
            patch.setenv("SR_DATA", str(data))
        for line in lines:
            words = ["harness.run", *line.split(), "--results", str(results)]
            patch.setattr(sys, "argv", words)
            importlib.import_module("harness.run").main()


def copied(trained: Path, folder: Path) -> Path:
    """A copy of a module's results, which a test may change."""
    return Path(shutil.copytree(trained, folder / "results"))
