"""One run: train, evaluate, record; costs and latencies beside it."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from msgspec import convert
from msgspec.structs import replace

from ..base import machine
from ..base.errors import UserError
from ..base.files import make_folder, read_json, remove_leftovers, write_json
from ..base.locks import lock
from ..base.phases import Phases
from ..base.progress import timing_bar
from ..config.network import NetworkConfig
from ..config.run import SAVE_EVERY, RunConfig
from ..config.sources import check_source
from ..config.variants import Variant
from ..measuring import flops, latency
from ..measuring.evaluated import EvaluatedImages, discard_evaluated
from ..measuring.load import MOST_LOAD
from ..measuring.quality import evaluate
from ..measuring.tasks import score, validation
from ..network.edsr import learned_weights
from ..network.weights import (
    Architecture,
    TrainedNetwork,
    exact_weights_path,
    load_strictly,
    load_weights,
    save_weights,
    weights_path,
)
from ..records.changed import changed_sets
from ..records.origin import by_age, made_here, origin_note
from ..records.shapes import Cost, Evaluation, Latency, Machine, Quality, Run, untyped
from ..records.store import (
    find_record,
    load_record,
    load_records,
    lock_path,
    new_record,
    record_id,
    record_path,
    save_record,
)
from ..tasks.base import SyntheticTask, Task
from ..tasks.images import ImageTask
from ..training import distributed
from ..training.checkpoints import discard_checkpoints
from ..training.trainer import Trainer

#: Seconds of timing for each part in the main job; ``harness.latency`` measures longer.
LATENCY_SECONDS = 5.0


def run(
    config: RunConfig,
    task: Task,
    results: Path,
    device: torch.device,
    command: str,
    save_every: float = SAVE_EVERY,
    phases: Phases | None = None,
) -> Run:
    """Train and evaluate one variant with one seed; a finished run is only read.

    If another process is working on the same run, this one waits for it. ``task`` is that of the
    configuration: an ImageTask with its source, or a SyntheticTask. If test images have changed
    since, the run's weights are evaluated on them, into the record.

    Returns:
        The run's record, which then lies under ``records/runs`` there.

    Raises:
        UserError: the folder holds another configuration, training diverged, an image or the
            disk is at fault.
    """
    phases = phases or Phases()
    what = f"{config.variant.row_label} seed {config.seed}"
    if not distributed.agree(_is_known(config, task, results)):
        with hold(results, config.run_id, what):
            # Another process may have finished it.
            if not distributed.agree(_is_known(config, task, results)):
                if distributed.is_main():
                    make_folder(record_path(results, Run, config.run_id).parent)
                with phases.phase("training"):
                    trainer = train(config, task, results, device, save_every)
                with phases.phase("evaluation"):
                    if distributed.is_main():
                        _finish(trainer, results, device, command)
                    distributed.wait()
                return load_record(results, Run, config.run_id)
    path = find_record(results, Run, config.run_id)
    record = load_record(results, Run, config.run_id)
    check_source(record.source_sha256, config.variant, path)
    if isinstance(task, ImageTask) and distributed.agree(changed_sets(record, task)):
        with hold(results, config.run_id, what), phases.phase("evaluation"):
            if distributed.is_main():
                _evaluate_again(config, task, results, device, command, save_every)
            distributed.wait()
        record = load_record(results, Run, config.run_id)
    what = f"{what} is finished"
    print(origin_note([record], what), f"Read from {path}; another --results runs it again.")
    if distributed.is_main():
        with contextlib.suppress(OSError):  # a process may have been killed before it could
            discard_checkpoints(results / "runs" / config.run_id)
            discard_evaluated(results / "runs" / config.run_id)
    return record


def _is_known(config: RunConfig, task: Task, results: Path) -> bool:
    """Whether there is a record: the user's own, or a published one of the same test images."""
    path = find_record(results, Run, config.run_id)
    if not path.exists():
        return False
    own = path == record_path(results, Run, config.run_id)
    if own or not isinstance(task, ImageTask):
        return True
    return not changed_sets(load_record(results, Run, config.run_id), task)


