"""Quality of trained networks under newly drawn projections and rotations, and with another m.

Command line: ``python -m harness.redraws --runs RUN … --draws 8 --m 2 16 256``. Nothing is trained:
the networks' weights stay as they are. ENLA's and ENLCA's F is drawn anew, with the m of the
training and with every other m that is asked for; NLSA's rotations come from other seeds.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import nn

from attention_zoo.enla import EfficientNonLocalAttention, orthogonal_gaussian
from attention_zoo.nlsa import NonLocalSparseAttention

from . import machine
from .cells import fixed, variant_columns
from .data import TestSet, find_data
from .errors import UserError, command_line, usage_errors
from .evaluate import evaluate
from .options import describe_command
from .records import record_id, record_path, save_record
from .render import Table
from .settings import Record, by_age, describe_machine, origin_note, variant_key
from .signals import resumable
from .weights import TrainedNetwork, find_weights, load_weights


@contextlib.contextmanager
def redrawn(network: nn.Module, draw: int, m: int | None = None) -> Iterator[None]:
    """Within the block the network's attention has other random draws.

    Args:
        network: with ENLA, ENLCA or NLSA modules; others are left alone.
        draw: seed of the draws; each module of ENLA has its own, as in training.
        m: random features of ENLA; by default each module's own.
    """
    generator = torch.Generator().manual_seed(draw)
    enla = [x for x in network.modules() if isinstance(x, EfficientNonLocalAttention)]
    nlsa = [x for x in network.modules() if isinstance(x, NonLocalSparseAttention)]
    projections = [module.projection for module in enla]
    seeds = [module.evaluation_seed for module in nlsa]
    try:
        for module in enla:
            drawn = orthogonal_gaussian(m or module.m, module.embedding, generator)
            module.projection = drawn.to(module.projection)
        for hashing in nlsa:
            hashing.evaluation_seed = draw
        yield
    finally:
        for module, projection in zip(enla, projections, strict=True):
            module.projection = projection
        for hashing, seed in zip(nlsa, seeds, strict=True):
            hashing.evaluation_seed = seed


def measure(
    trained: TrainedNetwork,
    test_sets: Sequence[TestSet],
    *,
    draws: int,
    m: Sequence[int] = (),
    tile: int | None = None,
) -> list[dict[str, Any]]:
    """Quality as trained (draw 0) and under draws 1, 2, …, for each m and test set.

    Returns:
        Rows ``{"test_set", "m", "draw", "psnr", "ssim", "images"}``: means over the images in dB
        and 1; m is None for NLSA.

    Raises:
        UserError: the network draws nothing, an m for one without ENLA, or an m below 1.
    """
    network, scale = trained.network, trained.architecture.scale
    own = next((x.m for x in network.modules() if isinstance(x, EfficientNonLocalAttention)), None)
    if own is None and not any(isinstance(x, NonLocalSparseAttention) for x in network.modules()):
        raise UserError(f"{trained.name} ({trained.label}) draws nothing at random")
    if own is None and m:
        raise UserError(f"--m is of ENLA and ENLCA; {trained.name} is {trained.label}")
    if min(m, default=1) < 1:
        raise UserError(f"--m must be at least 1, got {min(m)}")
    rows = []
    for features in dict.fromkeys((own, *m)):
        for draw in range(0 if features == own else 1, draws + 1):
            what = f"{trained.label}, draw {draw}" + (f", m = {features}" if features else "")
            for images in test_sets:
                with redrawn(network, draw, features) if draw else contextlib.nullcontext():
                    found = evaluate(
                        network, images, len(images), scale, f"{what} on {images.name}", tile
                    )
                rows.append(
                    {"test_set": images.name, "m": features, "draw": draw}
                    | {key: found[key] for key in ("psnr", "ssim")}
                    | {"images": len(images)}
                )
    return rows


def redraw_table(records: Sequence[Record]) -> Table:
    """What redrawing changes: a row a network, test set and m."""
    rows, data = [], []
    for record in by_age(records):
        variant = record["variant"]
        for (test_set, m), group in groupby(
            sorted(record["rows"], key=lambda r: (r["test_set"], r["m"] or 0, r["draw"])),
            key=lambda r: (r["test_set"], r["m"]),
        ):
            found = [row["psnr"] for row in group if row["draw"]]
            trained = next(
                r["psnr"] for r in record["rows"] if (r["test_set"], r["draw"]) == (test_set, 0)
            )
            mean = statistics.fmean(found)
            spread = statistics.stdev(found) if len(found) > 1 else None
            low, high = min(found) - trained, max(found) - trained
            rows.append(
                [
                    variant["label"],
                    record["settings"]["network"],
                    test_set,
                    "" if m is None else str(m),
                    fixed(trained, 3),
                    fixed(mean - trained, 4, "+"),
                    fixed(spread, 4),
                    f"{low:+.4f} … {high:+.4f}",
                    str(len(found)),
                ]
            )
            data.append(
                variant_columns(variant["label"], variant_key(variant))
                | {
                    "run": record["settings"]["network"],
                    "test_set": test_set,
                    "m": m,
                    "psnr_db_trained_draw": trained,
                    "psnr_db_redrawn_mean": mean,
                    "psnr_db_redrawn_std": spread,
                    "psnr_db_redrawn_min": min(found),
                    "psnr_db_redrawn_max": max(found),
                    "draws": len(found),
                    "tile": record["settings"]["tile"],
                    "machine": describe_machine(record),
                }
            )
    return Table(
        name="redraws",
        caption="Quality of trained networks under other random draws, without further training",
        notes=[
            "Draws: ENLA's and ENLCA's projections F, with the m of the training or another one; "
            "the rotations of NLSA's hashing. Differences are to the draw that the run's own "
            "quality was measured with; the spread is the standard deviation over redraws.",
            origin_note(records, "Measured"),
        ],
        headers=[
            ("", "Network"),
            ("", "run"),
            ("", "test set"),
            ("", "m"),
            ("PSNR (dB)", "as trained"),
            ("Redrawn, PSNR (dB)", "mean difference"),
            ("Redrawn, PSNR (dB)", "spread"),
            ("Redrawn, PSNR (dB)", "range of differences"),
            ("", "draws"),
        ],
        rows=rows,
        data=data,
    )


@dataclass(kw_only=True)
class Options:
    """Evaluate trained networks under newly drawn projections and rotations, and with another m.

    Examples:
      python -m harness.redraws --runs enlca-m128-small nlsa-r4-small --m 2 16 256 --data DIR
    """

    runs: tuple[str, ...]
    """Run ids (or unambiguous beginnings), run folders or weight files."""
    draws: int = 8
    """Redraws of each network."""
    m: tuple[int, ...] = ()
    """Further numbers of random features to evaluate networks of ENLA and ENLCA with."""
    data: Path | None = None
    """Folder of images (see README); else SR_DATA, else images that ship with scikit-image."""
    test_sets: tuple[str, ...] = ()
    """Test sets to evaluate on; all by default."""
    tile: int | None = None
    """Evaluate in tiles of this many LR pixels; whole images by default."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    threads: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """CPU threads; all cores by default."""
    results: Path = Path("results")
    """Folder of the runs, and for the records."""


@command_line
@resumable("harness.redraws")
def main() -> None:
    """Entry point of ``python -m harness.redraws``."""
    with usage_errors():
        options = tyro.cli(
            Options, prog="python -m harness.redraws", description=inspect.getdoc(Options)
        )
    if not options.runs:
        raise UserError("--runs needs at least one run")
    if options.draws < 1:
        raise UserError(f"--draws must be at least 1, got {options.draws}")
    if options.tile is not None and options.tile < 16:
        raise UserError("--tile must be at least 16 LR pixels")
    device = machine.pick_device(options.device)
    machine.use_threads(options.threads)
    source = find_data(options.data)
    names = list(dict.fromkeys(options.test_sets)) or source.test_sets
    for path in [find_weights(name, options.results) for name in dict.fromkeys(options.runs)]:
        trained = load_weights(path)
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
        if (finished := record_path(options.results, "redraw", identifier)).exists():
            print(f"{trained.name}: measured already, see {finished}")
            continue
        trained.network.to(device)
        with machine.use_tf32(False):
            rows = measure(trained, test_sets, draws=options.draws, m=options.m, tile=options.tile)
        saved = save_record(
            options.results,
            {
                "kind": "redraw",
                "id": identifier,
                "command": describe_command("harness.redraws", sys.argv[1:]),
                "machine": machine.describe(device),
                "variant": trained.architecture.variant.to_dict(),
                "settings": settings,
                "rows": rows,
            },
        )
        print(f"{trained.name}: {saved}")


if __name__ == "__main__":
    main()
