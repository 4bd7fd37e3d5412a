"""Training options of the main job and of sweeps, and the configuration they give."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ..base import machine
from ..base.errors import UserError
from ..base.folders import OWN
from ..config.network import NetworkConfig, quarters, spread
from ..config.options import Implementation
from ..config.presets import PRESETS, Preset, Schedule, find_preset
from ..config.rows import TableName
from ..config.run import (
    AUTO,
    AUXILIARY_WARMUP,
    AUXILIARY_WEIGHT,
    SAVE_EVERY,
    DataConfig,
    Precision,
    Protocol,
    RunConfig,
    StartConfig,
    TaskConfig,
)
from ..config.variants import Variant
from ..images.sources import HOLDOUT
from ..tasks.base import SyntheticTask

if TYPE_CHECKING:
    import torch

    from ..tasks.options import AnyTask, ImageTask


@dataclass(kw_only=True)
class TrainingOptions:
    """What to train, how and where: options of the main job and of sweeps."""

    attn: tuple[str, ...] = ("enlca",)
    """Modules, `all`, or your own as package.module:Class; their options follow, e.g. --m 16, or
    stand behind one module alone: enlca:m=16 enlca:m=128,k=2."""
    rows: TableName | None = None
    """Rows of one of the paper's tables, rivals, controls or profile, instead of --attn."""
    task: str = "sr"
    """What to learn: sr, denoise, recall, or package.module:Class of your own; options follow."""
    preset: str = "quick"
    """quick, small, base or paper, in denoise also photographs: sizes and schedule; the values
    below override it."""
    data: Path | None = None
    """Folder of images (docs/data.md); else SR_DATA, else images that ship with scikit-image."""
    train_sets: tuple[str, ...] = ()
    """Training sets of the folder to use; all by default."""
    test_sets: tuple[str, ...] = ()
    """Test sets to evaluate on; all by default."""
    holdout: int = 0
    """Move every k-th training image to a test set, Holdout; 0 moves none."""
    holdout_crop: int | None = None
    """Evaluate centre crops of this many HR pixels of the images in Holdout; else whole ones."""
    scale: int = 4
    """Scale factor: 2, 3 or 4."""
    seeds: tuple[int, ...] = (0,)
    """Seeds; one run each."""
    protocol: Protocol = "scratch"
    """scratch (the paper's), or warm-start: all variants of a seed start from one baseline."""
    start_steps: int | None = None
    """Steps of warm-start's baseline, with the preset's rate and schedule."""
    steps: int | None = None
    """Training steps; with warm-start, those after the baseline's."""
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
    modules: int | None = None
    """Attention modules: five at each quarter of the blocks, another number in the middle of as
    many equal parts of them; five by default, in the preset photographs two."""
    learn_res_scale: bool = False
    """Train the weight of every attention module, from its --res-scale."""
    attention_rate: float = 1.0
    """Factor on the learning rate of the attention modules."""
    learning_rate: float | None = None
    """Largest learning rate."""
    schedule: Schedule | None = None
    """halving (the paper's) or one-cycle."""
    auxiliary_weight: float = AUXILIARY_WEIGHT
    """Weight of the contrastive loss."""
    auxiliary_warmup: float = AUXILIARY_WARMUP
    """Share of the steps before the contrastive loss sets in."""
    precision: Precision = "float32"
    """Precision of training: float32, tf32 (CUDA) or bfloat16 (autocast). Evaluation is float32."""
    tile: int | None = None
    """Evaluate in tiles of this many LR pixels, 0 for whole images; whole ones by default, in the
    preset photographs tiles of 32."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    impl: Implementation = AUTO
    threads: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """CPU threads; all cores by default."""
    save_every: float = SAVE_EVERY
    """Seconds between checkpoints."""
    results: Path = OWN
    """Folder for records and working files."""


@dataclass(kw_only=True)
class RunOptions(TrainingOptions):
    """Train, evaluate, count and time attention modules in the EDSR backbone.

    Examples:
      python -m harness.run --attn enlca --m 16                 images that ship with scikit-image
      python -m harness.run --attn none nla nlsa --seeds 0 1 2 --preset small --data DIR
      python -m harness.run --attn my_package.my_module:MyAttention --my-option 3
      python -m harness.run --task denoise --sigma 25 --attn none enlca
      python -m harness.run --task recall --pairs 4 --attn enlca nla none mean
    """

    skip_training: bool = False
    """Only count and time; this needs no images."""
    skip_latency: bool = False
    """Do not time."""


def network_of(options: TrainingOptions, task: AnyTask | None = None) -> NetworkConfig:
    """Size of the network: the preset's, with the options' overrides.

    Args:
        options: of the command.
        task: whose preset it is; super-resolution if None.

    Raises:
        UserError: unknown preset.
    """
    return _overridden(options, _preset_of(task, options.preset).network)


def modules_of(options: TrainingOptions, task: ImageTask) -> int:
    """Number of attention modules: the preset's, or what the command gives.

    Raises:
        UserError: unknown preset.
    """
    if options.modules is not None:
        return options.modules
    return _preset_of(task, options.preset).modules


def res_scale_of(options: TrainingOptions, task: AnyTask) -> float | None:
    """The attention's weight where the command gives none: the task's or the preset's.

    None leaves each module its own.

    Raises:
        UserError: unknown preset.
    """
    if isinstance(task, SyntheticTask):
        return task.res_scale
    return _preset_of(task, options.preset).res_scale


def _overridden(options: TrainingOptions, network: NetworkConfig) -> NetworkConfig:
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(network)}
    return dataclasses.replace(network, **{k: v for k, v in given.items() if v is not None})


def configure_task(
    options: TrainingOptions, task: SyntheticTask, variant: Variant, seed: int, device: torch.device
) -> RunConfig:
    """The configuration of one run of a synthetic task, with one module in the backbone's middle.

    Raises:
        UserError, AttentionError: as :func:`configure`.
    """
    preset = _preset_of(task, options.preset)
    network = _overridden(options, preset.network)
    return RunConfig.of_preset(
        options.preset,
        found=preset,
        variant=variant,
        scale=task.scale,
        seed=seed,
        network=network,
        patch=task.patch,
        device=device.type,
        **_overrides(options),
        data=DataConfig(task.label, [task.name], 0, task.sha256, task.test_sets),
        implementation=options.impl,
        task=TaskConfig(task.name, task.settings, task.loss, (network.blocks // 2,)),
    )


def _overrides(options: TrainingOptions) -> dict[str, Any]:
    """Values of the training that a command may give for every task; None keeps the preset's."""
    names = (
        *("batch", "steps", "steps_per_epoch", "learning_rate", "schedule"),
        *("auxiliary_weight", "auxiliary_warmup", "precision"),
        *("learn_res_scale", "attention_rate"),
    )
    return {name: getattr(options, name) for name in names}


