"""Write an official network, or a run's weights in half precision, as safetensors.

Command line: ``python -m harness.convert FILE OUTPUT.safetensors``, or with ``--float16``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from .base.commands import command_line, usage_errors
from .base.errors import UserError
from .base.folders import OWN

if TYPE_CHECKING:
    from .network.weights import TrainedNetwork


@dataclass
class Options:
    """Write an official EDSR, NLSN or ENLCN file as safetensors that --weights opens, or any
    weights in half precision.

    Examples:
      python -m harness.convert ENLCAx4.pt enlca.safetensors
      python -m harness.convert --float16 enlca-m16-small small.safetensors
    """

    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """The authors' file, pickled or safetensors; with --float16 also a run's id or weight file."""
    output: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT.safetensors")]
    """File to write; it must not exist."""
    block_res_scale: float | None = None
    """The released --res_scale, of blocks and attention; by default as published."""
    float16: bool = False
    """Write numbers of 16 bits: half the size, each with a relative error up to 2^-11."""
    results: Path = OWN
    """Folder of the runs."""


@command_line
def main() -> None:
    """Entry point of ``python -m harness.convert``."""
    with usage_errors(Options):
        options = tyro.cli(Options, prog="python -m harness.convert")
    if options.output.exists():
        raise UserError(f"{options.output} exists already: choose another name or delete it")
    from .network.weights import save_weights

    trained = _load(options)
    save_weights(
        options.output,
        trained.network,
        trained.architecture,
        trained.name,
        half=options.float16,
    )
    print(f"{trained.architecture.description}: {options.output}")


def _load(options: Options) -> TrainedNetwork:
    """The network of the authors' file, or of a run.

    Raises:
        UserError: it cannot be read, or is a run's and would stay as it is.
    """
    from .network.official import load_official
    from .network.weights import find_weights, is_ours, load_weights

    path = options.file
    if not path.is_file() and options.float16:
        path = find_weights(str(options.file), options.results)
    if not is_ours(path):
        return load_official(path, block_res_scale=options.block_res_scale)
    if not options.float16:
        raise UserError(f"{path} needs no conversion; --float16 writes it in half precision")
    if options.block_res_scale is not None:
        raise UserError(f"--block-res-scale is read from {path}: leave it out")
    return load_weights(path)


if __name__ == "__main__":
    main()
