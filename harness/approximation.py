"""How well ENLA approximates exact attention, and how much of it NLSA's buckets catch.

``python -m harness.approximation --weights RUN`` measures on the features of a trained network,
``--synthetic`` on synthetic ones (:func:`harness.features.synthetic_features`); both write a
record, and from it a CSV, figures and a summary in words. ``--from-records`` redraws alone.

With u = sqrt(k)·q/|q| and w = sqrt(k)·k/|k| (Eq. 3 of the ENLCA paper), exact attention is the
softmax of u·w = k·cos, and ENLA's kernel value phi(u)·phi(w) estimates exp(u·w).
"""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro

from attention_zoo.enla import EfficientNonLocalAttention
from attention_zoo.nlsa import (
    NonLocalSparseAttention,
)

from .base import machine
from .base.errors import UserError, command_line, usage_errors
from .base.names import slug
from .base.progress import progress_bar
from .config.options import describe_command
from .images.sources import TestImage, find_data
from .measuring.approximation import MAX_K, Sweep, measure, measure_network
from .measuring.features import Features, cropped, network_features, synthetic_features
from .network.weights import TrainedNetwork, find_weights, load_weights
from .records.shapes import REFERENCE_K, REFERENCE_M
from .records.store import load_records, record_id, save_record
from .reporting.approximation import statements
from .reporting.figures.approximation import write_report


@dataclass(frozen=True)
class Options:
    """Measure ENLA against exact attention, and NLSA's buckets; write record, CSV and figures.

    Examples:
      python -m harness.approximation --synthetic
      python -m harness.approximation --weights enlca-m128-small --data DIR
    """

    weights: str | None = None
    """A trained network with ENLA modules: run id (or its beginning) or weight file. One with NLSA
    modules is measured for NLSA alone."""
    synthetic: bool = False
    """Measure on Gaussian and on clustered features too."""
    data: Path | None = None
    """Folder of images; else SR_DATA, else images that ship with scikit-image."""
    test_sets: tuple[str, ...] = ()
    """Test sets for the network; the first by default."""
    images: int = 2
    """Images of each test set; also sets of synthetic features."""
    sizes: tuple[int, ...] = (16, 24, 32, 48)
    """Sides of the feature maps, in LR pixels; every m is measured at the largest."""
    m: tuple[int, ...] = (2, 4, 8, 16, 32, 64, 128, 256, 512)
    """Random features; 128 is always among them."""
    k: tuple[float, ...] = (1.0, 2.0, 4.0, 6.0, 8.0, 10.0)
    """Amplification factors; 6 is always among them."""
    rounds: int = 8
    """Largest number of NLSA's hash rounds."""
    chunk_size: int = 144
    """NLSA's chunk size; smaller on maps of fewer than 16 chunks."""
    top: int = 16
    """Largest weights of each query whose recall is measured."""
    draws: int = 8
    """Redraws of F, and of NLSA's rotations."""
    queries: int = 64
    """Positions of each map that serve as queries; time and memory are O(draws · queries · N)."""
    seed: int = 0
    """Seed of all draws."""
    threads: int | None = None
    """CPU threads; all cores by default."""
    results: Path = Path("results")
    """Folder for the record, tables/ and figures/."""
    from_records: bool = False
    """Measure nothing; write CSV and figures of every approximation record again."""


def make_sweep(options: Options, eps: float) -> Sweep:
    """The sweep of the options, with the reference m and k in it.

    Raises:
        UserError: a value out of range.
    """
    for name, least in {
        "images": 1,
        "rounds": 1,
        "chunk_size": 1,
        "top": 1,
        "draws": 2,
        "queries": 2,
    }.items():
        if getattr(options, name) < least:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} must be at least {least}, got {getattr(options, name)}")
    if bad := [m for m in options.m if m < 1]:
        raise UserError(f"--m must be at least 1, got {bad[0]}")
    if bad_k := [k for k in options.k if not 0 < k <= MAX_K]:
        raise UserError(f"--k must be above 0 and at most {MAX_K:g}, got {bad_k[0]}")
    if not options.sizes or min(options.sizes) < 2:
        raise UserError(f"--sizes needs sides of at least 2 pixels, got {options.sizes}")
    return Sweep(
        m=tuple(sorted({*options.m, REFERENCE_M})),
        k=tuple(sorted({*options.k, REFERENCE_K})),
        eps=eps,
        **{
            name: getattr(options, name)
            for name in ("rounds", "draws", "queries", "top", "chunk_size", "seed")
        },
    )


