"""Records of what was measured: small JSON files, final, checked when read.

A record lies at ``<results>/records/<folder>/<id>.json`` with a folder of ``FOLDERS``. Tables and
figures are built from records alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .errors import UserError
from .files import read_json, write_json

#: Version of the records' layout. A reader refuses any other.
SCHEMA = 1
#: Kinds of record, and the folder of each under ``<results>/records``.
FOLDERS = {
    "run": "runs",
    "cost": "costs",
    "latency": "latency",
    "speed": "speed",
    "approximation": "approximation",
    "scaling": "scaling",
    "gpu": "gpu",
    "redraw": "redraws",
}

_ADVICE = "restore the file, or delete it and measure again"
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


def canonical_json(content: Any) -> str:
    """One text per content: keys sorted, no spaces, ASCII.

    Raises:
        ValueError: the content holds NaN or an infinity.
    """
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(content: Any) -> str:
    """SHA-256 (hex) of the canonical JSON."""
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def record_id(prefix: str, content: dict[str, Any]) -> str:
    """``<prefix>-<12 hex digits>`` that depends on the whole content."""
    return f"{prefix}-{digest(content)[:12]}"


def record_path(results: Path, kind: str, identifier: str) -> Path:
    """Where a record of this kind and id lies."""
    return results / "records" / FOLDERS[kind] / f"{identifier}.json"


def save_record(results: Path, record: dict[str, Any], *, replace: bool = False) -> Path:
    """Check a record, complete it with ``schema``, ``created`` and its checksum, and write it.

    A record is final: the same content again changes nothing, other content under the same id is
    refused unless ``replace``.

    Returns:
        The file's path.

    Raises:
        UserError: a key is missing or of a wrong type, the id is taken, or the file cannot be
            written.
    """
    where = f"{record.get('kind', 'unknown')} record {record.get('id', 'without an id')}"
    # Through JSON and back, so that what is checked and hashed is what a reader will see.
    try:
        complete = json.loads(json.dumps({"schema": SCHEMA, **record}))
    except RecursionError:
        raise UserError(f"{where} is nested too deeply; it was not written") from None
    complete.pop("sha256", None)
    complete.setdefault("created", datetime.now(UTC).isoformat(timespec="seconds"))
    if problem := _problem(complete):
        raise UserError(f"{where} was not written: {problem}")
    path = record_path(results, complete["kind"], complete["id"])
    if path.exists() and not replace:
        known = _load(path, complete["kind"])
        if _content(known) == _content(complete):
            return path
        raise UserError(
            f"{path} exists already with other content, and a record is final; "
            "delete it to measure again"
        )
    write_json(path, complete | {"sha256": digest(complete)})
    return path


def load_records(results: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """Read all records of a kind (a key of FOLDERS; None: of every kind), sorted by id.

    Raises:
        UserError: a file is torn, misses a key, has a value of a wrong type, was changed after
            it was written, or has a newer schema; the message names the file and the key.
    """
    records = []
    for one in FOLDERS if kind is None else (kind,):
        paths = (results / "records" / FOLDERS[one]).glob("*.json")
        records += [_load(p, one) for p in sorted(paths) if not p.name.startswith(".")]
    return records


def setting_of(run: dict[str, Any]) -> dict[str, Any]:
    """The run's configuration without its seed: only runs of one setting are comparable."""
    return {key: value for key, value in run["config"].items() if key != "seed"}


def setting_label(run: dict[str, Any]) -> str:
    """Folder name of the run's setting, e.g. ``small-x4-scratch-data-4000steps-0a1b2c``."""
    config = run["config"]
    name = (
        f"{config['preset']}-x{config['scale']}-{config['protocol']}-{config['data']['name']}"
        f"-{config['steps']}steps"
    )
    return f"{slug(name)}-{digest(setting_of(run))[:6]}"


def slug(text: str) -> str:
    """The text as part of a file name: anything but letters, digits, dot and dash is a dash."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")


def _content(record: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in record.items() if k not in ("created", "sha256")}


def _load(path: Path, kind: str) -> dict[str, Any]:
    record = read_json(path)
    schema = record.get("schema") if isinstance(record, dict) else None
    if isinstance(schema, int) and schema != SCHEMA:
        age, way = ("newer", "update attention-zoo") if schema > SCHEMA else ("older", _ADVICE)
        raise UserError(f"{path} has schema {schema}, {age} than this version's {SCHEMA}; {way}")
    if problem := _problem(record):
        raise UserError(f"{path} is no valid record: {problem}; {_ADVICE}")
    if (record["kind"], record["id"]) != (kind, path.stem):
        raise UserError(
            f"{path} holds {record['kind']} record {record['id']}: it was moved or renamed; "
            "put it back or delete it"
        )
    if "sha256" not in record:
        raise UserError(f"{path} is no valid record: key 'sha256' is missing; {_ADVICE}")
    content = {key: value for key, value in record.items() if key != "sha256"}
    if record["sha256"] != digest(content):
        raise UserError(
            f"{path} was changed after it was written (its content does not match 'sha256'); "
            f"{_ADVICE}"
        )
    return content


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
