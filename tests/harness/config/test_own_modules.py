"""A user's own module: its options, labels, state, and what is told of its mistakes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attention_zoo import AttentionError
from harness import run
from harness.base.errors import UserError
from harness.config.labels import row_labels
from harness.config.options import parse
from harness.config.variants import Variant
from harness.measuring.flops import count
from harness.network.weights import load_weights
from harness.records.shapes import Run
from harness.records.store import load_records
from harness.runs.jobs import option_words
from harness.runs.options import RunOptions as Options
from harness.tables import main as write_tables

MODULE = """
from attention_zoo import Attention, Cost

class Mine(Attention):
    label_format = {label!r}

    def __init__(self, channels, {options}):
        super().__init__(channels)
        {body}

    def project(self, x): return x, x, x
    def attend(self, q, k, v): return {factor} * v
    def cost(self, height, width): return Cost(projections=0, core=0, executed=0)
"""
TINY = ["--blocks", "4", "--channels", "8", "--steps", "3", "--batch", "2", "--patch", "8"]

Write = Callable[..., str]


@pytest.fixture
def write(import_folder: Path) -> Write:
    """Write a module ``own_<name>.py``; gives what follows ``--attn``."""

    def written(
        name: str, options: str = "*, a=1", body: str = "pass", label: str = "Mine", factor: int = 2
    ) -> str:
        text = MODULE.format(options=options, body=body, label=label, factor=factor)
        (import_folder / f"own_{name}.py").write_text(text)
        sys.modules.pop(f"own_{name}", None)
        return f"own_{name}:Mine"

    return written


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, image_folder: Path, tmp_path: Path) -> Any:
    """Run ``harness.run`` on some modules; gives its exit status."""

    def called(*words: str) -> int:
        common = ["--data", str(image_folder), "--results", str(tmp_path), "--skip-latency"]
        monkeypatch.setattr(sys, "argv", ["harness.run", "--attn", *words, *TINY, *common])
        try:
            run.main()
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return called


def chosen(*words: str) -> list[Variant]:
    return parse(Options, ["--attn", *words], "harness.run")[1]


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["nla", "--released"], {"released": True}),
        (["enlca", "--no-hinge"], {"hinge": False}),
        (["nystrom", "--no-skip"], {"skip": False}),
        (["enlca", "--attn-no-hinge"], None),
        (["enlca", "--no-attn-hinge", "--m", "4"], {"hinge": False, "m": 4}),
        (["enlca", "--hinge", "--m", "4"], {"m": 4}),  # as it is by default
        (["enlca", "--hinge=False"], {"hinge": False}),
    ],
)
def test_switches(words: list[str], options: dict[str, Any] | None) -> None:
    if options is None:
        with pytest.raises(UserError, match="unknown option --attn-no-hinge"):
            chosen(*words)
    else:
        assert chosen(*words) == [Variant(words[0], options)]


@pytest.mark.parametrize(
    ("options", "words", "expected"),
    [
        ("*, size: int | None = 8", ["--size", "None"], None),
        ("*, size: int | None = 8", ["--size", "3"], 3),
        ("*, size=4", ["--size", "8"], 8),
        ("*, size=4.0", ["--size", "8"], 8.0),
        ("*, size='a'", ["--size", "8"], "8"),
        ("*, size=False", ["--size"], True),
        ("*, size=True", ["--no-size"], False),
        ("*, size=False", ["--size", "False"], False),
        ("*, size: tuple[int, ...] = (1, 2)", ["--size", "5", "6"], (5, 6)),
        ("*, size: 'int' = 3", ["--size", "5"], 5),
    ],
)
def test_a_value_arrives_as_what_it_is(
    write: Write, options: str, words: list[str], expected: object
) -> None:
    (variant,) = chosen(write("values", options), *words)
    assert variant.resolved == {"size": expected}
    assert type(variant.resolved["size"]) is type(expected)
    assert chosen(variant.name, *option_words(variant)) == [variant]  # as a sweep writes them


def test_one_option_of_two_modules_has_the_type_of_each(write: Write) -> None:
    name = write("neighbours", "*, k: int = 3")
    for names in ((name, "enlca"), ("enlca", name)):
        found = {v.name: v.options["k"] for v in chosen(*names, "--k", "7")}
        assert found == {name: 7, "enlca": 7.0}
        assert type(found[name]) is int
        with pytest.raises(UserError, match=f"k must be an integer for {name}, got 2.5"):
            chosen(*names, "--k", "2.5")


def test_two_modules_of_one_label_have_two_rows(
    write: Write, main: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(write("one"), write("two", factor=3)) == 0
    monkeypatch.setattr(sys, "argv", ["harness.tables", "--results", str(tmp_path)])
    write_tables()
    text = "".join(path.read_text() for path in tmp_path.rglob("quality.md"))
    assert "| Mine, own_one:Mine " in text
    assert "| Mine, own_two:Mine " in text


@pytest.mark.parametrize("label", ["NLA", "ENLCA-m16", "Baseline", "Focused linear-p3"])
def test_the_row_of_a_published_method_is_its_own(write: Write, label: str) -> None:
    variant = Variant(write("namesake", label=label))
    assert row_labels([variant])[variant] == f"{label}, own_namesake:Mine"
    assert row_labels([Variant("nla"), variant])[Variant("nla")] == "NLA"


def test_options_that_the_label_does_not_tell_are_told(write: Write) -> None:
    name = write("told", "*, a=1, b=2", label="Mine-{a}")
    assert Variant(name, {"a": 3}).label == "Mine-3"
    assert Variant(name, {"a": 3, "b": 4}).label == "Mine-3 (b=4)"
    assert Variant(name, {"b": 2}).label == "Mine-1"


@pytest.mark.parametrize("label", ["注意", " ", "x" * 300])
def test_any_label_gives_a_file_name(write: Write, main: Any, tmp_path: Path, label: str) -> None:
    assert main(write("names", label=label)) == 0
    (record,) = load_records(tmp_path, Run)
    assert record.variant.label == label


def test_weights_that_layers_share_are_kept(write: Write, main: Any, tmp_path: Path) -> None:
    body = "import torch; self.one = torch.nn.Conv2d(channels, channels, 1); self.two = self.one"
    assert main(write("shared", body=body), "--save-every", "0") == 0
    (path,) = (tmp_path / "runs").glob("*/weights.safetensors")
    network = load_weights(path).network
    module = next(iter(network.attention_modules))
    assert module.one is module.two


def test_a_tuple_is_a_tuple_again(write: Write, main: Any, tmp_path: Path) -> None:
    name = write("tuples", "*, t: tuple[int, ...] = (1, 2)", body="assert type(t) is tuple")
    assert main(name, "--t", "3", "4") == 0
    (path,) = (tmp_path / "runs").glob("*/config.json")
    assert json.loads(path.read_text())["variant"]["options"] == {"t": [3, 4]}
    (record,) = (tmp_path / "records" / "runs").glob("*.json")
    record.unlink()
    assert main(name, "--t", "3", "4") == 0  # the run's folder is its own
    (path,) = (tmp_path / "runs").glob("*/weights.safetensors")
    load_weights(path)


def test_a_changed_file_is_no_more_the_module_that_was_measured(
    write: Write, main: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(write("edited")) == 0
    assert main(write("edited")) == 0
    assert "is finished" in capsys.readouterr().out
    assert main(write("edited", factor=5)) == 2
    assert "the file of own_edited:Mine has changed since" in capsys.readouterr().err
    (record,) = (tmp_path / "records" / "runs").glob("*.json")
    record.unlink()  # as if it had been interrupted
    assert main(write("edited", factor=5)) == 2
    assert "the file of own_edited:Mine has changed since" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "told"),
    [
        ({"options": "*, a"}, "the option a needs a default"),
        ({"options": "heads=4, *, a=1"}, "heads must be keyword-only to be an option"),
        ({"body": "assert channels % 6 == 0, 'six'"}, "built with 8 channels: AssertionError: six"),
        ({"label": "L-{nothing}"}, "cannot be filled in: KeyError('nothing')"),
        ({"options": "*, a: 'Foo' = 1"}, "options cannot be read: name 'Foo' is not defined"),
        ({"options": "*, a=float('inf')"}, "a = inf cannot be kept in a record"),
        ({"options": "*, a=print"}, "cannot be kept in a record"),
        ({"body": "self.cost = lambda h, w: 3"}, "cost(100, 100) of own_bad:Mine fails"),
        ({"body": "self.cost = lambda h, w: Cost(0, float('nan'), 0)"}, "has bad numbers"),
    ],
)
def test_mistakes_are_told_in_a_line_before_any_work(
    write: Write,
    main: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    module: dict[str, Any],
    told: str,
) -> None:
    assert main(write("bad", **module)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert told in error
    assert error.count("\n") == 1
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_file_that_ends_the_process_is_told(
    main: Any, import_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (import_folder / "own_script.py").write_text("import sys\nsys.exit()\n")
    assert main("own_script:Mine") == 2
    assert "cannot import 'own_script'" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_options_that_no_record_can_hold_are_refused(value: str) -> None:
    with pytest.raises(AttentionError, match=f"res_scale = {value} cannot be kept in a record"):
        chosen("nla", "--res-scale", value)


def test_a_core_of_fewer_channels_is_noted(write: Write) -> None:
    half = "self.project = lambda x: (x[:, :32], x[:, :32], x)"
    assert any(
        "queries have 32 channels" in n for n in count(Variant(write("half", body=half)))["notes"]
    )
    assert not any("queries have" in n for n in count(Variant(write("whole")))["notes"])