def _evaluate_again(
    config: RunConfig,
    task: ImageTask,
    results: Path,
    device: torch.device,
    command: str,
    save_every: float,
) -> None:
    """Measure test sets whose images have changed, with the run's weights, into its record.

    Raises:
        UserError: the weights are not kept or another run's, or as :func:`run`.
    """
    path, weights = record_path(results, Run, config.run_id), weights_path(results, config.run_id)
    record = load_record(results, Run, config.run_id)
    changed = changed_sets(record, task)
    if not changed:  # another process has done it meanwhile
        return
    what = f"the images of {', '.join(changed)} have changed since {record.id} was evaluated"
    if not weights.exists():
        raise UserError(
            f"{what}, and its weights are not kept: restore the images, or delete {path} to train "
            "it again"
        )
    print(f"{what}: evaluating its weights again")
    network = _load(weights, config).network.to(device)
    with machine.use_tf32(False):
        found = _qualities(config, network, task, changed, weights, results, device, save_every)
    evaluated = Evaluation(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        machine=convert(machine.describe(device), Machine),
    )
    record = replace(record, quality=record.quality | found, evaluated=evaluated)
    save_record(results, record, replace=True)


def _finish(trainer: Trainer, results: Path, device: torch.device, command: str) -> None:
    """Evaluate a trained network, and write the record."""
    config, network = trainer.config, trainer.network
    folder = results / "runs" / config.run_id
    with machine.use_tf32(False):
        if isinstance(trainer.task, ImageTask):
            names, weights = config.data.test, folder / "weights.safetensors"
            qualities = _qualities(
                config, network, trainer.task, names, weights, results, device, trainer.save_every
            )
            found = {"quality": {name: untyped(one) for name, one in qualities.items()}}
        else:
            assert isinstance(trainer.task, SyntheticTask)
            found = _scores(trainer, trainer.task)
    content = {
        "command": command,
        "machine": machine.describe(device),
        "variant": config.variant.describe(),
        **_source(config.variant),
        "config": config.setting,
        "training": {
            "parameters": sum(p.numel() for p in network.parameters()),
            "processes": distributed.processes(),
            "seconds": round(trainer.seconds, 1),
            "steps_per_second": round(config.steps / max(trainer.seconds, 1e-9), 3),
            "log": trainer.log,
            **({"curve": trainer.curve} if trainer.curve else {}),
            **({"res_scale": learned_weights(network)} if config.learn_res_scale else {}),
        },
        **found,
    }
    path = record_path(results, Run, config.run_id)
    remove_leftovers(path.parent, path.name)
    save_record(results, new_record(Run, config.run_id, content))
    trainer.discard_state()
    discard_evaluated(folder)


def _qualities(
    config: RunConfig,
    network: torch.nn.Module,
    task: ImageTask,
    names: Sequence[str],
    weights: Path,
    results: Path,
    device: torch.device,
    save_every: float,
) -> dict[str, Quality]:
    """Quality on the test sets; an interrupted evaluation is resumed."""
    basis = {
        "weights": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "tile": config.tile,
        "machine": machine.describe(device),
    }
    evaluated = EvaluatedImages(results / "runs" / config.run_id, basis, save_every)
    quality = {}
    for name in names:
        images = task.test_set(name)
        quality[name] = evaluate(
            network,
            images,
            len(images),
            config.scale,
            f"{config.variant.row_label} on {name}",
            config.tile,
            grey=task.grey,
            evaluated=evaluated,
        )
    return quality


def _scores(trainer: Trainer, task: SyntheticTask) -> dict[str, Any]:
    """Scores on every test set and on the validation images."""
    network, reach = trainer.network, trainer.config.network.reach
    chosen = score(network, task, task.validation_set, reach, validation=True)
    found = {name: untyped(score(network, task, name, reach)) for name in task.test_sets}
    return {"quality": {}, "scores": found, "validation": untyped(chosen)}


def hold(results: Path, identifier: str, what: str) -> AbstractContextManager[None]:
    """Hold the lock of a run, in the first of its processes alone; see ``base.locks``."""
    if distributed.is_main():
        return lock(lock_path(results, identifier), what)
    return contextlib.nullcontext()


