"""Where records come from: time, machine and code, in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

Record = dict[str, Any]


def by_age(records: Iterable[Record]) -> list[Record]:
    """Oldest first; records of one second in the order of their ids."""
    return sorted(records, key=lambda r: (datetime.fromisoformat(r["created"]), r["id"]))


def describe_machine(record: Record) -> str:
    """GPU or CPU model, threads, how they wait, allocator and torch version, in a few words."""
    machine = record["machine"]
    cpu = _at(machine, "cpu", "model") or "unknown CPU"
    vectors = _at(machine, "cpu", "vector_instructions")
    if vectors:  # virtual machines name processors of several generations alike
        cpu = f"{cpu} with {vectors}"
    threads = _at(machine, "torch", "threads")
    text = f"{cpu}, {plural(threads, 'thread')}" if threads else str(cpu)
    policy = _at(machine, "torch", "wait_policy")
    if threads and policy:
        text += f" (waiting: {str(policy).lower()})"
    allocator = _at(machine, "torch", "allocator")
    if allocator:
        text += f", {allocator}"
    gpu = _at(machine, "gpu", "name")
    torch = _at(machine, "packages", "torch")
    return (f"{gpu} ({text})" if gpu else text) + (f", torch {torch}" if torch else "")


def rounding_of(record: Record) -> tuple[Any, ...]:
    """What rounding depends on: model of CPU and GPU, vector instructions, the library of large
    products, kernels in C or not, number of threads, version of torch.

    How threads wait, which decides on tiles, is left out: older records do not say.
    """
    machine = record["machine"]
    at = (
        ("cpu", "model"),
        ("cpu", "vector_instructions"),
        ("gpu", "name"),
        ("torch", "threads"),
        ("packages", "torch"),
    )
    by_onednn = bool(_at(machine, "torch", "products_by_onednn"))  # in some older records
    compiled = bool(_at(machine, "compiler"))  # older records: no kernels in C
    return (*(_at(machine, *path) for path in at), by_onednn, compiled)


def describe_code(record: Record) -> str:
    """Version, and commit where known, of the code that wrote a record."""
    version, commit = (_at(record["machine"], "code", key) for key in ("version", "commit"))
    return f"{version or 'unknown'}{f' ({commit})' if commit else ''}"


def origin_note(records: Sequence[Record], what: str) -> str:
    days = sorted({_day(r) for r in records})
    dates = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    machines = "; ".join(sorted({describe_machine(r) for r in records}))
    codes = ", ".join(sorted({describe_code(r) for r in records}))
    return f"{what}: {dates}, on {machines}; attention-zoo {codes}."


def _day(record: Record) -> str:
    return datetime.fromisoformat(record["created"]).astimezone(UTC).date().isoformat()


def _at(mapping: Any, *keys: str) -> Any:
    for key in keys:
        mapping = mapping.get(key) if isinstance(mapping, dict) else None
    return mapping


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
