"""PSNR and SSIM of a network on whole test images.

Command line: ``python -m harness.evaluate --official FILE --data DIR``, or ``--weights RUN``.
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from .base import machine
from .base.commands import command_line, usage_errors
from .base.errors import UserError

if TYPE_CHECKING:
    from .network.weights import TrainedNetwork


@dataclass(kw_only=True)
class Options:
    """PSNR and SSIM of the authors' networks, or of ours, on whole test images.

    Examples:
      python -m harness.evaluate --official ENLCAx4.pt --data DIR --test-sets Urban100 --chop
      python -m harness.evaluate --weights enlca-m16-small --data DIR
    """

    official: Path | None = None
    """The authors' file of EDSR, NLSN or ENLCN: pickled tensors or safetensors."""
    weights: str | None = None
    """A run's id (or an unambiguous prefix of one), or a weight file of this project."""
    data: Path | None = None
    """Folder of images (docs/data.md); else SR_DATA, else images that ship with scikit-image."""
    test_sets: tuple[str, ...] = ()
    """Test sets to evaluate on; all by default."""
    tile: int | None = None
    """Cut images into tiles of this many LR pixels; whole images by default."""
    chop: bool = False
    """Cut every image into overlapping quarters, as the released NLSN and ENLCN are evaluated."""
    psnr: Literal["rounded", "released"] = "rounded"
    """rounded: on Y rounded to 8 bits, as MATLAB's rgb2ycbcr gives it. released: as the code of
    EDSR, NLSN and ENLCN prints it, on unrounded Y, which is higher, the more so for good images."""
    block_res_scale: float | None = None
    """With --official: the released --res_scale of blocks and attention, which the file does not
    hold; by default that of the published networks."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    threads: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """CPU threads; all cores by default."""
    results: Path = Path("results")
    """Folder of the runs that --weights names."""
    output: Path | None = None
    """Write the figures of every image here, as JSON."""


@command_line
def main() -> None:
    """Entry point of ``python -m harness.evaluate``."""
    with usage_errors():
        options = tyro.cli(
            Options, prog="python -m harness.evaluate", description=inspect.getdoc(Options)
        )
    if options.tile is not None and (options.chop or options.tile < 16):
        wrong = "and --chop exclude each other" if options.chop else "must be at least 16 LR pixels"
        raise UserError(f"--tile {wrong}")
    from rich.console import Console

    from .base.files import write_json
    from .config.options import describe_command
    from .images.sources import find_data
    from .measuring.quality import evaluate
    from .network.official import published_method
    from .records.shapes import untyped
    from .reporting.tables.evaluation import evaluation_table

    device = machine.pick_device(options.device)
    machine.use_threads(options.threads)
    source = find_data(options.data)
    names = list(dict.fromkeys(options.test_sets)) or source.test_sets
    if not names:
        raise UserError(f"{source.name} has no test sets: put images into <Set>/HR/")
    trained = _load(options)
    architecture = trained.architecture
    test_sets = [source.test_set(name, architecture.scale) for name in names]
    network = trained.network.to(device)
    with machine.use_tf32(False):
        results = {
            images.name: evaluate(
                network,
                images,
                len(images),
                architecture.scale,
                f"{trained.label} on {images.name}",
                options.tile,
                chop=options.chop,
                released_psnr=options.psnr == "released",
            )
            for images in test_sets
        }
    title = f"{trained.name}: {architecture.description}"
    method = published_method(architecture)
    Console().print(evaluation_table(title, results, architecture.scale, method))
    if options.output is not None:
        record = {
            "kind": "evaluation",
            "name": trained.name,
            "command": describe_command("harness.evaluate", sys.argv[1:]),
            "machine": machine.describe(device),
            "architecture": architecture.to_dict(),
            "data": source.name,
            "tile": options.tile,
            "chop": options.chop,
            "psnr": options.psnr,
            "quality": {name: untyped(result) for name, result in results.items()},
        }
        write_json(options.output, record)
        print(f"Quality of every image: {options.output}")


def _load(options: Options) -> TrainedNetwork:
    from .network.official import load_official
    from .network.weights import find_weights, load_weights

    if (options.official is None) == (options.weights is None):
        raise UserError("give one of --official FILE and --weights RUN-OR-FILE")
    if options.official is not None:
        return load_official(options.official, block_res_scale=options.block_res_scale)
    if options.block_res_scale is not None:
        raise UserError("--block-res-scale is read from the file of --weights: leave it out")
    return load_weights(find_weights(options.weights or "", options.results))


if __name__ == "__main__":
    main()
