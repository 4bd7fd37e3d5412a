"""A user's own module: its options, labels, state, and what is told of its mistakes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attention_zoo import AttentionError
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
from tests.harness.conftest import Cli

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


def test_a_later_option_is_the_one_of_the_class_that_has_it(import_folder: Path) -> None:
    """A subclass that inherits NLA's options records them as NLA; its own are its own."""
    (import_folder / "own_later.py").write_text(
        "from attention_zoo.nla import NonLocalAttention\n"
        "class Same(NonLocalAttention): pass\n"
        "class Other(NonLocalAttention):\n"
        "    def __init__(self, channels, *, shared=False):\n"
        "        super().__init__(channels)\n"
    )
    for name in ("nla", "nla-flash", "own_later:Same"):
        assert "shared" not in Variant(name).recorded
        assert Variant(name, {"shared": True}).recorded["shared"] is True
        assert Variant(name).resolved["shared"] is False
    assert Variant("own_later:Other").recorded == {"shared": False}


@pytest.fixture
def job(tiny: list[str]) -> list[str]:
    return [*tiny, "--skip-latency"]


def chosen(*words: str) -> list[Variant]:
    return parse(Options, ["--attn", *words], "harness.run")[1]


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["nla", "--released"], {"released": True}),
        (["enlca", "--no-hinge"], {"hinge": False}),
        (["nystrom", "--no-skip"], {"skip": False}),
        (["enlca", "--no-attn-hinge", "--m", "4"], {"hinge": False, "m": 4}),
        (["enlca", "--hinge", "--m", "4"], {"m": 4}),  # as it is by default
        (["enlca", "--hinge=False"], {"hinge": False}),
        (["enlca", "--m", "128", "--k", "6"], {}),  # as they are by default
    ],
)
def test_switches(words: list[str], options: dict[str, Any]) -> None:
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
    write: Write, cli: Cli, job: list[str], results: Path
) -> None:
    cli("run", *job, "--attn", write("one"), write("two", factor=3))
    cli("tables", "--results", results)
    text = "".join(path.read_text() for path in results.rglob("quality.md"))
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
    assert Variant(write("float", "*, a=2.0", label="Mine-{a}"), {"a": 3.0}).label == "Mine-3.0"


@pytest.mark.parametrize("label", ["注意", " ", "x" * 300])
def test_any_label_gives_a_file_name(
    write: Write, cli: Cli, job: list[str], results: Path, label: str
) -> None:
    cli("run", *job, "--attn", write("names", label=label))
    (record,) = load_records(results, Run)
    assert record.variant.label == label


def test_weights_that_layers_share_are_kept(
    write: Write, cli: Cli, job: list[str], results: Path
) -> None:
    body = "import torch; self.one = torch.nn.Conv2d(channels, channels, 1); self.two = self.one"
    cli("run", *job, "--attn", write("shared", body=body), "--save-every", "0")
    (path,) = (results / "runs").glob("*/weights.safetensors")
    network = load_weights(path).network
    module = next(iter(network.attention_modules))
    assert module.one is module.two


def test_a_tuple_is_a_tuple_again(write: Write, cli: Cli, job: list[str], results: Path) -> None:
    name = write("tuples", "*, t: tuple[int, ...] = (1, 2)", body="assert type(t) is tuple")
    words = [*job, "--attn", name, "--t", "3", "4"]
    cli("run", *words)
    (path,) = (results / "runs").glob("*/config.json")
    assert json.loads(path.read_text())["variant"]["options"] == {"t": [3, 4]}
    (record,) = (results / "records" / "runs").glob("*.json")
    record.unlink()
    cli("run", *words)  # the run's folder is its own
    load_weights(path.parent / "weights.safetensors")


def test_a_changed_file_is_no_more_the_module_that_was_measured(
    write: Write, cli: Cli, job: list[str], results: Path
) -> None:
    cli("run", *job, "--attn", write("edited"))
    assert "is finished" in cli("run", *job, "--attn", write("edited")).out
    changed = [*job, "--attn", write("edited", factor=5)]
    told = "the file of own_edited:Mine has changed since"
    assert told in cli.refused("run", *changed)
    (record,) = (results / "records" / "runs").glob("*.json")
    record.unlink()  # as if it had been interrupted
    assert told in cli.refused("run", *changed)


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
    write: Write, cli: Cli, job: list[str], results: Path, module: dict[str, Any], told: str
) -> None:
    assert told in cli.refused("run", *job, "--attn", write("bad", **module))
    assert not list(results.rglob("*.safetensors"))


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_options_that_no_record_can_hold_are_refused(value: str) -> None:
    with pytest.raises(AttentionError, match=f"res_scale = {value} cannot be kept in a record"):
        chosen("nla", "--res-scale", value)


def test_a_core_of_fewer_channels_is_noted(write: Write) -> None:
    half = "self.project = lambda x: (x[:, :32], x[:, :32], x)"
    noted, whole = (
        " ".join(count(Variant(name))["notes"])
        for name in (write("half", body=half), write("whole"))
    )
    assert "queries have 32 channels" in noted
    assert "queries have" not in whole
