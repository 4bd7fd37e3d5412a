"""Whether an attention module, or a task, meets this suite's contract.

``python -m harness.check my_package.my_module:MyAttention [--my-option 3]`` prints a verdict for
each check of :mod:`attention_zoo.contract`, and how time grows with the number of positions.
``python -m harness.check --task my_package.my_task:MyTask`` does so for the checks of
:mod:`harness.measuring.contract`. ``python -m harness.check --entry FOLDER`` says whether a folder
is a complete entry for the leaderboard (docs/leaderboard.md).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from attention_zoo import AttentionError, find_attention
from attention_zoo.contract import Subject, Verdict, judge

from .base.commands import command_line, usage_errors
from .base.errors import UserError
from .base.names import nearest
from .config.options import own_options, parse
from .config.rows import TableName
from .config.variants import Variant
from .tasks.options import has_task, parse_with_task, refuse

#: Feature maps on which growth is measured: large enough that a call's fixed cost is small.
SIDES = (96, 128, 192, 256)
# Exponents of the growth that a class may state, and how far the measured exponent may exceed it:
# time grows faster than the operations once tensors outgrow a cache.
_EXPONENTS = {"0": 0.0, "O(1)": 0.0, "O(N)": 1.0, "O(N√N)": 1.5, "O(N²)": 2.0}
_MARGIN = 0.5
_MARKS = {True: ("ok", "green"), False: ("FAILED", "bold red"), None: ("skipped", "yellow")}


@dataclass(kw_only=True)
class Options:
    """Run the suite's contract on a module (shapes, gradients, determinism, precision, cost), on
    a task (shapes, determinism, references, scores), or on an entry for the leaderboard.

    Examples:
      python -m harness.check my_package.my_module:MyAttention --my-option 3
      python -m harness.check nlsa --rounds 2
      python -m harness.check --task my_package.my_task:MyTask --train
      python -m harness.check --entry entries/my_attention
    """

    channels: int = 16
    """Channels C of most checks."""
    skip_timing: bool = False
    """Do not measure how time grows with the number of positions."""
    attn: tuple[str, ...] = ()
    """The modules, as without --attn."""
    rows: TableName | None = None
    """The modules of one of the paper's tables, or rivals."""
    task: str | None = None
    """A synthetic task, recall or your own as package.module:Class; its options follow."""
    train: bool = False
    """With --task: train none and oracle too; they must reach floor and ceiling. Minutes."""
    steps: int | None = None
    """With --train: training steps; the preset's by default."""
    entry: Path | None = None
    """Folder of an entry for the leaderboard: a module's file and its records/. Its code is run."""


def growth(variant: Variant) -> Verdict:
    """Compare the growth of the core's time with N to the growth that the class states."""
    import torch

    from .measuring.scaling import measure
    from .reporting.scaling import fit_exponent

    record = measure(
        [variant],
        device=torch.device("cpu"),
        sizes=[(side, side) for side in SIDES],
        max_seconds=2.0,
        size_seconds=1.0,
    )
    times = {row.positions: row.median_ms for row in record.rows if row.median_ms is not None}
    stated = find_attention(variant.name).complexity or "nothing"
    name = "growth of time"
    fit = fit_exponent(list(times), list(times.values()))
    if fit is None:
        return Verdict(name, None, f"too slow to time at {len(SIDES)} sizes; stated: {stated}")
    detail = f"as N^({fit}), {len(times)} sizes; stated: {stated}"
    exponent = _EXPONENTS.get(stated)
    faster = exponent is not None and fit.slope - 2 * fit.error > exponent + _MARGIN
    return Verdict(name, not faster, detail + ", which it exceeds" * faster)


def examine(variant: Variant, options: Options, console: Console) -> bool:
    """Print the verdicts on a variant; gives whether all checks passed."""
    console.print(Text(f"{variant.label}: {variant.name}", style="bold"))
    subject = Subject(variant.name, dict(variant.options), options.channels)
    subject.build()
    failed = _report(judge(subject), console)
    if not variant.has_core:
        _report([Verdict("growth of time", None, "a plain module has no core to time")], console)
    elif not options.skip_timing and not failed:
        failed += _report([growth(variant)], console)
    return _conclude(failed, console)