def train(
    config: RunConfig,
    task: Task,
    results: Path,
    device: torch.device,
    save_every: float = SAVE_EVERY,
) -> Trainer:
    """Train one variant with one seed, or resume its training, and write its weights.

    A warm start's baseline is trained first, unless its weights exist here or are published. The
    caller holds the run's lock.

    Raises:
        UserError: as :func:`run`.
    """
    network = Architecture.of(config).build(config.seed).to(device)
    if config.start is not None:
        start = config.baseline
        baseline = exact_weights_path(results, start.run_id)
        if not distributed.agree(baseline.exists()):
            with hold(results, start.run_id, f"the baseline, seed {start.seed}"):
                if not distributed.agree(baseline.exists()):
                    train(start, task, results, device, save_every).discard_state()
        tensors = _load(baseline, start).network.state_dict()
        own = {k: v for k, v in network.state_dict().items() if k.startswith("attention.")}
        load_strictly(network, tensors | own, str(baseline))
    folder = results / "runs" / config.run_id
    if distributed.is_main():
        _claim(folder, config)
    validate = None
    if isinstance(task, SyntheticTask):
        validate = validation(task, config.network.reach)
    trainer = Trainer(config, network, task, folder, save_every, validate)
    trainer.train(f"{config.variant.row_label} seed {config.seed}")
    if distributed.is_main():
        save_weights(
            folder / "weights.safetensors", network, Architecture.of(config), config.run_id
        )
    distributed.wait()
    return trainer


def _load(path: Path, config: RunConfig) -> TrainedNetwork:
    """The network of a run.

    Raises:
        UserError: the file holds another run's, or as :func:`.weights.load_weights`.
    """
    trained = load_weights(path)
    if trained.name != config.run_id:
        raise UserError(
            f"{path} holds the weights of {trained.name}, not of {config.run_id}; delete it"
        )
    return trained


def _claim(folder: Path, config: RunConfig) -> None:
    """Make the run's folder, or check that it is this run's."""
    content = {"variant": config.variant.to_dict(), "config": config.setting}
    content |= _source(config.variant)
    path = folder / "config.json"
    remove_leftovers(folder)
    if path.exists():
        known = read_json(path)
        source = known.get("source_sha256") if isinstance(known, dict) else None
        check_source(source, config.variant, folder)
        if known != json.loads(json.dumps(content)):  # it has no tuples
            raise UserError(
                f"{folder} holds a run of another configuration; delete it or choose another "
                "--results"
            )
        return
    write_json(path, content)


def _source(variant: Variant) -> dict[str, Any]:
    """The hash of the module's file, unless the module is attention_zoo's own."""
    digest = variant.source_sha256
    return {} if digest is None else {"source_sha256": digest}


def measure_cost(variant: Variant, results: Path, command: str) -> Cost:
    """Operation counts of a variant, as a record under ``records/costs``."""
    counts = flops.count(variant)
    description = machine.describe(torch.device("cpu"))
    identifier = record_id(variant.file_name, {**counts, "packages": description["packages"]})
    path = record_path(results, Cost, identifier)
    if not path.exists():
        content = {"command": command, "machine": description, **counts}
        content["variant"] = variant.describe()
        with lock(lock_path(results, identifier), f"cost of {variant.label}"):
            remove_leftovers(path.parent, path.name)
            if not path.exists():  # another process may have written it meanwhile
                save_record(results, new_record(Cost, identifier, content))
    return load_record(results, Cost, identifier)


def measure_latency(
    variants: Sequence[Variant],
    network: NetworkConfig,
    scale: int,
    device: torch.device,
    results: Path,
    command: str,
) -> Latency:
    """Latencies of the variants beside NLA's, in turn, as a record under ``records/latency``.

    What the same command measured on this machine, with this version of the code, is only read.
    """
    known = _find_latency(device, results, command)
    if known is not None:
        path = find_record(results, Latency, known.id)
        print(f"Timed before: read from {path}; harness.latency times again.")
        return known
    # The baseline has no core and no module to time; the printed table compares with NLA.
    chosen = [variant for variant in variants if variant.name != "none"]
    if Variant("nla") not in chosen:
        chosen.append(Variant("nla"))
    with timing_bar() as on_run:
        record = latency.measure(
            chosen,
            device=device,
            sizes=((100, 100),),
            passes=("forward",),
            max_seconds=LATENCY_SECONDS,
            network=network,
            scale=scale,
            command=command,
            on_run=on_run,
        )
    save_record(results, record)
    return record


def _find_latency(device: torch.device, results: Path, command: str) -> Latency | None:
    """The newest latency record of this command, machine and code, that is not in doubt."""
    here = convert(machine.describe(device), Machine)
    folder = record_path(results, Latency, "").parent
    for record in reversed(by_age(load_records(results, Latency)) if folder.exists() else []):
        doubtful = record.other_cores and record.other_cores > MOST_LOAD
        if record.command == command and made_here(record, here) and not doubtful:
            return record
    return None
