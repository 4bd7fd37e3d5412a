"""Folders of results: the user's own, which git ignores, and the published one."""

from __future__ import annotations

import shlex
from pathlib import Path

#: Where a command writes and reads by default.
OWN = Path("outputs")
#: Published results of the checkout; the folder is not there where the package is installed.
PUBLISHED = Path(__file__).resolve().parents[2] / "results"


def sources(results: Path) -> tuple[Path, ...]:
    """Folders in which results are looked up, the first of which is ``results``.

    Behind the default folder stand the published results. Any other folder stands alone.
    """
    if results.absolute() == OWN.absolute() and PUBLISHED.is_dir():
        return results, PUBLISHED
    return (results,)


def tables_command(results: Path) -> str:
    """The command that makes tables of the records in ``results``."""
    more = "" if results == OWN else f" --results {shlex.quote(str(results))}"
    return f"python -m harness.tables{more}"
