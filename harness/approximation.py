"""How well ENLA approximates exact attention, and how much of it NLSA's buckets catch.

``python -m harness.approximation --weights RUN`` measures features of a trained network,
``--synthetic`` synthetic ones (:func:`.measuring.features.synthetic_features`). Both write a
record, and from it a CSV, figures and a summary in words. ``--from-records`` only writes these
again. :mod:`.measuring.kernel` has the definitions.
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from .base import machine
from .base.commands import command_line, usage_errors
from .base.errors import UserError
from .base.folders import OWN
from .records.shapes import REFERENCE_K, REFERENCE_M

if TYPE_CHECKING:
    from .measuring.approximation import Sweep
    from .records.shapes import Approximation


@dataclass(frozen=True)
class Options:
    """Measure ENLA against exact attention, and NLSA's buckets; write record, CSV and figures.

    Examples:
      python -m harness.approximation --synthetic
      python -m harness.approximation --weights enlca-m128-small --data DIR
    """

    weights: str | None = None
    """A trained network with ENLA modules: run id (or its prefix) or weight file. A network with
    NLSA modules is measured for NLSA alone."""
    synthetic: bool = False
    """Also measure Gaussian and clustered features."""
    data: Path | None = None
    """Folder of images; else SR_DATA, else images that ship with scikit-image."""
    test_sets: tuple[str, ...] = ()
    """Test sets for the network; the first by default."""
    images: int = 2
    """Images of each test set; also sets of synthetic features."""
    sizes: tuple[int, ...] = (16, 24, 32, 48)
    """Sides of the feature maps, in LR pixels; every m is measured at the largest."""
    m: tuple[int, ...] = (2, 4, 8, 16, 32, 64, 128, 256, 512)
    """Random features; 128 is always added."""
    k: tuple[float, ...] = (1.0, 2.0, 4.0, 6.0, 8.0, 10.0)
    """Amplification factors; 6 is always added."""
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
    results: Path = OWN
    """Folder for the record, tables/ and figures/."""
    from_records: bool = False
    """Measure nothing; write CSV and figures of every approximation record again."""


@command_line
def main() -> None:
    """Entry point of ``python -m harness.approximation``."""
    with usage_errors(Options):
        options = tyro.cli(
            Options, prog="python -m harness.approximation", description=inspect.getdoc(Options)
        )
    from .records.shapes import Approximation
    from .records.store import load_records
    from .reporting.approximation import statements
    from .reporting.figures.approximation import write_report

    machine.use_threads(options.threads)
    if options.from_records:
        records = load_records(options.results, Approximation)
        if not records:
            raise UserError(
                f"no approximation records under {options.results / 'records'}; measure first, "
                "e.g. python -m harness.approximation --synthetic"
            )
    else:
        records = [_measure(options)]
    for record in records:
        for path in write_report(record, options.results):
            print(path)
        for line in statements(record):
            print(line)


def _measure(options: Options) -> Approximation:
    from .config.options import describe_command
    from .images.sources import find_data
    from .measuring.approximation import study
    from .network.weights import find_weights
    from .records.store import save_record
    from .runs.stored import load_sr

    if not (options.weights or options.synthetic):
        raise UserError("nothing to measure: give --weights RUN-OR-FILE, --synthetic, or both")
    sweep = _sweep(options)
    trained, data, test_sets = None, None, []
    if options.weights:
        path = find_weights(options.weights, options.results)
        trained = load_sr(path, options.results, "harness.approximation")
        source = find_data(options.data)
        data = source.name
        names = source.choose_tests(options.test_sets or source.test_sets[:1])
        test_sets = [source.test_set(name, trained.architecture.scale) for name in names]
    record = study(
        sweep,
        options.sizes,
        trained,
        test_sets,
        data=data,
        images=options.images,
        synthetic=options.synthetic,
        command=describe_command("harness.approximation", sys.argv[1:]),
    )
    save_record(options.results, record)
    return record


def _sweep(options: Options) -> Sweep:
    """The sweep of the options, with the reference m and k in it.

    Raises:
        UserError: a value out of range.
    """
    from .measuring.approximation import Sweep
    from .measuring.kernel import MAX_K

    least = {"images": 1, "rounds": 1, "chunk_size": 1, "top": 1, "draws": 2, "queries": 2}
    for name, bound in least.items():
        if (value := getattr(options, name)) < bound:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} must be at least {bound}, got {value}")
    if bad := [m for m in options.m if m < 1]:
        raise UserError(f"--m must be at least 1, got {bad[0]}")
    if bad_k := [k for k in options.k if not 0 < k <= MAX_K]:
        raise UserError(f"--k must be above 0 and at most {MAX_K:g}, got {bad_k[0]}")
    if not options.sizes or min(options.sizes) < 2:
        raise UserError(f"--sizes needs sides of at least 2 pixels, got {options.sizes}")
    return Sweep(
        m=tuple(sorted({*options.m, REFERENCE_M})),
        k=tuple(sorted({*options.k, REFERENCE_K})),
        rounds=options.rounds,
        draws=options.draws,
        queries=options.queries,
        top=options.top,
        chunk_size=options.chunk_size,
        seed=options.seed,
    )


if __name__ == "__main__":
    main()
