"""List, verify and download images: ``python -m harness.data list|verify|download``.

:mod:`harness.images.sources` describes the layout of a data folder.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.table import Table
from rich.text import Text

from .base.commands import command_line, usage_errors
from .base.errors import UserError
from .base.names import nearest
from .base.printing import print_table
from .base.signals import resumable
from .config.presets import PRESETS
from .images import embedded
from .images.cache import cache_folder
from .images.download import ARCHIVES
from .images.download import download as download_archive
from .images.files import SCALES
from .images.left_out import left_out, lr_files
from .images.sources import find_data
from .images.verify import verify_files

DataFolder = Annotated[
    Path | None, tyro.conf.arg(help="Data folder; else SR_DATA, else the embedded images.")
]


def list_sets(data: DataFolder = None) -> None:
    """List the sets found, with their images and sizes, and what is left out."""
    source = find_data(data)
    table = Table(title=Text(f"Images of {source.name}"))
    for column in ("use", "set", "images", "MiB", "LR files"):
        table.add_column(column, justify="right" if column in ("images", "MiB") else "left")
    for use, sets in (("train", source.train), ("test", source.test)):
        for s in sets:
            mib = sum(path.stat().st_size for path in s.paths) / 2**20
            lr = {scale: len(lr_files(s, (scale,))) for scale in SCALES} if use == "test" else {}
            counts = ", ".join(f"x{scale}: {count}" for scale, count in lr.items() if count)
            table.add_row(use, Text(s.name), str(len(s)), f"{mib:.1f}", counts)
    print_table(table)
    if source.root is not None:
        for line in left_out(source.root, source.train, source.test):
            print(line)
    print(f"Decoded training images are cached in {cache_folder()} (SR_CACHE)")
    if source.root is None:
        for use, files in (("train", embedded.TRAIN), ("test", embedded.TEST)):
            for name, origin in files.items():
                print(f"{use:5} {name}: {origin}")


def verify(data: DataFolder = None) -> None:
    """Decode and check every image; check MANIFEST.csv and LR_bicubic_pixels.csv if they exist."""
    source = find_data(data)
    side = 4 * PRESETS["quick"].patch[4]
    report = verify_files(source.root, source.train, source.test, side)
    for line in (*report.problems, *report.notes):
        print(line)
    checks = sorted({check for _, check in report.checked}, key=str.lower)
    table = Table("set", *checks, title="Verified (passed / checked)")
    for name in dict.fromkeys(name for name, _ in report.checked):
        of = {check: report.checked[name, check] for check in checks}
        cells = (f"{report.passed[name, check]}/{n}" if n else "" for check, n in of.items())
        table.add_row(Text(name), *cells)
    print_table(table)
    if report.problems:
        raise UserError(f"{len(report.problems)} checks failed, listed above")


def download(
    data: Annotated[Path, tyro.conf.arg(help="Folder to put the images into.")],
    sets: Annotated[
        tuple[Literal["div2k", "benchmark"], ...], tyro.conf.arg(help="What to download.")
    ] = ("div2k", "benchmark"),
) -> None:
    """Download DIV2K (training) and Set5, Set14, B100, Urban100; run again to continue."""
    for name in sets:
        archive = ARCHIVES[name]
        print(archive.terms)
        print(f"{name}: {'done' if download_archive(archive, data) else 'already there'}")


#: The subcommands of ``python -m harness.data``.
COMMANDS: dict[str, Callable[..., None]] = {
    "list": list_sets,
    "verify": verify,
    "download": download,
}


def _later(command: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """The command with the same parameters, which returns its call: what it prints is its own."""

    @functools.wraps(command)
    def made(*args: Any, **options: Any) -> Callable[[], None]:
        return functools.partial(command, *args, **options)

    return made


@command_line
@resumable("harness.data")
def main() -> None:
    """Entry point of ``python -m harness.data``."""
    name = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    asks = {"-h", "--help"} & set(sys.argv[1:])
    if name not in COMMANDS and not (name is None and asks):
        if name is None:
            raise UserError(f"name a command: python -m harness.data {' | '.join(COMMANDS)}")
        near = nearest(name, COMMANDS)
        hint = f"did you mean {near}?" if near else f"choose from {', '.join(COMMANDS)}"
        raise UserError(f"there is no command {name!r} in harness.data: {hint}")
    with usage_errors(COMMANDS.get(name or "")):
        call: Callable[[], None] = tyro.extras.subcommand_cli_from_dict(
            {name: _later(command) for name, command in COMMANDS.items()},
            prog="python -m harness.data",
            description="List, verify and download images.",
        )
    call()


if __name__ == "__main__":
    main()
