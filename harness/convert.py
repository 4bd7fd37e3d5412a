"""Write an official network as safetensors in this project's naming.

Command line: ``python -m harness.convert FILE OUTPUT.safetensors``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from .base.commands import command_line, usage_errors
from .base.errors import UserError


@dataclass
class Options:
    """Write an official EDSR, NLSN or ENLCN file as safetensors that --weights opens."""

    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """The authors' file, pickled or safetensors."""
    output: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT.safetensors")]
    """File to write; it must not exist."""
    block_res_scale: float | None = None
    """The released --res_scale, of blocks and attention; by default as published."""


@command_line
def main() -> None:
    """Entry point of ``python -m harness.convert``."""
    with usage_errors(Options):
        options = tyro.cli(Options, prog="python -m harness.convert")
    if options.output.exists():
        raise UserError(f"{options.output} exists already: choose another name or delete it")
    from .network.official import load_official
    from .network.weights import save_weights

    trained = load_official(options.file, block_res_scale=options.block_res_scale)
    save_weights(options.output, trained.network, trained.architecture, trained.name)
    print(f"{trained.architecture.description}: {options.output}")


if __name__ == "__main__":
    main()
