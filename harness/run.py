"""The main job: train, evaluate, count and time attention modules in EDSR.

Command line: ``python -m harness.run --attn enlca --m 16``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console

from attention_zoo.implementations import choose_implementation

from . import distributed, flops, latency, machine
from .checkpoints import discard_checkpoints
from .config import (
    DataConfig,
    Preset,
    RunConfig,
    StartConfig,
    TableName,
    Variant,
    find_preset,
)
from .data import DataSource, TrainingCache, check_patch, find_data
from .edsr import build_network
from .errors import UserError, command_line
from .evaluate import evaluate
from .evaluated import EvaluatedImages, discard_evaluated
from .files import read_json, remove_leftovers, write_json
from .locks import lock
from .options import describe_command, parse
from .records import load_records, record_id, record_path, save_record
from .settings import origin_note
from .signals import resumable
from .tables import summary
from .train import SAVE_EVERY, Trainer
from .weights import Architecture, load_strictly, load_weights, save_weights, weights_path

#: Seconds of timing for each part in the main job; ``harness.latency`` measures at length.
LATENCY_SECONDS = 5.0


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
class Options(TrainingOptions):
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


def run(
    config: RunConfig,
    source: DataSource,
    cache: TrainingCache,
    results: Path,
    device: torch.device,
    command: str,
    save_every: float = SAVE_EVERY,
) -> dict[str, Any]:
    """Train and evaluate one variant with one seed; a finished run is only read.

    While another process is at the same run, this one waits for it.

    Returns:
        The run's record, which lies under ``results/records/runs`` then.

    Raises:
        UserError: the folder holds another configuration, training diverged, an image or the
            disk is at fault.
    """
    path = record_path(results, "run", config.run_id)
    what = f"{config.variant.label} seed {config.seed}"
    if not distributed.agree(path.exists()):
        with hold(results, config.run_id, what):
            if not distributed.agree(path.exists()):  # another process may have finished it
                trainer = train(config, cache, results, device, save_every)
                if distributed.is_main():
                    _finish(trainer, source, results, device, command)
                distributed.wait()
                return next(r for r in load_records(results, "run") if r["id"] == config.run_id)
    record = next(r for r in load_records(results, "run") if r["id"] == config.run_id)
    _check_source(record, config.variant, path)
    what = f"{what} is finished"
    print(origin_note([record], what), f"Read from {path}; another --results runs it anew.")
    if distributed.is_main():
        with contextlib.suppress(OSError):  # of a process that was killed before it could
            discard_checkpoints(results / "runs" / config.run_id)
            discard_evaluated(results / "runs" / config.run_id)
    return record


def _finish(
    trainer: Trainer, source: DataSource, results: Path, device: torch.device, command: str
) -> None:
    """Evaluate a trained network, on where it was interrupted, and write the run's record."""
    config, network = trainer.config, trainer.network
    folder = results / "runs" / config.run_id
    quality = {}
    with machine.use_tf32(False):
        basis = {
            "weights": hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest(),
            "tile": config.tile,
            "machine": machine.describe(device),
        }
        evaluated = EvaluatedImages(folder, basis, trainer.save_every)
        for name in config.data.test:
            images = source.test_set(name, config.scale)
            quality[name] = evaluate(
                network,
                images,
                len(images),
                config.scale,
                f"{config.variant.label} on {name}",
                config.tile,
                evaluated=evaluated,
            )
    record = {
        "kind": "run",
        "id": config.run_id,
        "command": command,
        "machine": machine.describe(device),
        "variant": config.variant.to_dict(),
        **_source(config.variant),
        "config": config.setting,
        "training": {
            "parameters": sum(p.numel() for p in network.parameters()),
            "processes": distributed.processes(),
            "seconds": round(trainer.seconds, 1),
            "steps_per_second": round(config.steps / max(trainer.seconds, 1e-9), 3),
            "log": trainer.log,
        },
        "quality": quality,
    }
    path = record_path(results, "run", config.run_id)
    remove_leftovers(path.parent, path.name)
    save_record(results, record)
    trainer.discard_state()
    discard_evaluated(folder)


def lock_path(results: Path, identifier: str) -> Path:
    """Lock file of a run or a cost record; none lies among the records, which are published."""
    return results / "runs" / ".locks" / f"{identifier}.lock"


def hold(results: Path, identifier: str, what: str) -> AbstractContextManager[None]:
    """The lock of a run, held by the first of the processes that share it; see :mod:`.locks`."""
    if distributed.is_main():
        return lock(lock_path(results, identifier), what)
    return contextlib.nullcontext()


def train(
    config: RunConfig,
    cache: TrainingCache,
    results: Path,
    device: torch.device,
    save_every: float = SAVE_EVERY,
) -> Trainer:
    """Train one variant with one seed, or take its training up, and write its weights.

    A warm start's baseline is trained first where its weights are neither here nor published. The
    caller holds the run's lock.

    Raises:
        UserError: as :func:`run`.
    """
    network = architecture(config).build(config.seed).to(device)
    if config.start is not None:
        start = config.baseline
        baseline = weights_path(results, start.run_id)
        if not distributed.agree(baseline.exists()):
            with hold(results, start.run_id, f"the baseline, seed {start.seed}"):
                if not distributed.agree(baseline.exists()):
                    train(start, cache, results, device, save_every).discard_state()
        trained = load_weights(baseline)
        if trained.name != start.run_id:
            raise UserError(
                f"{baseline} holds the weights of {trained.name}, not of {start.run_id}; delete it"
            )
        tensors = trained.network.state_dict()
        own = {k: v for k, v in network.state_dict().items() if k.startswith("attention.")}
        load_strictly(network, tensors | own, str(baseline))
    folder = results / "runs" / config.run_id
    if distributed.is_main():
        _claim(folder, config)
    trainer = Trainer(config, network, cache, folder, save_every)
    trainer.train(f"{config.variant.label} seed {config.seed}")
    if distributed.is_main():
        save_weights(folder / "weights.safetensors", network, architecture(config), config.run_id)
    distributed.wait()
    return trainer


