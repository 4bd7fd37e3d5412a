"""Visual comparison: the crops of test images on which networks differ most.

Figure 5 of the ENLCA paper. A rule chooses the crops: in every image it is the window in which the
mean squared errors of the networks lie farthest apart, and images with the largest distance come
first (:func:`harness.pictures.crops.find_crop`). Beside the HR image stand the crops of HR, of
bicubic and of each network, with their PSNR and SSIM.

Command line: ``python -m harness.visual --runs RUN … --test-set Urban100 --data DIR``.
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from .base.commands import command_line, usage_errors
from .base.errors import UserError
from .base.files import claim_record, output_stem, write_json
from .base.folders import OWN
from .base.names import slug

if TYPE_CHECKING:
    from .images.sources import TestSet


@dataclass(frozen=True, kw_only=True)
class Options:
    """Draw the crops of test images on which the runs differ most, with PSNR and SSIM.

    Examples:
      python -m harness.visual --runs baseline-small nla-small --test-set Urban100 --data DIR
      python -m harness.visual --runs baseline-quick enlca-m16-quick --count 3
    """

    runs: tuple[str, ...]
    """Run ids (or unambiguous prefixes), run folders or weight files, all of one scale."""
    image: tuple[Path, ...] = ()
    """HR images; by default those of the test set."""
    test_set: str | None = None
    """A test set of the folder; its first by default."""
    data: Path | None = None
    """Folder of images (docs/data.md); else SR_DATA, else images that ship with scikit-image."""
    crop: int = 64
    """Side of a crop in HR pixels."""
    count: int = 1
    """Number of images to show, those with the largest differences first."""
    tile: int | None = None
    """Side of the tiles in LR pixels that images are cut into; whole images by default."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    threads: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """CPU threads; all cores by default."""
    results: Path = OWN
    """Folder that holds runs/."""
    output: Path | None = None
    """Path of the files without suffix; by default <results>/figures/visual-<test set or image>."""


def _check(options: Options) -> None:
    from .images.metrics import SSIM_WINDOW

    if options.crop < SSIM_WINDOW:
        raise UserError(f"--crop must be at least {SSIM_WINDOW} (SSIM's window)")
    if options.count < 1:
        raise UserError(f"--count must be at least 1, got {options.count}")
    if options.tile is not None and options.tile < 16:
        raise UserError("--tile must be at least 16 LR pixels")
    if options.image and (options.test_set is not None or options.data is not None):
        raise UserError("give either --image, or --test-set and --data")


def _images(options: Options, scale: int) -> TestSet:
    from .images.files import ImageSet
    from .images.sources import TestSet, find_data

    if options.image:
        name = options.image[0].stem if len(options.image) == 1 else "images"
        return TestSet(ImageSet(name, tuple(dict.fromkeys(options.image))), scale)
    source = find_data(options.data)
    first = source.choose_tests([options.test_set] if options.test_set else [])[0]
    return source.test_set(first, scale)


@command_line
def main() -> None:
    """Entry point of ``python -m harness.visual``."""
    with usage_errors(Options):
        options = tyro.cli(
            Options, prog="python -m harness.visual", description=inspect.getdoc(Options)
        )
    _check(options)
    output = options.output and output_stem(options.output)
    from .base import machine
    from .config.options import describe_command
    from .pictures.crops import RULE, draw, most_different
    from .reporting.figures.style import save_figure
    from .runs.stored import load_networks

    device = machine.pick_device(options.device)
    machine.use_threads(options.threads)
    runs = load_networks(options.runs, options.results, "harness.visual")
    images = _images(options, runs[0].architecture.scale)
    stem = output or options.results / "figures" / f"visual-{slug(images.name)}"
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
    with machine.use_tf32(False):
        chosen = most_different(images, runs, options.crop, options.count, options.tile)
    paths = save_figure(draw(chosen), stem)
    command = describe_command("harness.visual", sys.argv[1:])
    found = {"crops": [comparison.numbers() for comparison in chosen]}
    write_json(record, {"command": command} | content | found)
    print(*paths, record, sep="\n")


if __name__ == "__main__":
    main()
