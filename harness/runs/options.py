"""Training options of the main job and of sweeps, and the configuration they give."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from ..base.errors import UserError
from ..config.presets import Preset, find_preset
from ..config.rows import TableName
from ..config.run import DataConfig, RunConfig, StartConfig
from ..config.variants import Variant
from ..images.cache import TrainingCache
from ..images.sources import DataSource
from ..training.trainer import SAVE_EVERY


@dataclass(kw_only=True)
class TrainingOptions:
    """What is trained, how and where; of the main job and of sweeps alike."""

    attn: tuple[str, ...] = ("enlca",)
    """Modules, `all`, or your own as package.module:Class; their options follow, e.g. --m 16."""
    rows: TableName | None = None
    """Run rows of one of the paper's tables, or rivals, instead of --attn."""
    preset: str = "quick"
    """quick, small, base or paper: sizes and schedule; the values below override it."""
    data: Path | None = None
    """Folder of images (see README); else SR_DATA, else images that ship with scikit-image."""
    train_sets: tuple[str, ...] = ()
    """Training sets of the folder to use; all by default."""
    test_sets: tuple[str, ...] = ()
    """Test sets to evaluate on; all by default."""
    holdout: int = 0
    """Keep every k-th training image out, as test set Holdout; 0 for none."""
    scale: int = 4
    """Scale factor: 2, 3 or 4."""
    seeds: tuple[int, ...] = (0,)
    """Seeds; one run each."""
    protocol: str = "scratch"
    """scratch (the paper's), or warm-start: one baseline a seed, trained on by every variant."""
    start_steps: int | None = None
    """Steps of warm-start's baseline, with the preset's rate and schedule."""
    steps: int | None = None
    """Training steps; with warm-start, the further ones."""
    steps_per_epoch: int | None = None
    """Steps between redraws of random projections."""
    batch: int | None = None
    """Patches in a batch."""
    patch: int | None = None
    """Side of an LR patch in pixels."""
    blocks: int | None = None
    """Residual blocks."""
    channels: int | None = None
    """Feature channels."""
    block_res_scale: float | None = None
    """Residual scale of EDSR's blocks (--res-scale is the attention module's)."""
    learning_rate: float | None = None
    """Largest learning rate."""
    schedule: str | None = None
    """halving (the paper's) or one-cycle."""
    auxiliary_weight: float = 1e-3
    """Weight of the contrastive loss."""
    auxiliary_warmup: float = 0.15
    """Share of the steps before the contrastive loss sets in."""
    precision: str = "float32"
    """float32, tf32 (CUDA) or bfloat16 (autocast) in training; evaluation is float32."""
    tile: int | None = None
    """Evaluate in tiles of this many LR pixels; whole images by default."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    impl: str = "auto"
    """Implementation of the attention: auto, reference, tiled, sdpa, triton, or enla=triton,…"""
    threads: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """CPU threads; all cores by default."""
    save_every: float = SAVE_EVERY
    """Seconds between saved states of the training, which a killed run goes on from."""
    results: Path = Path("results")
    """Folder for records and working files."""


@dataclass(kw_only=True)
class RunOptions(TrainingOptions):
    """Train, evaluate, count and time attention modules in the EDSR backbone.

    Examples:
      python -m harness.run --attn enlca --m 16                 images that ship with scikit-image
      python -m harness.run --attn none nla nlsa --seeds 0 1 2 --preset small --data DIR
      python -m harness.run --attn my_package.my_module:MyAttention --my-option 3
    """

    skip_training: bool = False
    """Only count and time; no images are needed."""
    skip_latency: bool = False
    """Do not time."""


def _given_or_preset(options: TrainingOptions, preset: Preset, name: str) -> Any:
    given = getattr(options, name)
    return getattr(preset, name) if given is None else given


def configure(
    options: TrainingOptions,
    variant: Variant,
    seed: int,
    device: torch.device,
    source: DataSource,
    cache: TrainingCache | None,
) -> RunConfig:
    """The configuration of one run: the preset with the options' overrides.

    Without a cache the values are checked all the same; such a configuration is not run.

    Raises:
        UserError: a value out of range, an unknown preset, scale or test set.
    """
    preset = find_preset(options.preset)

    value = partial(_given_or_preset, options, preset)
    if options.scale not in preset.patch:
        raise UserError(f"scale must be 2, 3 or 4, got {options.scale}")
    start = None
    if options.protocol == "warm-start":
        start = StartConfig(
            steps=preset.steps if options.start_steps is None else options.start_steps,
            learning_rate=preset.learning_rate,
            schedule=preset.schedule,
        )
    elif options.start_steps is not None:
        raise UserError("--start-steps is of --protocol warm-start")
    test = list(options.test_sets) or source.test_sets
    for name in test:
        source.test_set(name, options.scale)
    return RunConfig(
        variant=variant,
        preset=options.preset,
        protocol=options.protocol,
        scale=options.scale,
        seed=seed,
        blocks=value("blocks"),
        channels=value("channels"),
        block_res_scale=value("block_res_scale"),
        patch=preset.patch[options.scale] if options.patch is None else options.patch,
        batch=value("batch"),
        steps=value("steps"),
        steps_per_epoch=value("steps_per_epoch"),
        learning_rate=value("learning_rate"),
        schedule=value("schedule"),
        betas=(0.9, 0.99),
        auxiliary_weight=options.auxiliary_weight,
        auxiliary_warmup=options.auxiliary_warmup,
        precision=options.precision,
        device=device.type,
        tile=options.tile,
        data=DataConfig(
            name=source.name,
            train=source.train_sets,
            train_images=len(cache) if cache else 0,
            train_sha256=cache.sha256 if cache else "",
            test=test,
        ),
        start=start,
        implementation=options.impl,
    )
