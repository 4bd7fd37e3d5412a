"""One run: train, evaluate, record."""

from __future__ import annotations

import contextlib
import hashlib
import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from ..base import machine
from ..base.errors import UserError
from ..base.files import read_json, remove_leftovers, write_json
from ..base.locks import lock
from ..config.run import RunConfig
from ..config.variants import Variant
from ..images.cache import TrainingCache
from ..images.sources import DataSource
from ..measuring import flops
from ..measuring.evaluated import EvaluatedImages, discard_evaluated
from ..measuring.quality import evaluate
from ..network.weights import Architecture, load_strictly, load_weights, save_weights, weights_path
from ..records.origin import origin_note
from ..records.store import load_records, record_id, record_path, save_record
from ..training import distributed
from ..training.checkpoints import discard_checkpoints
from ..training.trainer import SAVE_EVERY, Trainer


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
