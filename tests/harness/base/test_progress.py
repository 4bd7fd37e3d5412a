"""Progress bars: count, rate, note, and where they are drawn."""

from __future__ import annotations

import pytest
from rich.progress import Progress

from harness.base.progress import progress_bar


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


@pytest.mark.parametrize(("seconds", "rate"), [(0.5, "2.0 steps/s"), (1800, "2.0 steps/h")])
def test_count_rate_and_note(
    seconds: float, rate: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    bar = progress_bar("steps", "L1 {task.fields[loss]:.4f}", stdout=True)
    out, err = drawn(bar, seconds=seconds, capsys=capsys)
    assert err == ""
    assert out.startswith("Training ")
    for part in ("4/8", rate, "L1 0.2500"):
        assert part in out


def test_a_bar_is_on_stderr_and_a_transient_one_on_terminals_only(
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, err = drawn(progress_bar("steps"), seconds=1, capsys=capsys)
    assert out == ""
    assert "4/8" in err
    assert drawn(progress_bar("steps", transient=True), seconds=1, capsys=capsys) == ("", "")
