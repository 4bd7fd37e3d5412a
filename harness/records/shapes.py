"""What a record of each kind must hold."""

from __future__ import annotations

import math
import re
from datetime import datetime
from typing import Any

from .origin import Record

#: Version of the records' layout. A reader refuses any other.
SCHEMA = 1
_ID = re.compile(r"""[^\W_][^/\\\x00-\x1f:*?"<>|]*""")
# What a record must hold. A dict is an object with at least these keys, [x] a list of x, {str: x}
# an object with any keys, a tuple alternatives, None null. Keys beyond these are kept.
_NUMBER = (int, float)
_NULLABLE = (int, float, None)
_VARIANT = {"name": str, "label": str, "options": dict}
_COUNTS = {
    "channels": int,
    "paper_gflops": _NULLABLE,
    "executed_gflops": _NULLABLE,
    "fvcore_gflops": _NULLABLE,
    "ptflops_gflops": _NULLABLE,
    "torch_gflops": _NULLABLE,
}
_IMAGE = {
    "name": str,
    "psnr": _NUMBER,
    "ssim": _NUMBER,
    "bicubic_psnr": _NUMBER,
    "bicubic_ssim": _NUMBER,
    "tile": (int, None),
}
_SIDE = {"median_ms": _NULLABLE, "runs": (int, None), "peak_memory_mb": _NULLABLE}
_QUALITY = {
    "images": [_IMAGE],
    "psnr": _NUMBER,
    "ssim": _NUMBER,
    "bicubic_psnr": _NUMBER,
    "bicubic_ssim": _NUMBER,
}
# Parts of a machine's description that are objects where they are known.
_MACHINE_PARTS = ("cpu", "gpu", "torch", "packages", "code")
_COMMON: dict[str, Any] = {
    "schema": int,
    "kind": str,
    "id": str,
    "created": str,
    "command": str,
    "machine": dict,
}
_SHAPES: dict[str, dict[str, Any]] = {
    "run": _COMMON
    | {
        "variant": _VARIANT,
        "config": {
            "preset": str,
            "protocol": str,
            "scale": int,
            "seed": int,
            "blocks": int,
            "channels": int,
            "steps": int,
            "device": str,
            "data": {"name": str, "train": [str], "train_images": int, "test": [str]},
        },
        "training": {"parameters": int, "seconds": _NUMBER},
        "quality": {str: _QUALITY},
    },
    "cost": _COMMON
    | {
        "variant": _VARIANT,
        "height": int,
        "width": int,
        "parts": {"core": _COUNTS, "module": _COUNTS},
        "notes": [str],
    },
    "latency": _COMMON
    | {
        "settings": {"max_seconds": _NULLABLE},
        "rows": [
            {
                "variant": _VARIANT,
                "part": str,
                "passes": str,
                "height": int,
                "width": int,
                "batch": int,
                "channels": int,
                "dtype": str,
                "device": str,
                "mean_ms": _NULLABLE,
                "median_ms": _NULLABLE,
                "iqr_ms": _NULLABLE,
                "min_ms": _NULLABLE,
                "runs": (int, None),
                "peak_memory_mb": _NULLABLE,
            }
        ],
    },
    "speed": _COMMON
    | {
        "settings": {"max_seconds": _NULLABLE},
        "machine_limits": {"matmul_gflops": _NUMBER, "copy_gb_per_s": _NUMBER},
        "rows": [
            {
                "name": str,
                "case": str,
                "variant": _VARIANT,
                "passes": str,
                "dtype": str,
                "device": str,
                "obvious": _SIDE,
                "ours": _SIDE,
                "ratio": _NULLABLE,
                "ratio_low": _NULLABLE,
                "ratio_high": _NULLABLE,
                "ratio_target": _NULLABLE,
                "memory_target_mb": _NULLABLE,
                "limit_ms": _NUMBER,
            }
        ],
    },
    "redraw": _COMMON
    | {
        "variant": _VARIANT,
        "settings": {"network": str, "draws": int, "tile": (int, None)},
        "rows": [
            {
                "test_set": str,
                "m": (int, None),
                "draw": int,
                "psnr": _NUMBER,
                "ssim": _NUMBER,
                "images": int,
            }
        ],
    },
    "gpu": _COMMON | {"piece": str, "settings": dict, "rows": [{"name": str}]},
    "approximation": _COMMON
    | {
        "settings": {
            "network": (dict, None),
            "sides": [int],
            "rounds": int,
            "draws": int,
            "top": int,
        },
        "exact": [{"features": str, "n": int, "k": _NUMBER}],
        "enla": [{"features": str, "n": int, "k": _NUMBER, "m": int}],
        "nlsa": [{"features": str, "n": int, "rounds": int, "chunk_size": int}],
        "network": [{"attention": str, "m": (int, None), "psnr": _NUMBER}],
    },
}
_SHAPES["scaling"] = _SHAPES["latency"] | {"settings": {"max_seconds": _NULLABLE, "fit_from": int}}