def _preset_of(task: AnyTask | None, name: str) -> Preset:
    if task is None or task.presets is PRESETS:
        return find_preset(name)
    if name not in task.presets:
        raise UserError(
            f"task {task.name} has no preset {name!r}: choose from {', '.join(task.presets)}"
        )
    return task.presets[name]


def configure(
    options: TrainingOptions,
    task: AnyTask,
    variant: Variant,
    seed: int,
    device: torch.device,
    *,
    decode: bool = True,
) -> RunConfig:
    """The configuration of one run: the task's preset with the options' overrides.

    Args:
        options: of the command.
        task: as :func:`harness.tasks.options.create_task` makes it.
        variant: the attention module.
        seed: of the run.
        device: where it trains.
        decode: whether training images may be decoded now. Without them the values are checked all
            the same, but such a configuration is not run.

    Raises:
        UserError: a value out of range, an unknown preset, scale or test set.
        AttentionError: unknown module or option.
    """
    machine.check_precision(options.precision, device)
    if isinstance(task, SyntheticTask):
        return configure_task(options, task, variant, seed, device)
    return _configure_images(options, task, variant, seed, device, decode)


def _configure_images(
    options: TrainingOptions,
    task: ImageTask,
    variant: Variant,
    seed: int,
    device: torch.device,
    decode: bool,
) -> RunConfig:
    """:func:`configure` of a task on image files, with several modules in the backbone."""
    preset = _preset_of(task, options.preset)
    network = _overridden(options, preset.network)
    start = None
    if options.protocol == "warm-start":
        start = StartConfig(
            steps=preset.steps if options.start_steps is None else options.start_steps,
            learning_rate=preset.learning_rate,
            schedule=preset.schedule,
        )
    elif options.start_steps is not None:
        raise UserError("--start-steps applies only to --protocol warm-start")
    source = task.source
    test = source.choose_tests(options.test_sets)
    cache = task.cache if decode else None
    chosen = None
    places = spread(network.blocks, modules_of(options, task))
    # No command gives None: 0 stands for whole images.
    tile = (preset.tile if options.tile is None else options.tile) or None
    if variant.takes_references and tile is not None:
        raise UserError(f"{variant.name} takes matches of whole images: give --tile 0")
    if task.settings:
        chosen = TaskConfig(task.name, task.settings, task.loss, places)
    return RunConfig.of_preset(
        options.preset,
        found=preset,
        variant=variant,
        protocol=options.protocol,
        scale=task.scale,
        seed=seed,
        network=network,
        patch=options.patch,
        device=device.type,
        **_overrides(options),
        tile=tile,
        data=DataConfig(
            name=source.name,
            train=source.train_sets,
            train_images=len(cache) if cache else 0,
            train_sha256=cache.sha256 if cache else "",
            test=test,
            holdout_crop=options.holdout_crop if HOLDOUT in test else None,
        ),
        start=start,
        implementation=options.impl,
        task=chosen,
        positions=None if chosen or places == quarters(network.blocks) else places,
    )
