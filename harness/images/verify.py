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
from rich.console import Console
from rich.table import Table

from ..base.errors import UserError
from ..base.progress import progress_bar
from .bicubic import crop_to_multiple, downscale
from .cache import Pixels, map_threads
from .files import ImageSet, lr_path, read_image

MANIFEST = "MANIFEST.csv"
LR_HASHES = "LR_bicubic_pixels.csv"
#: Columns that are used of each, and what may stand there.
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
    """What was found: counts by set and check, and one line for each problem."""

    counts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    problems: list[str] = field(default_factory=list)

    def add(self, set_name: str, check: str, good: bool, problem: str) -> None:
        self.counts[set_name][check] += good
        self.counts[set_name][f"{check} of"] += 1
        if not good:
            self.problems.append(problem)


@dataclass(frozen=True)
class _Task:
    """One HR or training image with all that is known about it."""

    set_name: str
    path: Path
    scales: dict[int, dict[str, str]]
    test: bool


def pixel_hash(image: Pixels, channels: int = 3) -> str:
    """SHA-256 of row-major uint8 pixels; of ``[H, W]`` for one channel (R = G = B)."""
    pixels = image if channels == 3 else image[..., 0]
    return hashlib.sha256(pixels.tobytes()).hexdigest()


def verify_files(root: Path | None, train: Sequence[ImageSet], test: Sequence[ImageSet]) -> None:
    """Decode all images and make all checks there are data for; print problems and a table.

    Checked, where the files are there: ``MANIFEST.csv`` (presence, size, SHA-256) and
    ``LR_bicubic_pixels.csv`` (our LR pixels). Stored LR images are compared with ours and
    counted; a difference is no fault, as other makers of LR images are in use.

    Raises:
        UserError: anything failed, or one of the two files is not such a list.
    """
    hashes = _rows(root, LR_HASHES)
    known: dict[tuple[str, str], dict[int, dict[str, str]]] = defaultdict(dict)
    for row in hashes:
        known[row["set"], row["image"]][int(row["scale"])] = row
    tasks = [_Task(s.name, path, {}, False) for s in train for path in s.paths]
    tasks += [_Task(s.name, p, known[s.name, p.stem], True) for s in test for p in s.paths]
    report = Report()
    with progress_bar() as progress:
        bar = progress.add_task("Verifying images", total=len(tasks))
        for part in map_threads(_check_image, tasks):
            _merge(report, part)
            progress.advance(bar)
        if root is not None and (manifest := _rows(root, MANIFEST)):
            bar = progress.add_task(f"Checking {MANIFEST}", total=len(manifest))
            for part in map_threads(lambda row: _check_file(root, row), manifest):
                _merge(report, part)
                progress.advance(bar)
    for problem in report.problems:
        print(problem)
    Console().print(_table(report))
    if report.problems:
        raise UserError(f"{len(report.problems)} checks failed, listed above")


def _check_image(task: _Task) -> Report:
    report = Report()
    try:
        image = read_image(task.path)
    except UserError as error:
        report.add(task.set_name, "decoded", False, str(error))
        return report
    report.add(task.set_name, "decoded", True, "")
    stored = {s: path for s in (2, 3, 4, 8) if task.test and (path := lr_path(task.path, s))}
    for scale in sorted({*task.scales, *stored}):
        lr = downscale(crop_to_multiple(image, scale), scale)
        if row := task.scales.get(scale):
            size = (str(lr.shape[1]), str(lr.shape[0])) == (row["width"], row["height"])
            same = pixel_hash(lr, int(row["channels"])) == row["sha256_of_uint8_pixels"]
            problem = f"{task.path}: x{scale} LR pixels differ from {LR_HASHES}"
            report.add(task.set_name, f"LR x{scale} hash", size and same, problem)
        if path := stored.get(scale):
            try:
                theirs = read_image(path)
            except UserError as error:
                report.problems.append(str(error))
                continue
            check = f"LR x{scale} file = ours"
            report.counts[task.set_name][check] += np.array_equal(theirs, lr)
            report.counts[task.set_name][f"{check} of"] += 1
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


def _merge(report: Report, part: Report) -> None:
    for name, counts in part.counts.items():
        report.counts[name].update(counts)
    report.problems += part.problems


def _rows(root: Path | None, file_name: str) -> list[dict[str, str]]:
    if root is None or not (root / file_name).is_file():
        return []
    path = root / file_name
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, csv.Error, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {path}: {reason}; mend it or take it away") from error
    for number, row in enumerate(rows, start=2):
        for column, pattern in _COLUMNS[file_name].items():
            if not re.fullmatch(pattern, row.get(column) or "", re.DOTALL):
                raise UserError(
                    f"{path}, row {number}: column {column} is {row.get(column)!r}; "
                    "mend it or take the file away"
                )
    return rows


def _table(report: Report) -> Table:
    checks = sorted(
        {c.removesuffix(" of") for counts in report.counts.values() for c in counts}, key=str.lower
    )
    table = Table("set", *checks, title="Verified (good / checked)")
    for name, counts in report.counts.items():
        cells = (
            f"{counts[check]}/{counts[f'{check} of']}" if f"{check} of" in counts else ""
            for check in checks
        )
        table.add_row(name, *cells)
    return table
