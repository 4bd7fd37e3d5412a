"""A tiny configuration that trains in a second."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from harness.config.network import NetworkConfig
from harness.config.run import DataConfig, RunConfig
from harness.config.variants import Variant
from harness.images.sources import find_data
from harness.records.shapes import Run
from harness.runs import run
from harness.tasks.sr import SuperResolution

#: Much the same as options of a command.
TINY_WORDS = ["--blocks", "4", "--channels", "8", "--steps", "3", "--batch", "2", "--patch", "8"]
TINY = NetworkConfig(blocks=4, channels=8)


def make_config(
    name: str = "none", options: dict[str, Any] | None = None, **values: Any
) -> RunConfig:
    """A tiny configuration with any value overridden, also the sizes of the network."""
    sizes = {f.name: values.pop(f.name) for f in dataclasses.fields(TINY) if f.name in values}
    defaults: dict[str, Any] = {
        "variant": Variant(name, options or {}),
        "preset": "quick",
        "scale": 4,
        "seed": 0,
        "network": dataclasses.replace(TINY, **sizes),
        "patch": 8,
        "batch": 2,
        "steps": 6,
        "steps_per_epoch": 2,
        "learning_rate": 1e-3,
        "schedule": "one-cycle",
        "device": "cpu",
        "data": DataConfig("images", ["Some"], 3, "0" * 64, ["Tiny"]),
    }
    return RunConfig(**(defaults | values))


def run_tiny(
    config: RunConfig, images: Path, results: Path, command: str = "test", **options: Any
) -> Run:
    """Train and evaluate a configuration on the CPU with a folder of images."""
    source = find_data(images)
    task = SuperResolution(source.training_images(config.scale), source)
    return run.run(config, task, results, torch.device("cpu"), command, **options)
