"""Whether a user's module is still the one that a result was made with."""

from __future__ import annotations

from pathlib import Path

from ..base.errors import UserError
from .variants import Variant


def check_source(recorded: str | None, variant: Variant, path: Path) -> None:
    """Check that a user's module has not changed since a result was made.

    Args:
        recorded: SHA-256 of the module's file then; None for a module of attention_zoo.
        variant: the module as it is now.
        path: where the result lies.

    Raises:
        UserError: the file has changed.
    """
    if recorded is not None and recorded != variant.source_sha256:
        raise UserError(
            f"the file of {variant.name} has changed since {path} was made: choose another "
            "--results for the new version, or delete that result"
        )
