"""Correlation maps: to which positions a trained module attends from one position of an image.

Figures 1, 7 and 8 of the ENLCA paper. For each run, the weights of the marked position over all
others are drawn beside the image; for ENLA and ENLCA twice: by softmax and inner product, as the
paper draws them (*exact*), and as the network really uses them (*random features*).

Command line: ``python -m harness.maps --image FILE --at ROW,COL --runs RUN …``.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from numpy.typing import NDArray

from .base.errors import UserError, command_line, usage_errors
from .base.files import claim_record, write_json
from .config.options import describe_command
from .images.bicubic import crop_to_multiple, downscale
from .images.files import read_image
from .network.weights import find_weights, load_weights
from .pictures.maps import correlation_maps, draw, module_number
from .reporting.figures.style import save_figure


@dataclass(frozen=True, kw_only=True)
class Options:
    """Draw the attention weights of one position of an image, for each run.

    Examples:
      python -m harness.maps --image photo.png --hr --at 240,256 --runs nla-small enlca-m16-small
    """

    image: Path
    """An LR image (or an HR image with --hr)."""
    at: str
    """ROW,COL of the position in the image, from 0."""
    runs: tuple[str, ...]
    """Run ids (or unambiguous beginnings), run folders or weight files, of one scale."""
    hr: bool = False
    """The image is an HR image: its LR image is made by bicubic at the networks' scale."""
    module: int | None = None
    """Which of the attention modules, from 1; the last by default."""
    results: Path = Path("results")
    """Folder that holds runs/."""
    output: Path | None = None
    """Files without suffix; by default <results>/figures/maps-<image>-<row>-<col>."""


def parse_position(text: str) -> tuple[int, int]:
    """(row, column) of ``ROW,COL``.

    Raises:
        UserError: it is none.
    """
    match = re.fullmatch(r"(\d+),(\d+)", text)
    if not match:
        raise UserError(f"position {text!r} is not ROW,COL, e.g. 40,60")
    return int(match[1]), int(match[2])


def low_resolution(
    image: NDArray[np.uint8], position: tuple[int, int], name: str, scale: int, hr: bool
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """The LR image and the position in it.

    Args:
        image: uint8 ``[H, W, 3]``.
        position: row and column in ``image``.
        name: the image's, for the error.
        scale: of the networks.
        hr: whether ``image`` is to be reduced, cropped to a multiple of the scale.

    Raises:
        UserError: the position lies outside the (cropped) image.
    """
    if hr:
        image = crop_to_multiple(image, scale)
    if not (position[0] < image.shape[0] and position[1] < image.shape[1]):
        cropped = f", cropped to a multiple of {scale}" if hr else ""
        raise UserError(
            f"position {position[0]},{position[1]} lies outside {name} "
            f"({image.shape[0]} rows, {image.shape[1]} columns{cropped})"
        )
    if not hr:
        return image, position
    return downscale(image, scale), (position[0] // scale, position[1] // scale)


@command_line
def main() -> None:
    """Entry point of ``python -m harness.maps``."""
    with usage_errors():
        options = tyro.cli(
            Options, prog="python -m harness.maps", description=inspect.getdoc(Options)
        )
    marked = parse_position(options.at)
    if not options.runs:
        raise UserError("--runs needs at least one run")
    image = read_image(options.image)
    runs = [
        load_weights(find_weights(name, options.results)) for name in dict.fromkeys(options.runs)
    ]
    scales = {run.name: run.architecture.scale for run in runs}
    if len({*scales.values()}) > 1:
        said = ", ".join(f"{name} x{scale}" for name, scale in scales.items())
        raise UserError(f"the runs are of different scales ({said}): give runs of one")
    module, count = module_number(runs, options.module)
    name, scale = options.image.name, runs[0].architecture.scale
    lr, position = low_resolution(image, marked, name, scale, options.hr)
    stem = options.output or (
        options.results / "figures" / f"maps-{options.image.stem}-{marked[0]}-{marked[1]}"
    )
    record = stem.with_name(f"{stem.name}.json")
    content = {
        "image": name,
        "lr_sha256": hashlib.sha256(lr.tobytes()).hexdigest(),
        "lr_size": list(lr.shape[:2]),
        "lr_position": list(position),
        "scale": scale,
        "module": module,
        "runs": [run.name for run in runs],
    }
    claim_record(record, content)
    maps = correlation_maps(runs, lr, position, module)
    under = f"attention module {module} of {count}"
    paths = save_figure(draw(lr, position, maps, under), stem)
    command = describe_command("harness.maps", sys.argv[1:])
    write_json(record, {"command": command} | content | {"panels": [m.statistics() for m in maps]})
    print(*paths, record, sep="\n")


if __name__ == "__main__":
    main()