def architecture(config: RunConfig) -> Architecture:
    """The network of a configuration."""
    return Architecture(
        variant=config.variant,
        blocks=config.blocks,
        channels=config.channels,
        scale=config.scale,
        block_res_scale=config.block_res_scale,
    )


def _claim(folder: Path, config: RunConfig) -> None:
    """Make the run's folder, or check that it is this run's."""
    content = {"variant": config.variant.to_dict(), "config": config.setting}
    content |= _source(config.variant)
    path = folder / "config.json"
    remove_leftovers(folder)
    if path.exists():
        _check_source(read_json(path), config.variant, folder)
        if read_json(path) != json.loads(json.dumps(content)):  # it has no tuples
            raise UserError(
                f"{folder} holds a run of another configuration; delete it or use --results"
            )
        return
    write_json(path, content)


def _source(variant: Variant) -> dict[str, Any]:
    """What a run says of the file of a module that is not the suite's own."""
    digest = variant.source_sha256
    return {} if digest is None else {"source_sha256": digest}


def _check_source(content: Any, variant: Variant, path: Path) -> None:
    """Nothing of an older version of somebody's module passes for one of the present.

    Args:
        content: a record, or the content of a run's ``config.json``.
        variant: the module as it is now.
        path: where that content lies.

    Raises:
        UserError: the module's file is another than then.
    """
    then = content.get("source_sha256") if isinstance(content, dict) else None
    if then is not None and then != variant.source_sha256:
        raise UserError(
            f"the file of {variant.name} has changed since {path} was made: choose another "
            "--results for the new version, or delete that"
        )


def measure_cost(variant: Variant, results: Path, command: str) -> dict[str, Any]:
    """Operation counts of a variant, as a record under ``results/records/costs``."""
    counts = flops.count(variant)
    description = machine.describe(torch.device("cpu"))
    identifier = record_id(variant.file_name, {**counts, "packages": description["packages"]})
    path = record_path(results, "cost", identifier)
    if not path.exists():
        record = {
            "kind": "cost",
            "id": identifier,
            "command": command,
            "machine": description,
            **counts,
        }
        with lock(lock_path(results, identifier), f"cost of {variant.label}"):
            remove_leftovers(path.parent, path.name)
            if not path.exists():  # another process's command may have led to the same one
                save_record(results, record)
    return next(r for r in load_records(results, "cost") if r["id"] == identifier)


def measure_latency(
    variants: Sequence[Variant],
    options: Options,
    device: torch.device,
    command: str,
) -> dict[str, Any]:
    """Latencies of the variants beside NLA's, in turn, as a record under ``records/latency``."""
    value = partial(_given_or_preset, options, find_preset(options.preset))
    nla = Variant("nla")
    # The baseline has no core and no module to time, and NLA is the yardstick of the table.
    chosen = [v for v in variants if v.name != "none"]
    if nla not in chosen:
        chosen.append(nla)

    network = partial(
        build_network,
        blocks=value("blocks"),
        channels=value("channels"),
        scale=options.scale,
        block_res_scale=value("block_res_scale"),
    )
    with latency.progress() as on_run:
        record = latency.measure(
            chosen,
            device=device,
            sizes=((100, 100),),
            passes=("forward",),
            max_seconds=LATENCY_SECONDS,
            network=network,
            command=command,
            on_run=on_run,
        )
    save_record(options.results, record)
    return record


@command_line
@resumable("harness.run", distributed.launcher)
def main() -> None:
    """Entry point of ``python -m harness.run``."""
    options, variants = parse(Options, sys.argv[1:], "harness.run")
    console = Console()
    preset = find_preset(options.preset)
    device = distributed.start(options.device)
    command = describe_command("harness.run", sys.argv[1:], distributed.launcher())
    machine.use_threads(options.threads)
    choose_implementation(options.impl)
    if not options.save_every >= 0:
        raise UserError(f"--save-every must be at least 0 seconds, got {options.save_every}")
    if not options.seeds:
        raise UserError("--seeds needs at least one number")
    channels = _given_or_preset(options, preset, "channels")
    for variant in variants:  # a bad option or module shows before any work is done
        flops.check_cost(variant, channels)
    runs = []
    if not options.skip_training:
        source = find_data(
            options.data, train_sets=options.train_sets or None, holdout=options.holdout
        )
        configure(options, variants[0], 0, device, source, None)  # before images are decoded
        with distributed.main_first():
            cache = source.training_images(options.scale)
        configs = [
            configure(options, variant, seed, device, source, cache)
            for seed in options.seeds
            for variant in variants
        ]
        check_patch(cache, configs[0].patch)
        distributed.check_batch(configs[0].batch)
        # What a warm start begins with has a record too, of another setting than the runs.
        for config in {c.baseline.run_id: c.baseline for c in configs if c.start}.values():
            run(config, source, cache, options.results, device, command, options.save_every)
        for config in configs:
            runs.append(
                run(config, source, cache, options.results, device, command, options.save_every)
            )
    first = distributed.is_main()
    distributed.stop()
    if not first:
        return
    costs = [measure_cost(variant, options.results, command) for variant in variants]
    timed = None
    if not options.skip_latency:
        timed = measure_latency(variants, options, device, command)
    console.print(summary(runs, costs, timed))
    console.print(f"Records: {options.results / 'records'}; tables: python -m harness.tables")


if __name__ == "__main__":
    main()
