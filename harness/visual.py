"""Visual comparison: the crops of test images on which networks differ most.

Figure 5 of the ENLCA paper. No crop is chosen by hand: in every image it is the window in which
the mean squared errors of the networks lie farthest apart, and of the images those come first
whose windows do so most (:func:`find_crop`). Beside the HR image stand the crop of HR, of bicubic
and of each network, with PSNR and SSIM of the crop.

Command line: ``python -m harness.visual --runs RUN … --test-set Urban100 --data DIR``.
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from .base import machine
from .base.errors import UserError, command_line, usage_errors
from .base.files import claim_record, write_json
from .base.names import slug
from .config.labels import distinct_labels
from .config.options import describe_command
from .images.files import ImageSet
from .images.metrics import SSIM_WINDOW
from .images.sources import TestSet, find_data
from .network.weights import TrainedNetwork, find_weights, load_weights
from .pictures.crops import RULE, Comparison, compare, draw
from .reporting.figures.style import save_figure


@dataclass(frozen=True, kw_only=True)
class Options:
    """Draw the crops of test images on which the runs differ most, with PSNR and SSIM.

    Examples:
      python -m harness.visual --runs baseline-small nla-small --test-set Urban100 --data DIR
      python -m harness.visual --runs baseline-quick enlca-m16-quick --count 3
    """

    runs: tuple[str, ...]
    """Run ids (or unambiguous beginnings), run folders or weight files, of one scale."""
    image: tuple[Path, ...] = ()
    """HR images; by default those of the test set."""
    test_set: str | None = None
    """A test set of the folder; its first by default."""
    data: Path | None = None
    """Folder of images (see README); else SR_DATA, else images that ship with scikit-image."""
    crop: int = 64
    """Side of a crop in HR pixels."""
    count: int = 1
    """How many images to show, those with the largest differences first."""
    tile: int | None = None
    """Cut images into tiles of this many LR pixels; whole images by default."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    threads: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """CPU threads; all cores by default."""
    results: Path = Path("results")
    """Folder that holds runs/."""
    output: Path | None = None
    """Files without suffix; by default <results>/figures/visual-<test set or image>."""


def _load(options: Options) -> list[TrainedNetwork]:
    if not options.runs:
        raise UserError("--runs needs at least one run")
    runs = [
        load_weights(find_weights(name, options.results)) for name in dict.fromkeys(options.runs)
    ]
    scales = {run.name: run.architecture.scale for run in runs}
    if len({*scales.values()}) > 1:
        said = ", ".join(f"{name} x{scale}" for name, scale in scales.items())
        raise UserError(f"the runs are of different scales ({said}): give runs of one")
    return runs


def _images(options: Options, scale: int) -> TestSet:
    if options.image:
        if options.test_set is not None or options.data is not None:
            raise UserError("give either --image, or --test-set and --data")
        name = options.image[0].stem if len(options.image) == 1 else "images"
        return TestSet(ImageSet(name, options.image), scale)
    source = find_data(options.data)
    if not source.test_sets:
        raise UserError(f"{source.name} has no test sets: put images into <Set>/HR/")
    return source.test_set(options.test_set or source.test_sets[0], scale)


@command_line
def main() -> None:
    """Entry point of ``python -m harness.visual``."""
    with usage_errors():
        options = tyro.cli(
            Options, prog="python -m harness.visual", description=inspect.getdoc(Options)
        )
    if options.crop < SSIM_WINDOW:
        raise UserError(f"--crop must be at least {SSIM_WINDOW} (SSIM's window)")
    if options.count < 1:
        raise UserError(f"--count must be at least 1, got {options.count}")
    if options.tile is not None and options.tile < 16:
        raise UserError("--tile must be at least 16 LR pixels")
    device = machine.pick_device(options.device)
    machine.use_threads(options.threads)
    runs = _load(options)
    images = _images(options, runs[0].architecture.scale)
    stem = options.output or options.results / "figures" / f"visual-{slug(images.name)}"
    record = stem.with_name(f"{stem.name}.json")
    content = {
        "rule": RULE,
        "set": images.name,
        "images": len(images),
        "scale": images.scale,
        "crop": options.crop,
        "count": options.count,
        "tile": options.tile,
        "runs": [run.name for run in runs],
    }
    claim_record(record, content)
    for run in runs:
        run.network.to(device)
    labels = distinct_labels([run.architecture.variant.to_dict() for run in runs])
    chosen: list[Comparison] = []
    with machine.use_tf32(False), torch.inference_mode():
        for image in images:
            chosen.append(compare(image, runs, labels, options.crop, options.tile))
            # Sorting is stable: of equals the earlier image stays first.
            chosen = sorted(chosen, key=lambda c: -c.spread)[: options.count]
    paths = save_figure(draw(chosen), stem)
    command = describe_command("harness.visual", sys.argv[1:])
    found = {"crops": [comparison.numbers() for comparison in chosen]}
    write_json(record, {"command": command} | content | found)
    print(*paths, record, sep="\n")


if __name__ == "__main__":
    main()
