"""Images that an evaluation has done, kept while it lasts, so that it goes on where it was."""

from __future__ import annotations

import contextlib
import hashlib
import time
from pathlib import Path
from typing import Any

import numpy as np

from ..base.errors import UserError
from ..base.files import read_json, write_json
from ..base.names import digest
from ..images.sources import TestImage

# Seconds between two writes at most: few images take so long, and the file is small.
_SAVE_EVERY = 5.0
_NAME = "evaluated.json"


class EvaluatedImages:
    """Results of single images, in a file until :func:`discard_evaluated`.

    A result is used again for the same pixels only, and if all that it depends on beside them is
    the same. What the file holds of another basis, or was damaged, is measured anew.

    Args:
        folder: where the file is, of the run.
        basis: what the results depend on (weights, settings, machine), ready for JSON.
        save_every: seconds between two writes, but never more than 5; 0 writes after every image.
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

    def find(self, image: TestImage) -> dict[str, Any] | None:
        """The image's result, if there is one."""
        return self._rows.get(_key(image))

    def add(self, image: TestImage, row: dict[str, Any]) -> None:
        """Keep the result of an image.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        self._rows[_key(image)] = row
        if time.monotonic() - self._saved >= self._save_every:
            write_json(self._path, {"images": self._rows, "sha256": self._seal(self._rows)})
            self._saved = time.monotonic()

    def _seal(self, rows: dict[str, dict[str, Any]]) -> str:
        return digest([self._basis, rows])


def discard_evaluated(folder: Path) -> None:
    """Delete the file, once its results are in a record."""
    (folder / _NAME).unlink(missing_ok=True)


def _key(image: TestImage) -> str:
    """Of name and pixels."""
    sha256 = hashlib.sha256(image.name.encode(errors="surrogateescape"))
    for pixels in (image.lr, image.hr):
        sha256.update(str(pixels.shape).encode())
        sha256.update(np.ascontiguousarray(pixels).data)
    return sha256.hexdigest()
