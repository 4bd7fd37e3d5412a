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
from .files import SCALES, ImageSet, Pixels, lr_path, read_image
from .metrics import psnr, rgb_to_y
from .sources import TestSet, least_side

MANIFEST = "MANIFEST.csv"
LR_HASHES = "LR_bicubic_pixels.csv"
# That of the commands by default.
_SCALE = 4
# LR images of other programs, even without antialiasing, are within 23 dB of ours.
_LEAST_PSNR = 18.0
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
        notes: one line for each thing that is no problem by itself.
    """

    checked: Counter[tuple[str, str]] = field(default_factory=Counter)
    passed: Counter[tuple[str, str]] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

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
        self.notes += other.notes


@dataclass(frozen=True)
class _Task:
    """A training or HR image, published hashes of its LR pixels by scale, and the least side."""

    set_name: str
    path: Path
    hashes: dict[int, dict[str, str]]
    test: bool
    least: int


def pixel_hash(image: Pixels, channels: int = 3) -> str:
    """SHA-256 of row-major uint8 pixels; of ``[H, W]`` for one channel (R = G = B)."""
    pixels = image if channels == 3 else image[..., 0]
    return hashlib.sha256(pixels.tobytes()).hexdigest()


def verify_files(
    root: Path | None, train: Sequence[ImageSet], test: Sequence[ImageSet], side: int
) -> Report:
    """Decode all images and make all checks that the folder ``root`` has data for.

    ``MANIFEST.csv`` gives presence, size and SHA-256 of files, ``LR_bicubic_pixels.csv`` hashes of
    LR pixels. Stored LR images must have the size that fits and show the same, and those equal to
    ours are counted: other programs that make LR images are in use. Test images must be
    large enough for x4, and no two of a set of one name. Training images that are too small for
    patches of ``side`` are noted, and no problem for smaller patches.

    Raises:
        UserError: one of the two files is unreadable or malformed.
    """
    known: dict[tuple[str, str], dict[int, dict[str, str]]] = defaultdict(dict)
    for row in _rows(root, LR_HASHES):
        known[row["set"], row["image"]][int(row["scale"])] = row
    tasks = [_Task(s.name, path, {}, False, side) for s in train for path in s.paths]
    least = least_side(_SCALE)
    tasks += [_Task(s.name, p, known[s.name, p.stem], True, least) for s in test for p in s.paths]
    report = Report()
    for line in _shared(train, test):
        report.add("train", "apart from tests", False, line)
    for images in test:
        try:
            _ = TestSet(images, _SCALE).names
        except UserError as error:
            report.add(images.name, "names", False, str(error))
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


def _shared(train: Sequence[ImageSet], test: Sequence[ImageSet]) -> list[str]:
    """Training images whose file is that of a test image."""
    sizes = defaultdict(list)
    for path in (path for images in test for path in images.paths if path.is_file()):
        sizes[path.stat().st_size].append(path)
    lines = []
    for path in (path for images in train for path in images.paths if path.is_file()):
        for other in sizes.get(path.stat().st_size, ()):
            if other.read_bytes() == path.read_bytes():
                lines.append(f"training image {path} is test image {other}: remove one of them")
    return lines


def _check_image(task: _Task) -> Report:
    report = Report()
    try:
        image = read_image(task.path)
    except UserError as error:
        report.add(task.set_name, "decoded", False, str(error))
        return report
    report.add(task.set_name, "decoded", True, None)
    height, width = image.shape[:2]
    too_small = f"{task.path} is {width}x{height}: x{_SCALE} needs {task.least}x{task.least}"
    fits = min(height, width) >= task.least
    usable = task.test or min(height, width) >= _SCALE  # by smaller patches
    report.add(task.set_name, "size", fits, None if usable and not task.test else too_small)
    if not fits and not task.test and usable:
        report.notes.append(
            f"training image {too_small} for the patches of the presets quick and small: remove "
            "it, or give a smaller --patch"
        )
    stored = {}
    for scale in SCALES if task.test else ():
        try:
            if path := lr_path(task.path, scale):
                stored[scale] = path
        except UserError as error:
            report.problems.append(str(error))
    for scale in sorted({*task.hashes, *stored}):
        if min(height, width) < scale:
            continue
        lr = downscale(crop_to_multiple(image, scale), scale)
        if row := task.hashes.get(scale):
            size = (str(lr.shape[1]), str(lr.shape[0])) == (row["width"], row["height"])
            same = pixel_hash(lr, int(row["channels"])) == row["sha256_of_uint8_pixels"]
            problem = f"{task.path}: x{scale} LR pixels differ from {LR_HASHES}"
            report.add(task.set_name, f"LR x{scale} hash", size and same, problem)
        if path := stored.get(scale):
            try:
                found = read_image(path)
            except UserError as error:
                report.problems.append(str(error))
                continue
            report.add(task.set_name, f"LR x{scale} file = ours", np.array_equal(found, lr), None)
            if found.shape != lr.shape:
                report.problems.append(
                    f"{path} is {found.shape[1]}x{found.shape[0]}, not {lr.shape[1]}x{lr.shape[0]} "
                    f"as {task.path} needs"
                )
            elif psnr(rgb_to_y(found), rgb_to_y(lr), 0) < _LEAST_PSNR:
                report.problems.append(f"{path} does not show what {task.path} shows")
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
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets write a mark
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
