"""Self-similar parts and non-local use, added to the record of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from ..base.locks import lock
from ..records.shapes import UNSET, Analysed, ImageQuality, Quality, Run, differ, input_qualities
from ..records.store import find_record, load_record, lock_path, record_path, save_record

#: What an analysis adds to the quality of an image.
ADDED = ("self_similar_psnr", "self_similar_share", "lost_as_mean", "lost_confined")
# Most dB by which an image's PSNR may differ from the record's: weights may be rounded, and the
# machine another.
_MOST = 0.01


def add_analysis(
    results: Path,
    identifier: str,
    found: Mapping[str, Quality],
    analysed: Analysed,
    *,
    some: bool = False,
) -> tuple[bool, str]:
    """Add what was measured of a run's weights to its record, on the test sets that it has.

    The record is written to ``results``, also if it was read from a folder behind. Its numbers
    stay as they are; of an earlier analysis those that were not measured again stay.

    Args:
        results: folder of the records.
        identifier: the run's id.
        found: quality by test set, in the task of the run.
        analysed: when, where and how.
        some: only some images of each set were measured; the others keep what they have.

    Returns:
        Whether the record was written, and its path or what speaks against it.

    Raises:
        UserError: the record is damaged, or cannot be written.
    """
    if not find_record(results, Run, identifier).exists():
        return False, f"there is no record of {identifier} under {results}"
    with lock(lock_path(results, identifier), f"analysis of {identifier}"):
        record = load_record(results, Run, identifier)
        quality = dict(record.quality)
        left_out = [name for name in found if name not in quality]
        if len(left_out) == len(found):
            return False, f"the record of {identifier} has no test set {', '.join(left_out)}"
        for name, one in found.items():
            if name in left_out:
                continue
            if problem := _problem(quality[name], one, some):
                return False, f"{problem} in the record of {identifier} ({name})"
            rows = {image.name: image for image in one.images}
            images = [_with(row, rows.get(row.name)) for row in quality[name].images]
            quality[name] = replace(quality[name], images=images)
        earlier = record.analysed.rule if record.analysed else {}
        if some and analysed.rule and earlier not in ({}, analysed.rule):
            return False, f"the self-similar part in the record of {identifier} has another rule"
        if record.analysed and not analysed.rule:
            analysed = replace(analysed, rule=record.analysed.rule)
        record = replace(record, quality=quality, analysed=analysed)
        save_record(results, record, replace=True)
    without = f" (which has no test set {', '.join(left_out)})" if left_out else ""
    return True, f"{record_path(results, Run, identifier)}{without}"


def _problem(known: Quality, found: Quality, some: bool) -> str | None:
    """Why what was found is not of these images (or ``some`` of them) and weights."""
    rows = {image.name: image for image in known.images}
    names = [image.name for image in found.images]
    if not rows.keys() >= {*names} or (not some and names != [*rows]):
        return "there are other images"
    if not some and UNSET not in (known.sha256, found.sha256):
        same = known.sha256 == found.sha256
    else:
        ours, theirs = input_qualities(found), input_qualities(known)
        same = not any(differ(ours[name], theirs[name]) for name in ours)
    if not same:
        return "the images have other pixels"
    for other in found.images:
        one = rows[other.name]
        if one.tile != other.tile:
            return f"{one.name} has tiles of {one.tile} and here {other.tile}"
        if abs(one.psnr - other.psnr) > _MOST:
            return f"{one.name} has {one.psnr:.3f} dB and here {other.psnr:.3f} dB"
    return None


def _with(known: ImageQuality, found: ImageQuality | None) -> ImageQuality:
    """The record's row with what was measured now, if it was."""
    if found is None:
        return known
    added: dict[str, Any] = {name: getattr(found, name) for name in ADDED}
    return replace(known, **{name: value for name, value in added.items() if value is not UNSET})
