"""Find images to train and test on; ``python -m harness.data`` lists, verifies, downloads.

A data folder holds test sets as ``<Set>/HR/*``, with their LR images, if any, as
``<Set>/LR_bicubic/X<scale>/<stem>x<scale>.*``, and training sets as ``train/<Set>/*`` or
DIV2K as ``DIV2K/DIV2K_train_HR/*`` or ``DIV2K_train_HR/*``; png, webp, jpg or bmp. LR images
that are not there are made by :mod:`harness.bicubic`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from .base.errors import command_line
from .base.signals import resumable
from .images import embedded
from .images.cache import cache_folder
from .images.download import ARCHIVES
from .images.download import download as download_archive
from .images.sources import find_data
from .images.verify import verify_files

DataFolder = Annotated[
    Path | None, tyro.conf.arg(help="Data folder; else SR_DATA, else the embedded images.")
]


def list_sets(data: DataFolder = None) -> None:
    """List the sets found, with their images and sizes."""
    source = find_data(data)
    table = Table(title=f"Images of {source.name}")
    for column in ("use", "set", "images", "MiB"):
        table.add_column(column, justify="right" if column in ("images", "MiB") else "left")
    for use, sets in (("train", source.train), ("test", source.test)):
        for s in sets:
            mib = sum(path.stat().st_size for path in s.paths) / 2**20
            table.add_row(use, s.name, str(len(s)), f"{mib:.1f}")
    console = Console()
    console.print(table)
    console.print(
        f"Decoded training images are cached in {cache_folder()} (SR_CACHE)", soft_wrap=True
    )
    if source.root is None:
        for use, files in (("train", embedded.TRAIN), ("test", embedded.TEST)):
            for name, origin in files.items():
                console.print(f"{use:5} {name}: {origin}", highlight=False, soft_wrap=True)


def verify(data: DataFolder = None) -> None:
    """Decode every image; check MANIFEST.csv and LR_bicubic_pixels.csv where they are there."""
    source = find_data(data)
    verify_files(source.root, source.train, source.test)


def download(
    data: Annotated[Path, tyro.conf.arg(help="Folder to put the images into.")],
    sets: Annotated[
        tuple[Literal["div2k", "benchmark"], ...], tyro.conf.arg(help="What to download.")
    ] = ("div2k", "benchmark"),
) -> None:
    """Download DIV2K (training) and Set5, Set14, B100, Urban100; run again to go on."""
    for name in sets:
        archive = ARCHIVES[name]
        print(archive.terms)
        print(f"{name}: {'done' if download_archive(archive, data) else 'there already'}")


#: What can be typed after ``python -m harness.data``.
COMMANDS: dict[str, Callable[..., None]] = {
    "list": list_sets,
    "verify": verify,
    "download": download,
}


@command_line
@resumable("harness.data")
def main() -> None:
    """Entry point of ``python -m harness.data``."""
    tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        prog="python -m harness.data",
        description="List, verify and download images.",
    )


if __name__ == "__main__":
    main()
