"""What the records hold, in order: variants, settings of comparable runs, their description.

Tables and figures start from here.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from attention_zoo import AttentionError, find_attention, is_built_in, list_attentions

from .config import told_options, untold_options
from .records import canonical_json, setting_label, setting_of
from .statistics import Summary, summarise

Record = dict[str, Any]

#: Test set of every PSNR in the paper's Tables 4 to 6.
PAPER_SET = "Urban100"
#: Presets, nearest to the paper's setting first.
PRESETS = ("paper", "base", "small", "quick")
#: Channels at which the paper counts and times each part.
PART_CHANNELS = {"core": 64, "module": 256}

# -- variants and the paper's rows ----------------------------------------------------------


@cache
def paper_table(number: int) -> list[dict[str, str]]:
    """The paper's table as printed, one mapping a row; "" where it prints a dash."""
    path = Path(__file__).parent / "paper" / f"table{number}.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def variant_key(variant: Mapping[str, Any]) -> str:
    """What tells variants apart: the name and all options, those left out at their defaults."""
    options = _defaults(variant["name"]) | variant["options"]
    return canonical_json([variant["name"], options])


def variant_labels(variants: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Row label of each variant by its key.

    It is the recorded label, followed by the options that it does not tell: those that differ
    from the module's defaults or, for a module that is not installed, among equal labels. The
    label of a user's module that is another variant's too, or could be one of ``attention_zoo``'s,
    is followed by the module's name. So no variant is taken for another, or for the paper's row.
    """
    by_key = {variant_key(variant): variant for variant in variants}
    namesakes: dict[str, list[Mapping[str, Any]]] = {}
    for variant in by_key.values():
        namesakes.setdefault(variant["label"], []).append(variant)
    labels = {}
    for key, variant in by_key.items():
        told = _untold_options(variant, namesakes[variant["label"]])
        labels[key] = told_options(variant["label"], told)
    built_in, shared = built_in_attentions(), Counter(labels.values())
    return {
        key: f"{label}, {by_key[key]['name']}"
        if by_key[key]["name"] not in built_in and (shared[label] > 1 or _is_built_in_label(label))
        else label
        for key, label in labels.items()
    }


def built_in_attentions() -> list[str]:
    """Names of the modules of ``attention_zoo`` itself."""
    # A user's may be registered too, by the decorator.
    return [n for n in list_attentions(installed=False) if is_built_in(find_attention(n))]


def _is_built_in_label(label: str) -> bool:
    """Whether a module of ``attention_zoo`` gives the label, with whatever options."""
    formats = (find_attention(name).label_format for name in built_in_attentions())
    return any(
        re.fullmatch(".+".join(map(re.escape, re.split("{.*?}", text))), label) for text in formats
    )


def distinct_labels(variants: Sequence[Mapping[str, Any]]) -> list[str]:
    """Row label of each of a row of panels; those that several share are numbered."""
    labels = variant_labels(variants)
    names = [labels[variant_key(variant)] for variant in variants]
    return [
        name if names.count(name) == 1 else f"{name}, run {i}" for i, name in enumerate(names, 1)
    ]


def _untold_options(
    variant: Mapping[str, Any], namesakes: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    options, defaults = variant["options"], _defaults(variant["name"])
    if not defaults:
        return {
            option: value
            for option, value in options.items()
            if any(other["options"].get(option) != value for other in namesakes)
        }
    return untold_options(find_attention(variant["name"]).label, options, defaults)


@cache
def _defaults(name: str) -> dict[str, Any]:
    """Default options of a registered module; empty for a user's own, which is not imported."""
    if ":" in name:
        return {}
    try:
        options = find_attention(name).options()
    except (AttentionError, ImportError):
        return {}
    return {o: json.loads(json.dumps(p.default, default=str)) for o, p in options.items()}


def row_order(
    labels: Mapping[str, str], paper_labels: Sequence[str]
) -> list[tuple[str, str | None]]:
    """(label, key) of each row: the paper's in its order, key None if not measured, then others."""
    keys = {label: key for key, label in labels.items()}
    further = sorted(keys.keys() - set(paper_labels), key=_natural)
    return [(label, keys.get(label)) for label in (*paper_labels, *further)]


def _natural(label: str) -> list[tuple[str, int]]:
    """Sort key under which m8 comes before m16."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", label)]


# -- what was measured ------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """The runs of one setting, all comparable, and the operation counts of every variant."""

    runs: Sequence[Record]
    costs: Sequence[Record]

    @property
    def label(self) -> str:
        return setting_label(self.runs[0]) if self.runs else "costs-only"

    @property
    def config(self) -> dict[str, Any]:
        return setting_of(self.runs[0]) if self.runs else {}

    @property
    def test_sets(self) -> list[str]:
        return list(self.config["data"]["test"]) if self.runs else []

    @property
    def test_set(self) -> str | None:
        """Where Tables 4 to 6 are measured."""
        return self.nearest_set(PAPER_SET)

    def nearest_set(self, name: str) -> str | None:
        """The paper's test set where the setting has it, otherwise its first."""
        sets = self.test_sets
        return name if name in sets else next(iter(sets), None)

    @cached_property
    def runs_of(self) -> dict[str, list[Record]]:
        """Runs by variant key, one a seed, in the order of seeds; of repeats the newest."""
        newest = {(variant_key(r["variant"]), r["config"]["seed"]): r for r in by_age(self.runs)}
        groups: dict[str, list[Record]] = {}
        for (key, _), run in sorted(newest.items()):
            groups.setdefault(key, []).append(run)
        return groups

    @cached_property
    def cost_of(self) -> dict[str, Record]:
        """Operation counts at the paper's sizes by variant key; the newest."""
        return {
            variant_key(cost["variant"]): cost
            for cost in by_age(self.costs)
            if (cost["height"], cost["width"]) == (100, 100)
            and all(cost["parts"][part]["channels"] == c for part, c in PART_CHANNELS.items())
        }

    @cached_property
    def labels(self) -> dict[str, str]:
        return variant_labels(r["variant"] for r in (*self.runs, *self.costs))

    @cached_property
    def counted_labels(self) -> dict[str, str]:
        """:attr:`labels` of what is worth a row of operation counts.

        Left out is a variant that was not trained in this setting and whose counts repeat those
        of the variant with the same recorded label: an option that changes no count.
        """
        parts = {
            label: self.cost_of.get(key, {}).get("parts") for key, label in self.labels.items()
        }
        recorded = {key: cost["variant"]["label"] for key, cost in self.cost_of.items()}
        return {
            key: label
            for key, label in self.labels.items()
            if key in self.runs_of
            or label == recorded.get(key)
            or parts[label] != parts.get(recorded.get(key, ""))
        }

    @cached_property
    def trained(self) -> list[tuple[str, str]]:
        """(label, key) of every trained variant, Table 4's first."""
        labels = {key: label for key, label in self.labels.items() if key in self.runs_of}
        order = row_order(labels, [row["method"] for row in paper_table(4)])
        return [(label, key) for label, key in order if key]

    @cached_property
    def baseline(self) -> list[Record]:
        found = (runs for runs in self.runs_of.values() if runs[0]["variant"]["name"] == "none")
        return next(found, [])

    def summary(
        self, key: str | None, test_set: str | None, metric: str = "psnr"
    ) -> Summary | None:
        """Quality on a test set, the baseline's without a difference; None if not trained."""
        runs = self.runs_of.get(key or "", [])
        if not runs or test_set is None:
            return None
        return summarise(runs, [] if runs is self.baseline else self.baseline, test_set, metric)

    @cached_property
    def psnr_by_key(self) -> dict[str, Summary]:
        """PSNR of every trained variant on :attr:`test_set`."""
        found = {key: self.summary(key, self.test_set) for key in self.runs_of}
        return {key: summary for key, summary in found.items() if summary}

    def bicubic(self, test_set: str, metric: str = "psnr") -> Summary:
        """Quality of bicubic up-sampling, as the run records have it."""
        like = self.baseline or next(iter(self.runs_of.values()))
        runs = [_bicubic_run(run, test_set) for run in like]
        return replace(
            summarise(runs, self.baseline, test_set, metric), std_over_seeds=None
        )  # the same image whatever the seed


def _bicubic_run(run: Record, test_set: str) -> Record:
    images = [
        {"name": i["name"], "psnr": i["bicubic_psnr"], "ssim": i["bicubic_ssim"]}
        for i in run["quality"][test_set]["images"]
    ]
    return {"config": run["config"], "quality": {test_set: {"images": images}}}


def by_age(records: Iterable[Record]) -> list[Record]:
    """Oldest first; records of one second in the order of their ids."""
    return sorted(records, key=lambda r: (datetime.fromisoformat(r["created"]), r["id"]))


def find_settings(runs: Sequence[Record], costs: Sequence[Record]) -> list[Setting]:
    """One Setting for each configuration among the runs, nearest to the paper's first.

    Nearest is the larger preset, then more runs, then the label. Without runs it is one Setting
    of the costs alone; without any record, none.
    """
    groups: dict[str, list[Record]] = {}
    for run in runs:
        groups.setdefault(setting_label(run), []).append(run)
    settings = [Setting(group, costs) for group in groups.values()]
    settings.sort(key=lambda s: (_preset_rank(s.config["preset"]), -len(s.runs), s.label))
    return settings or ([Setting([], costs)] if costs else [])


def _preset_rank(preset: str) -> int:
    return PRESETS.index(preset) if preset in PRESETS else len(PRESETS)


# -- how it is described ----------------------------------------------------------------------


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
    """What rounding depends on: model of CPU and GPU, vector instructions, whose products the
    large ones are, kernels in C or not, number of threads, version of torch.

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
    by_onednn = bool(_at(machine, "torch", "products_by_onednn"))  # older records: by MKL
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
