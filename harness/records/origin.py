"""Where records come from: time, machine and code, in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC
from typing import Any, TypeVar

from .shapes import Code, Cpu, Machine, Record, Torch

R = TypeVar("R", bound=Record)


def by_age(records: Iterable[R]) -> list[R]:
    """Oldest first; records of one second in the order of their ids."""
    return sorted(records, key=lambda record: (record.when, record.id))


def describe_machine(record: Record) -> str:
    """GPU or CPU model, threads, how they wait, allocator and torch version, in a few words."""
    machine = record.machine
    cpu, torch = machine.cpu or Cpu(), machine.torch or Torch()
    text = cpu.model or "unknown CPU"
    if cpu.vector_instructions:  # virtual machines name processors of several generations alike
        text = f"{text} with {cpu.vector_instructions}"
    if torch.threads:
        text += f", {plural(torch.threads, 'thread')}"
        if torch.wait_policy:
            text += f" (waiting: {torch.wait_policy.lower()})"
    if torch.allocator:
        text += f", {torch.allocator}"
    gpu = (machine.gpu or {}).get("name")
    version = (machine.packages or {}).get("torch")
    return (f"{gpu} ({text})" if gpu else text) + (f", torch {version}" if version else "")


def made_here(record: Record, here: Machine) -> bool:
    """Whether times of a record stand for this machine, its threads, memory, packages and code."""
    one, two = (
        (
            *(machine.gpu, machine.cpu, machine.packages, machine.code),
            *(torch.threads, torch.wait_policy, torch.allocator),
        )
        for machine in (record.machine, here)
        for torch in (machine.torch or Torch(),)
    )
    return one == two


def rounding_of(record: Record) -> tuple[Any, ...]:
    """What rounding depends on: model of CPU and GPU, vector instructions, whose products the
    large ones are, kernels in C or not, number of threads, version of torch.

    How threads wait, which decides on tiles, is left out: older records do not say.
    """
    machine = record.machine
    cpu, torch = machine.cpu or Cpu(), machine.torch or Torch()
    return (
        cpu.model,
        cpu.vector_instructions,
        (machine.gpu or {}).get("name"),
        torch.threads,
        (machine.packages or {}).get("torch"),
        bool(torch.products_by_onednn),
        bool(machine.compiler),  # older records: no kernels in C
    )


def describe_code(record: Record) -> str:
    """Version, and commit where known, of the code that wrote a record."""
    code = record.machine.code or Code()
    return f"{code.version or 'unknown'}{f' ({code.commit})' if code.commit else ''}"


def origin_note(records: Sequence[Record], what: str) -> str:
    """When, on which machines and by which code the records were made, in a sentence."""
    days = sorted({record.when.astimezone(UTC).date().isoformat() for record in records})
    dates = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    machines = "; ".join(sorted({describe_machine(r) for r in records}))
    codes = ", ".join(sorted({describe_code(r) for r in records}))
    return f"{what}: {dates}, on {machines}; attention-zoo {codes}."


def plural(count: int, noun: str) -> str:
    """E.g. ``1 seed``, ``3 seeds``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