def _problem(record: Any) -> str | None:
    """What is wrong with a record's layout, in words that name the key; None if nothing is."""
    if not isinstance(record, dict):
        return "it is not a JSON object"
    try:
        _check(record, _COMMON, "")
        if record["schema"] != SCHEMA:
            raise _Mismatch("schema", f"is {record['schema']}, not {SCHEMA}")
        if record["kind"] not in _SHAPES:
            raise _Mismatch("kind", f"is {record['kind']!r}, not one of {', '.join(_SHAPES)}")
        if not _ID.fullmatch(record["id"]):
            raise _Mismatch("id", f"{record['id']!r} is not a file name")
        _check(record, _SHAPES[record["kind"]], "")
        _check_finite(record, "")
        _check_created(record["created"])
        for part in _MACHINE_PARTS:
            _check(record["machine"].get(part), (dict, None), f"machine.{part}")
        if record["kind"] == "run":
            _check_quality(record)
        if record["kind"] in ("latency", "scaling", "speed", "redraw") and not record["rows"]:
            raise _Mismatch("rows", "is empty")
    except _Mismatch as error:
        return str(error)
    return None


class _Mismatch(Exception):
    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"key '{key}' {problem}")


def _check(value: Any, shape: Any, key: str) -> None:
    if isinstance(shape, dict):
        _check(value, dict, key)
        if str in shape:
            for name, item in value.items():
                _check(item, shape[str], _join(key, name))
            return
        for name, inner in shape.items():
            if name not in value:
                raise _Mismatch(_join(key, name), "is missing")
            _check(value[name], inner, _join(key, name))
    elif isinstance(shape, list):
        _check(value, list, key)
        for index, item in enumerate(value):
            _check(item, shape[0], f"{key}[{index}]")
    else:
        types = shape if isinstance(shape, tuple) else (shape,)
        if not any(value is None if t is None else type(value) is t for t in types):
            wanted = " or ".join("null" if t is None else t.__name__ for t in types)
            got = "null" if value is None else type(value).__name__
            raise _Mismatch(key, f"is {got}, not {wanted}")


def _check_finite(value: Any, key: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise _Mismatch(key, f"is {value}, not a finite number")
    if isinstance(value, dict):
        for name, item in value.items():
            _check_finite(item, _join(key, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_finite(item, f"{key}[{index}]")


def _check_created(created: str) -> None:
    try:
        when = datetime.fromisoformat(created)
    except ValueError:
        raise _Mismatch("created", f"{created!r} is not an ISO-8601 time") from None
    if when.tzinfo is None:
        raise _Mismatch("created", f"{created!r} has no time zone")


def _check_quality(run: dict[str, Any]) -> None:
    quality = run["quality"]
    for name in run["config"]["data"]["test"] or ["<test set>"]:
        if name not in quality:
            raise _Mismatch(f"quality.{name}", "is missing")
    for name, entry in quality.items():
        names = [image["name"] for image in entry["images"]]
        if not names or len(set(names)) < len(names):
            raise _Mismatch(f"quality.{name}.images", "is empty or names an image twice")


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def positions(row: Record) -> int:
    """N of a row."""
    return row["height"] * row["width"]


#: How often an interval is to hold the true difference.
CONFIDENCE = 0.95
#: The paper's m and k, which every record has.
REFERENCE_M, REFERENCE_K = 128, 6.0
#: Name of the mean over a network's modules.
WHOLE = "all modules"