def run(options: Options, command: str) -> dict[str, Any]:
    """Measure what the options ask for and save the record, which is returned.

    Raises:
        UserError: nothing to measure, a value out of range, a network without ENLA or NLSA
            modules, no such weights or images.
    """
    if not (options.weights or options.synthetic):
        raise UserError("nothing to measure: give --weights RUN-OR-FILE, --synthetic, or both")
    make_sweep(options, 0.0)  # before any work
    sides = sorted(set(options.sizes))
    features: dict[int, list[Features]] = {side: [] for side in sides}
    trained, network, enla = None, None, True
    images: list[TestImage] = []
    eps = 1e-4
    if options.weights:
        trained = load_weights(find_weights(options.weights, options.results))
        enla = _has(trained, EfficientNonLocalAttention)
        if not enla and not _has(trained, NonLocalSparseAttention):
            raise UserError(
                f"{trained.name} holds {trained.label}, which has no random features and no "
                "buckets to measure: give a network trained with --attn enlca, enla or nlsa"
            )
        if not enla and options.synthetic:
            raise UserError("--synthetic goes with a network of ENLA modules, or without one")
        eps = trained.architecture.variant.resolved.get("eps", eps)
        source = find_data(options.data)
        chosen = options.test_sets or tuple(source.test_sets[:1])
        if not chosen:
            raise UserError(f"{source.name} has no test sets: put images into <Set>/HR/")
        scale = trained.architecture.scale
        for side in sides:
            images = [
                image
                for name in chosen
                for image in cropped(source.test_set(name, scale), options.images, side)
            ]
            for image in images:
                features[side] += network_features(trained.network, image)
        network = {
            "name": trained.name,
            "variant": trained.architecture.variant.to_dict(),
            "scale": scale,
            "data": source.name,
            "test_sets": list(chosen),
            "images": len(images),
        }
    if options.synthetic:
        for side in sides:
            for index in range(options.images):
                features[side] += synthetic_features(side, options.seed + index)
    sweep = make_sweep(options, eps)
    steps = sum(map(len, features.values())) * (1 + len(sweep.k) * enla)
    steps += (len(sweep.m) * sweep.draws + 3) * (trained is not None and enla)
    with progress_bar("steps", transient=True) as progress:
        task = progress.add_task("approximation", total=steps)
        advance = partial(progress.advance, task)
        rows = measure(features, sweep, enla=enla, on_step=advance)
        rows["network"] = (
            measure_network(trained.network, images, sweep, advance) if trained and enla else []
        )
    settings = {
        "network": network,
        "synthetic": options.images if options.synthetic else None,
        "sides": sides,
        **asdict(sweep),
    }
    described = machine.describe(torch.device("cpu"))
    content = {"command": command, "machine": described, "settings": settings, **rows}
    # A run's id ends in its own hash, which this record's id need not repeat.
    label = slug(re.sub(r"-[0-9a-f]{12}$", "", trained.name)) if trained else "synthetic"
    record = {"kind": "approximation", "id": record_id(label, content), **content}
    save_record(options.results, record)
    return next(
        r for r in load_records(options.results, "approximation") if r["id"] == record["id"]
    )


def _has(trained: TrainedNetwork, kind: type) -> bool:
    return any(isinstance(module, kind) for module in trained.network.attention_modules)


@command_line
def main() -> None:
    """Entry point of ``python -m harness.approximation``."""
    with usage_errors():
        options = tyro.cli(
            Options, prog="python -m harness.approximation", description=inspect.getdoc(Options)
        )
    machine.use_threads(options.threads)
    if options.from_records:
        records = load_records(options.results, "approximation")
        if not records:
            raise UserError(
                f"no approximation records under {options.results / 'records'}; measure first, "
                "e.g. python -m harness.approximation --synthetic"
            )
    else:
        records = [run(options, describe_command("harness.approximation", sys.argv[1:]))]
    for record in records:
        for path in write_report(record, options.results):
            print(path)
        for line in statements(record):
            print(line)


if __name__ == "__main__":
    main()
