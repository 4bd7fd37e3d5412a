"""Whether a folder is a complete entry for the leaderboard: docs/leaderboard.md has the rules.

An entry is a module's file and what ``harness.probe --results FOLDER`` recorded of it. Nothing in
the records is taken at its word that can be computed again: which runs there must be, the digest of
the module's file, the operation counts. The contract is run by the door.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec
import torch

from ..base.errors import UserError
from ..config import profile
from ..config.variants import CORE_CHANNELS, Variant
from ..measuring.flops import count
from ..records.origin import plural
from ..records.shapes import UNSET, Config, Cost, Latency, Record, RecordedVariant, Run
from ..records.store import FOLDERS, load_record, load_records, record_path
from .options import TrainingOptions

if TYPE_CHECKING:
    from .jobs import Job
    from .probe import Cell

R = TypeVar("R", bound=Record)

#: Side of the maps at which GFLOPs and milliseconds are taken.
SIDE = 100
# Relative difference of two counts of the same operations.
_TOLERANCE = 1e-6


class Entry:
    """The records of an entry, and what they lack.

    Attributes:
        folder: of the entry.
        module: name of the module as the records have it, ``file:Class``.
        variants: the module with each of its options that runs of the profile have.
    """

    def __init__(self, folder: Path, find_cells: Callable[..., list[Cell]]) -> None:
        """Read the records and import the module.

        Args:
            folder: of the entry.
            find_cells: :func:`.probe.find_cells`, which says what runs there must be.

        Raises:
            UserError, AttentionError: there is no entry to speak of, in a line.
        """
        self.folder, self._find_cells = folder, find_cells
        self._runs = [run for run in load_records(folder, Run) if _of_profile(run)]
        self._runs = [run for run in self._runs if record_path(folder, Run, run.id).exists()]
        names = sorted({run.variant.name for run in self._runs})
        if len(names) != 1 or ":" not in names[0]:
            found = f": these are of {', '.join(names)}" if names else ""
            raise UserError(
                f"{folder / 'records' / 'runs'} needs runs of one module of your own{found}; make "
                f"them by {probe_command('FILE:CLASS', folder)}"
            )
        (self.module,) = names
        self._import()
        self.variants = list(dict.fromkeys(_variant(run.variant) for run in self._runs))

    @property
    def source(self) -> Path:
        """The module's file."""
        return self.folder / f"{self.module.partition(':')[0].replace('.', '/')}.py"

    def missing(self) -> Iterator[str]:
        """Lines, each naming one thing that is missing or wrong, as they are found."""
        yield from self._imported_beside()
        yield from self._of_another_source()
        for variant in self.variants:
            yield from self._missing_runs(variant)
            yield from self._missing_cost(variant)
            yield from self._missing_times(variant)
        yield from self._without_machine()

    def _import(self) -> None:
        """Import the module from the folder, whatever else has its name."""
        if not self.source.exists():
            raise UserError(f"{self.source} is missing: the records are of {self.module}")
        sys.path.insert(0, str(self.folder.resolve()))
        module = Variant(self.module)
        if not module.has_core:
            raise UserError(
                f"{self.module} is a plain module without a core to count and to time: subclass "
                "attention_zoo.Attention"
            )
        path = module.source_file
        if path is None or path.resolve() != self.source.resolve():
            raise UserError(f"{self.module} is imported from {path}, not from {self.source}")

    def _imported_beside(self) -> Iterator[str]:
        """Other files of the folder that the module imports: its digest is of one file."""
        paths = (getattr(module, "__file__", None) for module in [*sys.modules.values()])
        files = {Path(path).resolve() for path in paths if path} - {self.source.resolve()}
        for path in sorted(files):
            if path.is_relative_to(self.folder.resolve()):
                yield (
                    f"{path.name}: the module imports it, but no digest covers it: put all into "
                    f"{self.source.name}"
                )

    def _of_another_source(self) -> Iterator[str]:
        """Records of another version of the module's file than that of the entry."""
        now = Variant(self.module).source_sha256
        for kind in (Run, Cost, Latency):
            others = [r for r in self._records(kind) if any(d != now for d in self._digests(r))]
            if others:
                many = plural(len(others), "record")
                yield (
                    f"{self.source.name}: {many} in records/{FOLDERS[others[0].kind]} of another "
                    f"version of it ({others[0].id} first): make them again"
                )

    def _missing_runs(self, variant: Variant) -> Iterator[str]:
        devices = sorted({run.config.device for run in self._runs})
        settings = profile.PROFILE
        options = TrainingOptions(results=self.folder)
        cells = [
            self._find_cells([variant], settings, profile.SEEDS, options, torch.device(device), [])
            for device in devices
        ]
        for setting, *on_devices in zip(settings, *cells, strict=True):
            lines = min((self._lacking(cell) for cell in on_devices), key=len)
            yield from (f"{variant.label}, {setting.label}: {line}" for line in lines)

    def _lacking(self, cell: Cell) -> list[str]:
        """What a setting lacks.

        A rate without a run is one at which the training diverged, if another has all seeds.
        """
        known = {job.config.learning_rate: job for job in cell.first if self._has(job)}
        complete = [rate for rate in known if all(map(self._has, cell.others(rate)))]
        wrong = [
            f"{job.config.run_id} holds another run than its name says: make it again"
            for job in [*known.values(), *(one for rate in complete for one in cell.others(rate))]
            if not self._is_of(job)
        ]
        if complete and len(known) > 1:
            return wrong
        absent = [job for job in cell.first if job not in known.values()]
        if (rate := cell.best()) is not None and not complete:
            absent += [job for job in cell.others(rate) if not self._has(job)]
        return [*wrong, *(f"no run with {job.note}, seed {job.config.seed}" for job in absent)]

    def _has(self, job: Job) -> bool:
        return record_path(self.folder, Run, job.config.run_id).exists()

    def _is_of(self, job: Job) -> bool:
        """Whether a record holds the run that its id, a hash of all this, names."""
        record = load_record(self.folder, Run, job.config.run_id)
        wanted, options = _through_json([job.config.setting, job.config.variant.recorded])
        named = (record.variant.name, record.variant.options)
        return record.config == msgspec.convert(wanted, Config) and named == (self.module, options)

    def _missing_cost(self, variant: Variant) -> Iterator[str]:
        costs = [
            record
            for record in self._records(Cost)
            if _variant(record.variant) == variant and (record.height, record.width) == (SIDE, SIDE)
        ]
        if not costs:
            yield f"{variant.label}: no record of operation counts at {SIDE}x{SIDE}"
            return
        try:
            now = count(variant, SIDE, SIDE)["parts"]["core"]["paper_gflops"]
        except Exception as error:  # it runs the entry's code
            text = " ".join(f"{type(error).__name__}: {error}".split())
            yield f"{variant.label}: its operations cannot be counted again: {text}"
            return
        for record in costs:
            recorded = record.parts.core.paper_gflops
            if recorded is None or abs(recorded - now) > _TOLERANCE * abs(now):
                yield (
                    f"{variant.label}: {record.id} has {recorded} GFLOPs of the core, now there are"
                    f" {now}: count again"
                )

    def _missing_times(self, variant: Variant) -> Iterator[str]:
        sessions = [timed for r in self._records(Latency) if variant in (timed := _timed(r))]
        if not sessions:
            yield (
                f"{variant.label}: no time of the core at {SIDE}x{SIDE}, forward, on a CPU in "
                "float32"
            )
        elif not any(Variant("nla") in timed for timed in sessions):
            yield f"{variant.label}: NLA was not timed beside it, which tells the machine's speed"

    def _without_machine(self) -> Iterator[str]:
        for kind in (Run, Cost, Latency):
            for record in self._records(kind):
                if lacking := _unnamed(record):
                    yield f"{record.id} does not name its machine: no {' and no '.join(lacking)}"

    def _records(self, kind: type[R]) -> list[R]:
        """The module's records of a kind: those of others have no part in the entry."""
        if kind is Run:
            return cast(list[R], self._runs)
        return [record for record in load_records(self.folder, kind) if self._digests(record)]

    def _digests(self, record: Record) -> list[str | None]:
        """What a record says of the module's file, at each place where it has the module."""
        if isinstance(record, Run):
            return [record.source_sha256]
        named = [row.variant for row in record.rows] if isinstance(record, Latency) else []
        if isinstance(record, Cost):
            named = [record.variant]
        return [one.source_sha256 for one in named if one.name == self.module]


