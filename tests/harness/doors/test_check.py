"""``harness.check`` and ``harness.new`` as a user meets them."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from attention_zoo import registry
from harness import check, new
from harness.config.options import parse
from harness.reporting.scaling import Fit
from harness.runs.options import RunOptions as Options


def run(module: object, monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """Exit status of a command."""
    monkeypatch.setattr(sys, "argv", ["the command", *map(str, words)])
    try:
        module.main()  # type: ignore[attr-defined]
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_a_sound_module(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "SIDES", (16, 24, 32))
    assert run(check, monkeypatch, "enlca", "--m", 4) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("ENLCA-m4: enlca\n")
    assert "ok      cost equals the counter: " in printed
    assert "growth of time: as N^(" in printed
    assert "stated: O(N)" in printed
    assert printed.endswith("All contract checks passed.\n")


def test_a_module_that_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], import_folder: Path
) -> None:
    (import_folder / "somebodys.py").write_text(
        "from attention_zoo import Attention, Cost\n"
        "class Bad(Attention):\n"
        "    def project(self, x): return x, x, x\n"
        "    def attend(self, q, k, v): return v / 0\n"
        "    def cost(self, height, width): return Cost(projections=0, core=0, executed=0)\n"
    )
    assert run(check, monkeypatch, "somebodys:Bad", "--skip-timing") == 1
    printed = capsys.readouterr().out
    assert "FAILED  any size: 1x1, batch 1, evaluation: not finite" in printed
    assert "growth" not in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a module"),
        (["nothing.here:Class"], "cannot import 'nothing.here'"),
        (["json:JSONDecoder"], "json:JSONDecoder is not a subclass of attention_zoo.Attention"),
        (["nla", "--m", 3], "nla has no option --m"),
        (["nla", "--channels", 0], "--channels must be at least 1"),
        (["typo:Class"], "cannot import 'typo' for attention 'typo:Class': SyntaxError: "),
        (["fails:Fails"], "fails:Fails cannot be built with 16 channels: ZeroDivisionError"),
    ],
)
def test_mistakes_are_told_in_a_line(
    words: list[object],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    import_folder: Path,
) -> None:
    (import_folder / "typo.py").write_text("class Class(:\n")
    (import_folder / "fails.py").write_text(
        "from attention_zoo import Attention\n"
        "class Fails(Attention):\n"
        "    def __init__(self, channels):\n"
        "        1 / 0\n"
    )
    assert run(check, monkeypatch, *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_the_template_passes_as_it_stands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], import_folder: Path
) -> None:
    assert run(new, monkeypatch, "my_attention", "--folder", import_folder) == 0
    printed = capsys.readouterr().out
    assert "python -m harness.check my_attention:MyAttention\n" in printed
    assert run(check, monkeypatch, "my_attention:MyAttention", "--skip-timing") == 0
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."],
        cwd=import_folder,
        env={"PYTHONPATH": f"{import_folder}:{Path(__file__).parents[3]}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout


def test_nothing_is_overwritten(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "test_mine.py"
    path.write_text("precious")
    assert run(new, monkeypatch, "mine", "--folder", tmp_path) == 2
    assert "exists already" in capsys.readouterr().err
    assert path.read_text() == "precious"
    assert not (tmp_path / "mine.py").exists()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        *((name, "cannot be a module's name") for name in ("My", "a-b", "1st", "class", "a.b", "")),
        *(
            (name, "is the name of a module that")
            for name in ("random", "json", "torch", "harness")
        ),
    ],
)
def test_names_that_cannot_be_imported_or_hide_another_are_refused(
    name: str,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    assert run(new, monkeypatch, name, "--folder", tmp_path) == 2
    error = capsys.readouterr().err
    assert f"{name!r} {told}" in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_growth_beyond_what_is_stated_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "judge", lambda subject: [])
    monkeypatch.setattr(
        "harness.reporting.scaling.fit_exponent", lambda positions, times: Fit(1.9, 0.1)
    )
    for name, status in (("enla", 1), ("nla", 0), ("criss-cross", 0)):
        assert run(check, monkeypatch, name) == status
        assert ("which it exceeds" in capsys.readouterr().out) == bool(status)


def test_a_missing_folder_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(new, monkeypatch, "mine", "--folder", tmp_path / "none") == 2
    assert "does not exist" in capsys.readouterr().err


def test_somebodys_broken_package_stops_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Help lists what is installed without importing it."""
    entry = EntryPoint("broken", "no_such_package:Attention", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(
        registry, "entry_points", lambda group, name="broken": [entry] * (name == "broken")
    )
    assert run(check, monkeypatch, "nla", "--nonsense", 3) == 2
    assert "unknown option --nonsense" in capsys.readouterr().err
    assert run(check, monkeypatch, "broken") == 2
    error = "cannot import 'no_such_package' for attention 'broken', an installed entry point: "
    assert error in " ".join(capsys.readouterr().err.split())
    left_out = parse(Options, ["--attn", "all"], "harness.run")[1]
    assert "broken" not in [variant.name for variant in left_out]
    assert f"left out: {error}" in " ".join(capsys.readouterr().err.split())
    assert run(check, monkeypatch, "--help") == 0
    assert "broken, channel-attention" in " ".join(capsys.readouterr().out.split())
