"""Check image files against a manifest, and LR pixels against published hashes."""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..base.errors import UserError
from ..base.machine import map_threads
from ..base.progress import progress_bar
from .bicubic import crop_to_multiple, downscale
from .files import ImageSet, Pixels, lr_path, read_image

MANIFEST = "MANIFEST.csv"
LR_HASHES = "LR_bicubic_pixels.csv"
#: Scales that LR images may have.
SCALES = (2, 3, 4, 8)
#: Columns that are used of each file, and the values they may have.
_COLUMNS = {
    MANIFEST: {"path": r"[^\0]*[^\0/]", "bytes": r"\d+", "sha256": r"\w+"},
    LR_HASHES: {
        "set": r".+",
        "image": r".+",
        "scale": r"[2-8]",
        "width": r"\d+",
        "height": r"\d+",
        "channels": r"[13]",
        "sha256_of_uint8_pixels": r"\w+",
    },
}


@dataclass
class Report:
    """What was found.

    Attributes:
        checked: number of checks made, by (set, check).
        passed: number of them that passed.
        problems: one line for each problem.
    """

    checked: Counter[tuple[str, str]] = field(default_factory=Counter)
    passed: Counter[tuple[str, str]] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def add(self, set_name: str, check: str, passed: bool, problem: str | None) -> None:
        """Count a check; one that failed is a problem if there are words for it."""
        self.checked[set_name, check] += 1
        self.passed[set_name, check] += passed
        if not passed and problem:
            self.problems.append(problem)

    def merge(self, other: Report) -> None:
        """Add what another report found."""
        self.checked.update(other.checked)
        self.passed.update(other.passed)
        self.problems += other.problems


@dataclass(frozen=True)
class _Task:
    """A training or HR image, and the published hashes of its LR pixels by scale."""

    set_name: str
    path: Path
    hashes: dict[int, dict[str, str]]
    test: bool


def pixel_hash(image: Pixels, channels: int = 3) -> str:
    """SHA-256 of row-major uint8 pixels; of ``[H, W]`` for one channel (R = G = B)."""
    pixels = image if channels == 3 else image[..., 0]
    return hashlib.sha256(pixels.tobytes()).hexdigest()


def verify_files(root: Path | None, train: Sequence[ImageSet], test: Sequence[ImageSet]) -> Report:
    """Decode all images and make all checks that the folder ``root`` has data for.

    ``MANIFEST.csv`` gives presence, size and SHA-256 of files, ``LR_bicubic_pixels.csv`` hashes of
    LR pixels. Stored LR images are compared with ours and counted; a difference is no problem, as
    other programs that make LR images are in use.

    Raises:
        UserError: one of the two files is unreadable or malformed.
    """
    known: dict[tuple[str, str], dict[int, dict[str, str]]] = defaultdict(dict)
    for row in _rows(root, LR_HASHES):
        known[row["set"], row["image"]][int(row["scale"])] = row
    tasks = [_Task(s.name, path, {}, False) for s in train for path in s.paths]
    tasks += [_Task(s.name, p, known[s.name, p.stem], True) for s in test for p in s.paths]
    report = Report()
    with progress_bar("files") as progress:
        bar = progress.add_task("Verifying images", total=len(tasks))
        for part in map_threads(_check_image, tasks):
            report.merge(part)
            progress.advance(bar)
        if root is not None and (manifest := _rows(root, MANIFEST)):
            bar = progress.add_task(f"Checking {MANIFEST}", total=len(manifest))
            for part in map_threads(lambda row: _check_file(root, row), manifest):
                report.merge(part)
                progress.advance(bar)
    return report


def _check_image(task: _Task) -> Report:
    report = Report()
    try:
        image = read_image(task.path)
    except UserError as error:
        report.add(task.set_name, "decoded", False, str(error))
        return report
    report.add(task.set_name, "decoded", True, None)
    stored = {s: path for s in SCALES if task.test and (path := lr_path(task.path, s))}
    for scale in sorted({*task.hashes, *stored}):
        lr = downscale(crop_to_multiple(image, scale), scale)
        if row := task.hashes.get(scale):
            size = (str(lr.shape[1]), str(lr.shape[0])) == (row["width"], row["height"])
            same = pixel_hash(lr, int(row["channels"])) == row["sha256_of_uint8_pixels"]
            problem = f"{task.path}: x{scale} LR pixels differ from {LR_HASHES}"
            report.add(task.set_name, f"LR x{scale} hash", size and same, problem)
        if path := stored.get(scale):
            try:
                equal = np.array_equal(read_image(path), lr)
            except UserError as error:
                report.problems.append(str(error))
            else:
                report.add(task.set_name, f"LR x{scale} file = ours", equal, None)
    return report


def _check_file(root: Path, row: dict[str, str]) -> Report:
    report = Report()
    path = root / row["path"]
    parts = Path(row["path"]).parts
    name = parts[1] if parts[0] == "train" and len(parts) > 1 else parts[0]
    try:
        content = path.read_bytes()
    except OSError as error:
        report.add(name, "manifest", False, f"{path}: {error.strerror}")
        return report
    same = (str(len(content)), hashlib.sha256(content).hexdigest()) == (row["bytes"], row["sha256"])
    report.add(name, "manifest", same, f"{path}: size or SHA-256 differs from {MANIFEST}")
    return report


def _rows(root: Path | None, file_name: str) -> list[dict[str, str]]:
    if root is None or not (root / file_name).is_file():
        return []
    path = root / file_name
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, csv.Error, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {path}: {reason}; fix or remove it") from error
    for number, row in enumerate(rows, start=2):
        for column, pattern in _COLUMNS[file_name].items():
            if not re.fullmatch(pattern, row.get(column) or "", re.DOTALL):
                raise UserError(
                    f"{path}, row {number}: column {column} is {row.get(column)!r}; "
                    "fix the row or remove the file"
                )
    return rows