def _through_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _variant(recorded: RecordedVariant) -> Variant:
    """The variant as a user names it: the tasks set ``res_scale``."""
    return Variant(recorded.name, recorded.changed or {}).without_weight


def _timed(session: Latency) -> set[Variant]:
    """The variants whose core it timed at the leaderboard's size."""
    return {
        _variant(row.variant)
        for row in session.rows
        if row.mean_ms is not None
        and (row.part, row.passes, row.device, row.dtype) == ("core", "forward", "cpu", "float32")
        and (row.height, row.width, row.batch, row.channels) == (SIDE, SIDE, 1, CORE_CHANNELS)
    }


def _of_profile(run: Run) -> bool:
    config = run.config
    return (
        config.task is not UNSET
        and config.preset == profile.PROFILE_PRESET
        and config.task.name in {one.task for one in profile.PROFILE}
    )


def _unnamed(record: Record) -> list[str]:
    """What of the machine a record does not name."""
    machine = record.machine
    known = {
        "processor": machine.cpu and machine.cpu.model,
        "GPU": machine.device != "cuda" or (machine.gpu or {}).get("name"),
        "version of torch": (machine.packages or {}).get("torch"),
        "version of attention-zoo": machine.code and machine.code.version,
    }
    return [what for what, value in known.items() if not value]


def probe_command(module: str, folder: Path) -> str:
    """The command that makes an entry's records."""
    seeds = " ".join(map(str, profile.SEEDS))
    return f"python -m harness.probe --attn {module} --seeds {seeds} --results {folder}"