def examine_entry(argv: Sequence[str], console: Console) -> bool:
    """Print the contract's verdict on an entry's module, then yes, or what the entry lacks."""
    import tyro

    with usage_errors(Options):
        options = tyro.cli(Options, args=argv, prog="python -m harness.check")
    others = ("attn", "rows", "task", "train", "steps")
    refuse(argv, others, "modules and tasks, not to --entry")
    _require_channels(options)
    assert options.entry is not None
    if not options.entry.is_dir():
        raise UserError(f"{options.entry} is no folder: --entry takes that of an entry")
    from .runs.entry import Entry
    from .runs.probe import find_cells

    lines: list[str] = []
    try:
        entry = Entry(options.entry, find_cells)
        good = [examine(variant, options, console) for variant in entry.variants]
        lines += [] if all(good) else ["the contract: a check failed, see above"]
        lines += entry.missing()
    except (UserError, AttentionError) as error:
        lines.append(str(error))
    for line in lines:
        console.print(Text.assemble(("missing  ", "bold red"), line))
    console.print("Yes, the entry is complete." if not lines else f"{len(lines)} missing")
    return not lines


def examine_task(argv: Sequence[str], console: Console) -> bool:
    """Print the verdicts on the task that a command line names; gives whether all passed."""
    options, task = parse_with_task(Options, argv, "harness.check")
    refuse(argv, ("attn", "rows", "channels", "skip_timing"), "modules")
    if not options.train:
        refuse(argv, ("steps",), "--train")
    from .measuring.contract import TaskSubject, judge
    from .runs.instrument import read_instrument
    from .runs.options import RunOptions

    console.print(Text(task.name, style="bold"))
    values = {option: getattr(options, option) for option in task.options()}
    failed = _report(judge(TaskSubject(task.name, values, own_options(RunOptions))), console)
    if options.train and not failed:
        failed += _report(read_instrument(task, steps=options.steps), console)
    return _conclude(failed, console)


def _require_channels(options: Options) -> None:
    if options.channels < 1:
        raise UserError(f"--channels must be at least 1, got {options.channels}")


def _report(verdicts: Iterable[Verdict], console: Console) -> int:
    """Print verdicts as they come; gives how many are failures."""
    failed = 0
    for verdict in verdicts:
        failed += verdict.passed is False
        mark, style = _MARKS[verdict.passed]
        line = Text(f"  {mark:8}", style=style)
        line.append(f"{verdict.check}: {verdict.detail}", style="default")
        console.print(line)
    return failed


def _conclude(failed: int, console: Console) -> bool:
    console.print(f"{failed} failed" if failed else "All contract checks passed.")
    return not failed


def _arguments(argv: Sequence[str]) -> list[str]:
    """Put ``--attn`` before names that come before the first option."""
    words = list(argv)
    if words and not words[0].startswith("-"):
        words.insert(0, "--attn")
    if not any(word.startswith(("--attn", "--rows", "-h", "--help")) for word in words):
        for word in words:
            _refuse_unknown(word)
        raise UserError(
            "name a module: python -m harness.check my_package.my_module:MyAttention; or a task: "
            "--task my_package.my_task:MyTask"
        )
    return words


def _refuse_unknown(word: str) -> None:
    option = word[2:].partition("=")[0].replace("-", "_").removeprefix("no_")
    known = own_options(Options) | {"task"}
    if word.startswith("--") and option not in known:
        near = nearest(option, known)
        hint = f" (did you mean --{near.replace('_', '-')}?)" if near else ""
        raise UserError(f"unknown option {word.partition('=')[0]}{hint}; see --help")


@command_line
def main() -> None:
    """Entry point of ``python -m harness.check``; exit status 1 if a check failed."""
    argv, console = sys.argv[1:], Console(soft_wrap=True, highlight=False)
    if any(word.partition("=")[0] == "--entry" for word in argv):
        if not examine_entry(argv, console):
            raise SystemExit(1)
        return
    if has_task(argv):
        if not examine_task(argv, console):
            raise SystemExit(1)
        return
    options, variants = parse(Options, _arguments(argv), "harness.check")
    refuse(argv, ("train", "steps"), "--task")
    _require_channels(options)
    for variant in variants:  # a bad option shows before any check
        variant.create(options.channels)
    good = [examine(variant, options, console) for variant in variants]
    if not all(good):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
