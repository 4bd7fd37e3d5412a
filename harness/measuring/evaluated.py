"""Results of single images, kept on disk during an evaluation, so that it can be resumed."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import msgspec

from ..base.errors import UserError
from ..base.files import read_json, write_json
from ..base.names import digest
from ..images.inputs import image_digest
from ..images.sources import TestImage
from ..records.shapes import ImageQuality, untyped

# Most seconds between two writes: evaluating a few images takes longer, and the file is small.
_SAVE_EVERY = 5.0
_NAME = "evaluated.json"


class EvaluatedImages:
    """Results of single images, in a file until :func:`discard_evaluated`.

    A result is reused only for the same pixels, and only if everything else that it depends on is
    the same. Results of another basis, or of a damaged file, are measured again.

    Args:
        folder: the run's, where the file lies.
        basis: what the results depend on (weights, settings, machine), ready for JSON.
        save_every: seconds between two writes, at most 5; 0 writes after every image.
    """

    def __init__(
        self, folder: Path, basis: dict[str, Any], save_every: float = _SAVE_EVERY
    ) -> None:
        self._path, self._save_every = folder / _NAME, min(save_every, _SAVE_EVERY)
        self._basis = digest(basis)
        self._rows: dict[str, dict[str, Any]] = {}
        with contextlib.suppress(UserError, KeyError, TypeError):
            content = read_json(self._path)
            if content["sha256"] == self._seal(content["images"]):
                self._rows = content["images"]
        self._saved = time.monotonic()

    def find(self, image: TestImage) -> ImageQuality | None:
        """The image's result, if there is one."""
        row = self._rows.get(image_digest(image))
        return None if row is None else msgspec.convert(row, ImageQuality)

    def add(self, image: TestImage, row: ImageQuality) -> None:
        """Keep the result of an image.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        self._rows[image_digest(image)] = untyped(row)
        if time.monotonic() - self._saved >= self._save_every:
            write_json(self._path, {"images": self._rows, "sha256": self._seal(self._rows)})
            self._saved = time.monotonic()

    def _seal(self, rows: dict[str, dict[str, Any]]) -> str:
        return digest([self._basis, rows])


def discard_evaluated(folder: Path) -> None:
    """Delete the file, once its results are in a record."""
    (folder / _NAME).unlink(missing_ok=True)
