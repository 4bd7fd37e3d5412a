"""Correlation maps: the positions to which a trained module attends from one position of an image.

Figures 1, 7 and 8 of the ENLCA paper. For each run, the weights of the marked position over all
positions are drawn beside the image. ENLA and ENLCA have two maps: the softmax of inner products,
which the paper draws (*exact*), and the weights that the network uses (*random features*).

Command line: ``python -m harness.maps --image FILE --at ROW,COL --runs RUN …``.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from .base.commands import command_line, usage_errors
from .base.errors import UserError
from .base.files import claim_record, output_stem, write_json
from .base.folders import OWN


@dataclass(frozen=True, kw_only=True)
class Options:
    """Draw the attention weights of one position of an image, for each run.

    Examples:
      python -m harness.maps --image photo.png --hr --at 240,256 --runs nla-small enlca-m16-small
      python -m harness.maps --image photo.png --hr --at 60,60 --runs nla-denoise nlsa-r4-denoise
    """

    image: Path
    """An LR image or a noisy one (with --hr, an HR image)."""
    at: str
    """ROW,COL of the position in the image, from 0."""
    runs: tuple[str, ...]
    """Run ids (or unambiguous prefixes), run folders or weight files, all of one task and scale."""
    hr: bool = False
    """The image is an HR image, from which the networks' task makes their input: bicubic's LR
    image, or noise."""
    module: int | None = None
    """Number of the attention module, from 1; the last by default."""
    results: Path = OWN
    """Folder that holds runs/."""
    output: Path | None = None
    """Path of the files without suffix; by default <results>/figures/maps-<image>-<row>-<col>."""


def parse_position(text: str) -> tuple[int, int]:
    """(row, column) of ``ROW,COL``.

    Raises:
        UserError: the text is not of this form.
    """
    match = re.fullmatch(r"(\d+),(\d+)", text)
    if not match:
        raise UserError(f"position {text!r} is not ROW,COL, e.g. 40,60")
    return int(match[1]), int(match[2])


@command_line
def main() -> None:
    """Entry point of ``python -m harness.maps``."""
    with usage_errors(Options):
        options = tyro.cli(
            Options, prog="python -m harness.maps", description=inspect.getdoc(Options)
        )
    marked = parse_position(options.at)
    output = options.output and output_stem(options.output)
    from .config.options import describe_command
    from .images.degradation import BICUBIC
    from .images.saved import read_upright
    from .pictures.maps import correlation_maps, draw, module_number, network_input
    from .reporting.figures.style import save_figure
    from .runs.stored import load_of_images

    image = read_upright(options.image)
    runs, task = load_of_images(options.runs, options.results, "harness.maps")
    module, count = module_number(runs, options.module)
    name, scale = options.image.name, runs[0].architecture.scale
    degrade = task.build_on(None, scale).degrade if task else BICUBIC
    lr, position = network_input(image, marked, name, scale, degrade if options.hr else None)
    stem = output or (
        options.results / "figures" / f"maps-{options.image.stem}-{marked[0]}-{marked[1]}"
    )
    record = stem.with_name(f"{stem.name}.json")
    content = {
        "image": name,
        "lr_sha256": hashlib.sha256(lr.tobytes()).hexdigest(),
        "lr_size": list(lr.shape[:2]),
        "lr_position": list(position),
        "scale": scale,
        **({"task": task.label} if task else {}),
        "module": module,
        "runs": [run.name for run in runs],
    }
    claim_record(record, content)
    maps = correlation_maps(runs, lr, position, module)
    paths = save_figure(draw(lr, position, maps, f"attention module {module} of {count}"), stem)
    command = describe_command("harness.maps", sys.argv[1:])
    write_json(record, {"command": command} | content | {"panels": [m.statistics() for m in maps]})
    print(*paths, record, sep="\n")


if __name__ == "__main__":
    main()
