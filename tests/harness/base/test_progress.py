"""Progress: count, rate, note, and where a bar is drawn or lines are printed instead."""

from __future__ import annotations

import math
import re
import time

import pytest
from rich.progress import Progress

from harness.base import progress
from harness.base.progress import progress_bar, timing_bar


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Output is taken for a wide terminal's."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")


def drawn(bar: Progress, *, seconds: float, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """What a bar of 8 steps leaves on stdout and stderr after two steps, so many seconds apart."""
    now = 0.0
    bar.get_time = lambda: now
    with bar:
        task = bar.add_task("Training", total=8, completed=2, loss=0.25)
        bar.update(task, completed=3)
        now += seconds
        bar.update(task, completed=4)
    return capsys.readouterr()


def test_brackets_in_a_name_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("steps", "{task.fields[at]}", stdout=True) as bar:
        bar.add_task("Mine [/x]", total=1, completed=1, at="[b]")
    out = capsys.readouterr().out
    assert "Mine [/x]" in out
    assert "[b]" in out


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize(("seconds", "rate"), [(0.5, "2.0 steps/s"), (1800, "2.0 steps/h")])
def test_count_rate_and_note(seconds: float, rate: str, capsys: pytest.CaptureFixture[str]) -> None:
    bar = progress_bar("steps", "L1 {task.fields[loss]:.4f}", stdout=True)
    out, err = drawn(bar, seconds=seconds, capsys=capsys)
    assert err == ""
    for part in ("Training ", "━", "4/8", rate, "L1 0.2500"):
        assert part in out


@pytest.mark.parametrize(
    ("seconds", "line"),
    [
        (0.5, "Training: 4 of 8 steps, 2.0 steps/s, 0:00:02 left, L1 0.2500\n"),
        (1800, "Training: 4 of 8 steps, 2.0 steps/h, 2:00:00 left, L1 0.2500\n"),
    ],
)
def test_without_a_terminal_a_plain_line_says_the_same(
    seconds: float, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bar = progress_bar("steps", "L1 {task.fields[loss]:.4f}", stdout=True)
    assert drawn(bar, seconds=seconds, capsys=capsys) == (line, "")
    bar = progress_bar("steps", "L1 {task.fields[loss]:.4f}", transient=True)
    assert drawn(bar, seconds=seconds, capsys=capsys) == ("", line)


def test_lines_come_at_the_start_each_minute_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However long a step takes: the second step is in work here when its line comes."""
    monkeypatch.setattr(progress, "FIRST_LINE", 0.05)
    monkeypatch.setattr(progress, "LINE_EVERY", 0.3)
    with progress_bar("steps", "L1 {task.fields[loss]:.1f}") as bar:
        task = bar.add_task("Mine", total=2, loss=math.nan)
        time.sleep(0.2)
        bar.update(task, completed=1, loss=0.5)
        time.sleep(0.3)
        bar.update(task, completed=2)
    first, second, last = capsys.readouterr().err.splitlines()
    assert first == "Mine: 0 of 2 steps"  # no rate yet, and no loss
    assert second.startswith("Mine: 1 of 2 steps")
    assert second.endswith("L1 0.5")
    assert last.startswith("Mine: 2 of 2 steps")
    assert " in 0:00:01" in last


def test_what_ends_early_says_how_far_it_came(capsys: pytest.CaptureFixture[str]) -> None:
    def stopped() -> None:
        with progress_bar("images", estimate=False) as bar:
            bar.add_task("Reading", total=4, completed=3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert capsys.readouterr().err == "Reading: 3 of 4 images\n"


def test_what_fails_at_once_prints_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("images") as bar:
        bar.add_task("Reading", total=4)
    assert capsys.readouterr() == ("", "")


def test_a_line_follows_as_soon_as_there_is_a_rate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "FIRST_LINE", 0.05)
    with progress_bar("steps") as bar:
        task = bar.add_task("Mine", total=1000)
        time.sleep(0.2)  # one line, although it is looked four times
        for step in (1, 2, 3):
            bar.update(task, completed=step)
            time.sleep(0.02)
        time.sleep(0.2)
    first, second, _ = capsys.readouterr().err.splitlines()
    assert first == "Mine: 0 of 1000 steps"
    assert re.fullmatch(r"Mine: \d of 1000 steps, [\d.]+ steps/s, 0:0\d:\d\d left", second)


def test_timed_runs_print_a_line_soon_and_each_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each with rate and time left."""
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with timing_bar() as on_run:
        for run in range(121):
            on_run(run / 240, "core: NLA [64]")
            now += 1.0
    assert capsys.readouterr().err.splitlines() == [
        "Timing core: NLA [64]: 0 %, 1.0 runs/s, 0:03:59 left",
        "Timing core: NLA [64]: 21 %, 1.0 runs/s, 0:03:09 left",
        "Timing core: NLA [64]: 42 %, 1.0 runs/s, 0:02:19 left",
    ]


@pytest.mark.parametrize(
    ("planned", "words"), [(90.0, ", 0:01:[0-3][0-9] left as planned"), (None, "")]
)
def test_a_long_first_run_is_told_meanwhile(
    planned: float | None,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(progress, "_LATE_FIRST_LINE", 0.01)
    monkeypatch.setattr(progress, "LINE_EVERY", 0.1)

    def next_line() -> str:
        end = time.monotonic() + 20
        while not (text := capsys.readouterr().err) and time.monotonic() < end:
            time.sleep(0.01)
        return text.splitlines()[-1]

    with timing_bar(planned) as on_run:
        assert re.fullmatch(f"Timing: no run has ended yet{words}", next_line())
        on_run(0.0, "core: NLA")
        capsys.readouterr()
        assert re.fullmatch(f"Timing core: NLA: no run has ended yet{words}", next_line())


@pytest.mark.usefixtures("terminal")
def test_timed_runs_draw_a_bar_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with timing_bar() as on_run:
        on_run(0.5, "core: NLA")
    out, err = capsys.readouterr()
    assert (out, "core: NLA" in err, "50%" in err) == ("", True, True)
