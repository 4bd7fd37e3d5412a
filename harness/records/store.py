"""Records of what was measured: small JSON files, final, checked when read.

A record lies at ``<results>/records/<folder>/<id>.json`` with a folder of ``FOLDERS``. Tables and
figures are built from records alone. :mod:`.shapes` says what each kind holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar, cast

from ..base.errors import UserError
from ..base.files import read_json, write_json
from ..base.folders import sources
from ..base.names import digest, slug
from . import shapes
from .shapes import KINDS, SCHEMA, UNSET, Cost, Record, Run, ShapeError

R = TypeVar("R", bound=Record)

#: Kinds of record, and the folder of each under ``<results>/records``.
FOLDERS = {
    "run": "runs",
    "cost": "costs",
    "latency": "latency",
    "speed": "speed",
    "implementations": "implementations",
    "approximation": "approximation",
    "scaling": "scaling",
    "gpu": "gpu",
    "redraw": "redraws",
}

_ADVICE = "restore the file, or delete it and measure again"
_NAMES = {shape: kind for kind, shape in KINDS.items()}


def record_id(prefix: str, content: Mapping[str, Any]) -> str:
    """``<prefix>-<12 hex digits>`` that depends on the whole content."""
    return f"{prefix}-{digest(content)[:12]}"


def record_path(results: Path, kind: type[Record], identifier: str) -> Path:
    """Where a record of this kind and id is written."""
    return results / "records" / FOLDERS[_NAMES[kind]] / f"{identifier}.json"


def find_record(results: Path, kind: type[Record], identifier: str) -> Path:
    """Where a record lies: in ``results``, else in a folder behind it (``base.folders``).

    If it lies nowhere, the path is that of :func:`record_path`.
    """
    paths = [record_path(folder, kind, identifier) for folder in sources(results)]
    return next((path for path in paths if path.exists()), paths[0])


def lock_path(results: Path, identifier: str) -> Path:
    """Lock file of a run or a cost record, apart from the records, which are published."""
    return results / "runs" / ".locks" / f"{identifier}.lock"


def new_record(kind: type[R], identifier: str, content: Mapping[str, Any]) -> R:
    """A record made now.

    Args:
        kind: such as ``shapes.Run``.
        identifier: its id, a file name.
        content: the kind's own keys, with ``command`` and ``machine``.

    Raises:
        UserError: a key is missing, or has a value of a wrong type.
    """
    complete = {
        "schema": SCHEMA,
        "kind": _NAMES[kind],
        "id": identifier,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **content,
    }
    try:
        # Through JSON and back, so that what is checked is what a reader will see.
        return cast(R, shapes.typed(json.loads(json.dumps(complete))))
    except RecursionError:
        problem = "is nested too deeply"
    except ShapeError as error:
        problem = f"is not valid: {error}"
    raise UserError(f"{complete['kind']} record {complete['id']} {problem}")


def save_record(results: Path, record: Record, *, replace: bool = False) -> Path:
    """Write a record with its checksum.

    A record is final: the same content again changes nothing, other content under the same id is
    refused unless ``replace``.

    Returns:
        The file's path.

    Raises:
        UserError: the id is taken, or the file cannot be written.
    """
    content = shapes.untyped(record)
    path = record_path(results, type(record), record.id)
    if path.exists() and not replace:
        known = _read(path, type(record))[1]
        if _undated(known) == _undated(content):
            return path
        raise UserError(
            f"{path} exists already with other content, and a record is final; "
            "delete it to measure again"
        )
    write_json(path, content | {"sha256": digest(content)})
    return path


def load_record(results: Path, kind: type[R], identifier: str) -> R:
    """Read one record.

    Raises:
        UserError: as :func:`load_records`, or there is none.
    """
    return cast(R, _read(find_record(results, kind, identifier), kind)[0])


def load_records(results: Path, kind: type[R]) -> list[R]:
    """Read all records of a kind, sorted by id.

    Behind the default folder stand the published results (``base.folders``). Runs of the same
    settings as a user's own join these, and operation counts of the modules that were run, but no
    times: those of two machines are not compared. Of two records of one id the own one is read.

    Raises:
        UserError: a file is torn, misses a key, has a value of a wrong type, was changed after
            it was written, or has a newer schema; the message names the file and the key.
    """
    own, *behind = sources(results)
    found = {record.id: record for record in _load(own, kind)}
    for folder in behind if kind in (Run, Cost) else ():
        known = load_records(results, Run) if kind is Cost else _load(own, Run)
        settings = {setting_label(run) for run in known}
        names = {run.variant.name for run in known}
        for record in _load(folder, kind) if known else ():
            if isinstance(record, Run):
                joins = setting_label(record) in settings
            else:
                joins = isinstance(record, Cost) and record.variant.name in names
            if joins:
                found.setdefault(record.id, record)
    return [found[identifier] for identifier in sorted(found)]


def _load(results: Path, kind: type[R]) -> list[R]:
    return [cast(R, _read(path, kind)[0]) for path in _paths(results, kind)]


def _paths(results: Path, kind: type[Record]) -> list[Path]:
    folder = results / "records" / FOLDERS[_NAMES[kind]]
    try:  # glob would take a folder that cannot be read for an empty one
        paths = [path for path in folder.iterdir() if path.suffix == ".json"]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}") from error
    return sorted(path for path in paths if not path.name.startswith("."))


def load_all_records(results: Path) -> list[Record]:
    """Read the records of every kind, in the order of ``FOLDERS``.

    Raises:
        UserError: as :func:`load_records`.
    """
    return [record for kind in FOLDERS for record in load_records(results, KINDS[kind])]


def setting_label(run: Run) -> str:
    """Folder name of the run's setting, e.g. ``small-x4-scratch-data-4000steps-0a1b2c``.

    Of a task on image files, the task and its options come first. Runs of a synthetic task are of
    one setting whatever their learning rate: it is to be chosen for each variant.
    """
    config = run.config
    setting = config.setting
    if config.task is not UNSET and not config.image_task:
        setting.pop("learning_rate", None)
    name = (
        f"{config.preset}-x{config.scale}-{config.protocol}-{config.data.name}-{config.steps}steps"
    )
    if task := config.image_task:
        name = f"{task.label}-{name}"
    return f"{slug(name)}-{digest(setting)[:6]}"


def _undated(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key != "created"}


def _read(path: Path, kind: type[Record]) -> tuple[Record, dict[str, Any]]:
    """A record, and its content as it stands in the file, without the checksum."""
    content = read_json(path)
    schema = content.get("schema") if isinstance(content, dict) else None
    if isinstance(schema, int) and schema != SCHEMA:
        age, way = ("newer", "update attention-zoo") if schema > SCHEMA else ("older", _ADVICE)
        raise UserError(f"{path} has schema {schema}, {age} than this version's {SCHEMA}; {way}")
    try:
        record = shapes.typed(content)
    except ShapeError as error:
        raise UserError(f"{path} is no valid record: {error}; {_ADVICE}") from None
    if type(record) is not kind or record.id != path.stem:
        raise UserError(
            f"{path} holds {record.kind} record {record.id}: it was moved or renamed; "
            "put it back or delete it"
        )
    checksum = content.pop("sha256", None)
    if checksum is None:
        raise UserError(f"{path} is no valid record: key 'sha256' is missing; {_ADVICE}")
    if checksum != digest(content):
        raise UserError(
            f"{path} was changed after it was written (its content does not match 'sha256'); "
            f"{_ADVICE}"
        )
    return record, content
