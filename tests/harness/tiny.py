"""A tiny configuration that trains in a second."""

from __future__ import annotations

from typing import Any

from harness.config.run import DataConfig, RunConfig
from harness.config.variants import Variant


def make_config(
    name: str = "none", options: dict[str, Any] | None = None, **values: Any
) -> RunConfig:
    """A tiny configuration with any value overridden."""
    defaults: dict[str, Any] = {
        "variant": Variant(name, options or {}),
        "preset": "quick",
        "protocol": "scratch",
        "scale": 4,
        "seed": 0,
        "blocks": 4,
        "channels": 8,
        "block_res_scale": 1.0,
        "patch": 8,
        "batch": 2,
        "steps": 6,
        "steps_per_epoch": 2,
        "learning_rate": 1e-3,
        "schedule": "one-cycle",
        "betas": (0.9, 0.99),
        "auxiliary_weight": 1e-3,
        "auxiliary_warmup": 0.15,
        "precision": "float32",
        "device": "cpu",
        "tile": None,
        "data": DataConfig("images", ["Some"], 3, "0" * 64, ["Tiny"]),
    }
    return RunConfig(**(defaults | values))
