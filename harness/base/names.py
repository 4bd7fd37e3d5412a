"""Names: made from content (canonical JSON, its digest, parts of file names), or misspelt."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any


def canonical_json(content: Any) -> str:
    """One text per content: keys sorted, no spaces, ASCII.

    Raises:
        ValueError: the content holds NaN or an infinity.
    """
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(content: Any) -> str:
    """SHA-256 (hex) of the canonical JSON."""
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def slug(text: str) -> str:
    """The text as part of a file name: letters, digits and dots; dashes for all else."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")


def task_label(name: str, options: Mapping[str, Any]) -> str:
    """A task with its options in words, e.g. ``denoise sigma 50``."""
    values = (f"{v:g}" if isinstance(v, float) else str(v) for v in options.values())
    return " ".join([name, *(f"{o} {v}" for o, v in zip(options, values, strict=True))])


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about a misspelt word; empty if no known name is near."""
    near = nearest(word, known)
    return f"; did you mean {near}?" if near else ""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known name that a misspelt word most likely means; None if none is near."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1)), None)
