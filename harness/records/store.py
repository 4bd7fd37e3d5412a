"""Records of what was measured: small JSON files, final, checked when read.

A record lies at ``<results>/records/<folder>/<id>.json`` with a folder of ``FOLDERS``. Tables and
figures are built from records alone.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..base.errors import UserError
from ..base.files import read_json, write_json
from ..base.names import digest, slug
from .shapes import SCHEMA, _problem

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
