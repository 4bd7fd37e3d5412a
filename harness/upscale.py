"""Restore one's own images with the weights of a run.

Command line: ``python -m harness.upscale photo.jpg photo-x4.png --weights RUN``, or a folder of
images and one for the results.

Exit status: 0, all images are written; 1, some could not be read; 2, a mistake on the command line.
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from .base import machine
from .base.commands import command_line, usage_errors
from .base.errors import UserError
from .base.folders import OWN

if TYPE_CHECKING:
    from .images.files import Pixels
    from .network.weights import TrainedNetwork


@dataclass(kw_only=True)
class Options:
    """Restore images with a run's weights: upscale them, or remove noise, as the run learned.

    The last path is a PNG file, or a folder for the results.

    Examples:
      python -m harness.upscale photo.jpg photo-x4.png --weights enlca-m16-small
      python -m harness.upscale photos/ restored/ --weights runs/my-run --tile 128 --device cuda
      python -m harness.upscale photo.jpg photo-x4.png --official ENLCAx4.pt
    """

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IN... OUT")]
    """Image files or folders, and where the results go."""
    weights: str | None = None
    """A run's id (or an unambiguous prefix of one), its folder, or a weight file."""
    official: Path | None = None
    """Instead, the authors' file of EDSR, NLSN or ENLCN."""
    tile: int | None = None
    """Cut images into tiles of this many LR pixels, 0 for whole images. By default as the run was
    evaluated, and smaller tiles where memory is too small."""
    overwrite: bool = False
    """Replace results that exist."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    threads: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """CPU threads; all cores by default."""
    results: Path = OWN
    """Folder of the runs that --weights names."""


@command_line
def main() -> None:
    """Entry point of ``python -m harness.upscale``."""
    with usage_errors(Options):
        options = tyro.cli(
            Options, prog="python -m harness.upscale", description=inspect.getdoc(Options)
        )
    if len(options.paths) < 2:
        raise UserError("give images and where the results go: python -m harness.upscale IN OUT")
    if options.tile and options.tile < 16:
        raise UserError("--tile must be at least 16 LR pixels")
    if (options.official is None) == (options.weights is None):
        raise UserError("give one of --weights RUN-OR-FILE and --official FILE")
    from .images.saved import plan_files, read_upright, refuse_taken, save_png

    *inputs, output = options.paths
    plan = plan_files(inputs, output)
    if not options.overwrite:
        refuse_taken(plan.values(), "place")
    device = machine.pick_device(options.device)
    machine.use_threads(options.threads)
    trained, grey, tile = _load(options)
    from .base.progress import progress_bar
    from .images.degradation import grey as luma
    from .images.sources import TestImage
    from .measuring.quality import restore
    from .measuring.references import refuse_oracle

    network, scale = trained.network.to(device), trained.architecture.scale
    refuse_oracle(network, trained.name, "harness.upscale")
    failed: list[str] = []
    with machine.use_tf32(False), progress_bar("images", stdout=True) as progress:
        bar = progress.add_task(trained.label, total=len(plan))
        for source, target in plan.items():
            try:
                pixels = _in_grey(luma(read_upright(source))) if grey else read_upright(source)
            except UserError as error:
                failed.append(str(error))
            else:
                image = TestImage(source.name, pixels, pixels)
                restored, _ = restore(network, image, scale, tile, grey=grey)
                save_png(target, restored[..., 0] if grey else restored)
            progress.advance(bar)
    print(f"{len(plan) - len(failed)} of {len(plan)} images restored: {output}")
    for message in failed:
        print(f"left out: {message}", file=sys.stderr)
    if failed:
        raise SystemExit(1)


def _in_grey(image: Pixels) -> Pixels:
    """``[H, W]`` to three equal channels."""
    import numpy as np

    return np.repeat(image[..., None], 3, axis=-1)


def _load(options: Options) -> tuple[TrainedNetwork, bool, int | None]:
    """The network, whether it takes and gives grey images, and the tiles: None for whole images.

    Raises:
        UserError: the weights cannot be read, or are of a task that is not on image files.
    """
    from .network.official import load_official
    from .network.weights import find_weights, load_weights
    from .runs.stored import task_of, tile_of
    from .tasks.images import ImageTask
    from .tasks.registry import find_task

    if options.official is not None:
        return load_official(options.official), False, options.tile or None
    takes = "harness.upscale takes networks of super-resolution or denoising"
    path = find_weights(options.weights or "", options.results)
    trained = load_weights(path)
    learned = task_of(trained, path, options.results, takes)
    tile = options.tile if options.tile is not None else tile_of(trained, path, options.results)
    if learned is None:
        return trained, False, tile or None
    task = find_task(learned.name)
    if not issubclass(task, ImageTask):
        raise UserError(f"{trained.name} learned task {learned.label}: {takes}")
    return trained, task.grey, tile or None


if __name__ == "__main__":
    main()
