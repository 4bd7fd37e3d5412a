"""``harness.check`` and ``harness.new`` as a user meets them: modules, and tasks."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from attention_zoo import registry
from harness import check
from harness.config.options import parse
from harness.measuring import scaling
from harness.reporting.scaling import Fit
from harness.runs.options import RunOptions as Options
from tests.harness.conftest import Cli


def test_a_sound_module(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "SIDES", (16, 24, 32))
    printed = cli("check", "enlca", "--m", 4).out
    assert printed.startswith("ENLCA-m4: enlca\n")
    assert "ok      cost equals the counter: " in printed
    assert "growth of time: as N^(" in printed
    assert "stated: O(N)" in printed
    assert printed.endswith("All contract checks passed.\n")


def test_a_module_that_fails(cli: Cli, import_folder: Path) -> None:
    (import_folder / "somebodys.py").write_text(
        "from attention_zoo import Attention, Cost\n"
        "class Bad(Attention):\n"
        "    def project(self, x): return x, x, x\n"
        "    def attend(self, q, k, v): return v / 0\n"
        "    def cost(self, height, width): return Cost(projections=0, core=0, executed=0)\n"
    )
    printed = cli("check", "somebodys:Bad", "--skip-timing", status=1).out
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
        (["ends:Class"], "cannot import 'ends'"),
        (["fails:Fails"], "fails:Fails cannot be built with 16 channels: ZeroDivisionError"),
    ],
)
def test_mistakes_are_told_in_a_line(
    words: list[object], message: str, cli: Cli, import_folder: Path
) -> None:
    (import_folder / "typo.py").write_text("class Class(:\n")
    (import_folder / "ends.py").write_text("import sys\nsys.exit()\n")
    (import_folder / "fails.py").write_text(
        "from attention_zoo import Attention\n"
        "class Fails(Attention):\n"
        "    def __init__(self, channels):\n"
        "        1 / 0\n"
    )
    assert message in cli.refused("check", *words)


def test_the_template_passes_as_it_stands(cli: Cli, import_folder: Path) -> None:
    printed = cli("new", "my_attention", "--folder", import_folder).out
    assert "python -m harness.check my_attention:MyAttention\n" in printed
    cli("check", "my_attention:MyAttention", "--skip-timing")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."],
        cwd=import_folder,
        env={"PYTHONPATH": f"{import_folder}:{Path(__file__).parents[3]}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout


def test_the_templates_task_passes_as_it_stands(cli: Cli, import_folder: Path) -> None:
    printed = cli("new", "my_task", "--task", "--folder", import_folder).out
    assert "python -m harness.check --task my_task:MyTask\n" in printed
    printed = cli("check --task my_task:MyTask --kinds 3").out
    assert printed.startswith("my_task:MyTask\n")
    assert 'ok      settings are kept: {"kinds": 3, "side": 12}' in printed
    assert printed.endswith("All contract checks passed.\n")
    assert "skipped" not in printed
    text = (import_folder / "test_my_task.py").read_text()
    assert 'TaskSubject("my_task:MyTask")' in text
    compile(text, "test_my_task.py", "exec")


@pytest.mark.slow
def test_the_instrument_reads_floor_and_ceiling_in_the_templates_task(
    cli: Cli, import_folder: Path
) -> None:
    cli("new", "my_task", "--task", "--folder", import_folder)
    printed = cli("check --task my_task:MyTask --train").out
    for line in (
        "none is at the floor",
        "none finds nothing in deleted images",
        "oracle is near the ceiling",
        "oracle finds nothing in deleted images",
    ):
        assert f"ok      {line}: " in printed


def test_an_instrument_that_is_not_trained_fails(cli: Cli, import_folder: Path) -> None:
    cli("new", "my_task", "--task", "--folder", import_folder)
    printed = cli("check --task my_task:MyTask --train --steps 1", status=1).out
    assert "FAILED  oracle is near the ceiling: " in printed
    assert "wanted 0.9: train longer (--steps), or correct the references" in printed


def test_a_task_that_fails(cli: Cli, import_folder: Path) -> None:
    cli("new", "my_task", "--task", "--folder", import_folder)
    path = import_folder / "my_task.py"
    sound = path.read_text()
    broken = sound.replace("self.kinds, self.side = kinds, side", "self.kinds, self.side = 4, side")
    assert broken != sound
    path.write_text(broken)
    printed = cli("check --task my_task:MyTask --train", status=1).out
    line = (
        "FAILED  settings tell tasks apart: the option kinds is lost: set self.kinds to the value"
    )
    assert line in printed
    assert "oracle" not in printed  # nothing is trained
    assert printed.endswith("1 failed\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--task recal", "unknown task 'recal'"),
        ("--task sr", "harness.check --task takes a synthetic task (phase, recall"),
        ("--task recall --attn nla", "--attn applies only to modules: leave it out"),
        ("--task recall --skip-timing", "--skip-timing applies only to modules"),
        ("--task recall --steps 3", "--steps applies only to --train"),
        ("--task recall --m 3", "unknown option --m"),
        ("--task recall --pairs 99", "99 references leave no query"),
        ("--task recall --train --steps 0", "steps must be at least 1"),
        ("nla --train", "--train applies only to --task: leave it out"),
        ("--task bad:Fails", "task bad:Fails cannot be built with {}: ZeroDivisionError: "),
        ("--task bad:NoDefault", "bad:NoDefault: the option size needs a default"),
        ("--task bad:Unfinished", "bad:Unfinished is not a subclass of harness.tasks.base."),
    ],
)
def test_mistakes_with_tasks_are_told_in_a_line(
    words: str, message: str, cli: Cli, import_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (import_folder / "bad.py").write_text(
        "from harness.tasks.base import SyntheticTask\n"
        "from harness.tasks.recall import Recall\n"
        "class Fails(Recall):\n"
        "    def __init__(self):\n"
        "        1 / 0\n"
        "class NoDefault(Recall):\n"
        "    def __init__(self, *, size): pass\n"
        "class Unfinished(SyntheticTask): pass\n"
    )
    monkeypatch.setattr("harness.measuring.contract.CHECKS", {})
    assert message in cli.refused(f"check {words}")


def test_nothing_is_overwritten_and_no_folder_made(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "test_mine.py"
    path.write_text("precious")
    assert "test_mine.py exists already" in cli.refused("new", "mine", "--folder", tmp_path)
    assert "does not exist" in cli.refused("new", "mine", "--folder", tmp_path / "none")
    assert [(p, p.read_text()) for p in tmp_path.iterdir()] == [(path, "precious")]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("My", "a-b", "1st", "class", "a.b", ""), "cannot be a file's name"),
        (("random", "json", "torch", "harness"), "is the name of a module that"),
    ],
)
def test_names_that_cannot_be_imported_or_hide_another_are_refused(
    names: tuple[str, ...], told: str, cli: Cli, tmp_path: Path
) -> None:
    for name in names:
        assert f"{name!r} {told}" in cli.refused("new", name, "--folder", tmp_path)
    assert not list(tmp_path.iterdir())


def test_growth_beyond_what_is_stated_fails(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "judge", lambda subject: [])
    monkeypatch.setattr(
        "harness.reporting.scaling.fit_exponent", lambda positions, times: Fit(1.9, 0.1)
    )
    timed = scaling.measure
    monkeypatch.setattr(
        scaling, "measure", lambda *args, **named: timed(*args, **named | {"size_seconds": 0.01})
    )
    for name, status in (("enla", 1), ("nla", 0), ("criss-cross", 0)):
        assert ("which it exceeds" in cli("check", name, status=status).out) == bool(status)


def test_somebodys_broken_package_stops_nothing_else(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Help lists what is installed without importing it."""
    entry = EntryPoint("broken", "no_such_package:Attention", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(
        registry, "entry_points", lambda group, name="broken": [entry] * (name == "broken")
    )
    assert "unknown option --nonsense" in cli.refused("check", "nla", "--nonsense", 3)
    error = "cannot import 'no_such_package' for attention 'broken', an installed entry point: "
    assert error in cli.refused("check", "broken")
    left_out = parse(Options, ["--attn", "all"], "harness.run")[1]
    assert "broken" not in [variant.name for variant in left_out]
    assert f"left out: {error}" in " ".join(capsys.readouterr().err.split())
    assert "broken, channel-attention" in " ".join(cli("check", "--help").out.split())
