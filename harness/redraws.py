"""Quality of trained networks under other random projections and rotations, and with another m.

Command line: ``python -m harness.redraws --runs RUN … --draws 8 --m 2 16 256``. Nothing is trained:
the networks' weights do not change. ENLA's and ENLCA's F is redrawn, with the m of the training and
every other m given; NLSA's rotations come from other seeds.
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from .base import machine
from .base.commands import command_line, usage_errors
from .base.errors import UserError
from .base.folders import OWN
from .base.signals import resumable


@dataclass(kw_only=True)
class Options:
    """Evaluate trained networks under other random projections and rotations, and with another m.

    Examples:
      python -m harness.redraws --runs enlca-m128-small nlsa-r4-small --m 2 16 256 --data DIR
    """

    runs: tuple[str, ...]
    """Run ids (or unambiguous prefixes), run folders or weight files."""
    draws: int = 8
    """Redraws of each network."""
    m: tuple[int, ...] = ()
    """Further numbers of random features, for networks of ENLA and ENLCA."""
    data: Path | None = None
    """Folder of images (docs/data.md); else SR_DATA, else images that ship with scikit-image."""
    test_sets: tuple[str, ...] = ()
    """Test sets to evaluate on; all by default."""
    tile: int | None = None
    """Evaluate in tiles of this many LR pixels; whole images by default."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    threads: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """CPU threads; all cores by default."""
    results: Path = OWN
    """Folder of the runs, and for the records."""


@command_line
@resumable("harness.redraws")
def main() -> None:
    """Entry point of ``python -m harness.redraws``."""
    with usage_errors(Options):
        options = tyro.cli(
            Options, prog="python -m harness.redraws", description=inspect.getdoc(Options)
        )
    if not options.runs:
        raise UserError("--runs needs at least one run")
    if options.draws < 1:
        raise UserError(f"--draws must be at least 1, got {options.draws}")
    if options.tile is not None and options.tile < 16:
        raise UserError("--tile must be at least 16 LR pixels")
    import hashlib

    from .config.options import describe_command
    from .images.sources import find_data
    from .measuring.redraws import measure
    from .network.weights import find_weights
    from .records.shapes import Redraw, untyped
    from .records.store import load_record, new_record, record_id, record_path, save_record
    from .runs.stored import load_sr

    device = machine.pick_device(options.device)
    machine.use_threads(options.threads)
    source = find_data(options.data)
    names = source.choose_tests(options.test_sets)
    for path in [find_weights(name, options.results) for name in dict.fromkeys(options.runs)]:
        trained = load_sr(path, options.results, "harness.redraws")
        test_sets = [source.test_set(name, trained.architecture.scale) for name in names]
        settings = {
            "network": trained.name,
            "weights_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "draws": options.draws,
            "m": list(options.m),
            "test_sets": names,
            "data": source.name,
            "tile": options.tile,
            "device": device.type,
        }
        identifier = record_id("redraw", settings)
        # Beside the settings, so that the ids of older records, which lack it, stay.
        images = {one.name: one.sha256() for one in test_sets}
        if (finished := record_path(options.results, Redraw, identifier)).exists():
            known = load_record(options.results, Redraw, identifier).images
            if known in ({}, images):
                print(f"{trained.name}: already measured, see {finished}")
                continue
            print(f"{trained.name}: the test images have changed, measuring again")
        trained.network.to(device)
        with machine.use_tf32(False):
            rows = measure(trained, test_sets, draws=options.draws, m=options.m, tile=options.tile)
        content = {
            "command": describe_command("harness.redraws", sys.argv[1:]),
            "machine": machine.describe(device),
            "variant": trained.architecture.variant.describe(),
            "settings": settings,
            "images": images,
            "rows": [untyped(row) for row in rows],
        }
        record = new_record(Redraw, identifier, content)
        saved = save_record(options.results, record, replace=True)
        print(f"{trained.name}: {saved}")


if __name__ == "__main__":
    main()
