"""Options of modules on the command line: all of them, and apart from the command's own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from attention_zoo import AttentionError, create_attention, find_attention, list_attentions
from harness import check, latency, probe, scaling, sweep
from harness.base.errors import UserError
from harness.completion import options_of
from harness.config.options import implementation_names, parse
from harness.config.variants import Variant
from harness.runs import options as run

COMMANDS = {
    "harness.run": run.RunOptions,
    "harness.sweep": sweep.Options,
    "harness.probe": probe.Options,
    "harness.latency": latency.Options,
    "harness.scaling": scaling.Options,
    "harness.check": check.Options,
}
#: Options that harness.run and harness.sweep have too, and other values of them.
SHARED = [("nystrom", "steps", 3), ("csnln", "scale", 3), ("rnan", "blocks", 2)]


@pytest.mark.parametrize(("name", "option", "value"), SHARED)
@pytest.mark.parametrize("command", ["harness.run", "harness.sweep"])
def test_the_commands_own_option_leaves_the_module_alone(
    command: str, name: str, option: str, value: int
) -> None:
    words = ["--attn", name, f"--{option}", "4"]
    values, variants = parse(COMMANDS[command], words, command)
    assert (getattr(values, option), variants) == (4, [Variant(name)])
    words += [f"--attn-{option}", str(value)]
    values, variants = parse(COMMANDS[command], words, command)
    assert (getattr(values, option), variants) == (4, [Variant(name, {option: value})])
    words[-2:] = [f"--attn_{option}={value}"]
    assert parse(COMMANDS[command], words, command)[1] == [Variant(name, {option: value})]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", list_attentions())
def test_every_option_of_every_module_can_be_set_in_every_command(name: str, command: str) -> None:
    """By its flag, which completion knows, and by the long form that holds in all commands.

    Options that are not given stay the module's defaults.
    """
    assert parse(COMMANDS[command], ["--attn", name], command)[1] == [Variant(name)]
    known = options_of(command)
    for option, parameter in find_attention(name).options().items():
        value = _another(name, option, parameter.default)
        if value is None:
            continue
        dashed = option.replace("_", "-")
        flag = f"--{dashed}" if f"--attn-{dashed}" not in known else f"--attn-{dashed}"
        assert flag in known
        for given in (flag, f"--attn-{dashed}"):
            _, variants = parse(COMMANDS[command], ["--attn", name, given, str(value)], command)
            assert variants == [Variant(name, {option: value})]


def _another(name: str, option: str, default: Any) -> Any:
    """A value that the module takes and that is not the default; None if there is none at hand."""
    candidates = [not default] if isinstance(default, bool) else [default + 2, default * 2]
    for value in candidates:
        try:
            create_attention(name, 16, **{option: value})
        except AttentionError:
            continue
        if value != default:
            return value
    return None


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--attn", "nystrom", "--m", "3"],
            "nystrom has no option --m .*: nystrom takes --grid, --attn-steps, --skip",
        ),
        (["--attn", "nla", "--attn-steps", "3"], r"nla has no option --attn-steps .*nystrom"),
        (["--attn", "nla", "--attn-m", "3"], r"nla has no option --attn-m .*enlca"),
        (["--rows", "rivals", "--attn-steps", "3"], "--attn-steps cannot be set with --rows"),
        (["--attn", "nla", "--attn-wrong", "3"], "unknown option --attn-wrong"),
        (["--attn", "enlca", "--attn-no-hinge"], "unknown option --attn-no-hinge"),
    ],
)
def test_an_option_of_no_chosen_module_is_refused(words: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        parse(run.RunOptions, words, "harness.run")


@pytest.mark.parametrize("command", COMMANDS)
def test_one_command_names_a_module_with_several_settings(command: str) -> None:
    words = ["--attn", "enlca:m=16", "enlca:m=2,k=3", "nlsa:rounds=2,chunk-size=24", "enlca"]
    more = ["nystrom:skip=true,steps=3"]
    assert parse(COMMANDS[command], [*words, *more], command)[1] == [
        Variant("enlca", {"m": 16}),
        Variant("enlca", {"m": 2, "k": 3.0}),
        Variant("nlsa", {"rounds": 2, "chunk_size": 24}),
        Variant("enlca"),
        Variant("nystrom", {"steps": 3}),
    ]


def test_a_flag_holds_for_those_that_do_not_set_it() -> None:
    words = ["--attn", "enlca:m=16", "enlca:k=3", "enla", "nla", "--m", "8"]
    assert parse(run.RunOptions, words, "harness.run")[1] == [
        Variant("enlca", {"m": 16}),
        Variant("enlca", {"m": 8, "k": 3.0}),
        Variant("enla", {"m": 8}),
        Variant("nla"),
    ]


@pytest.mark.parametrize("name", list_attentions())
def test_an_entry_and_a_flag_give_the_same_variant(name: str) -> None:
    for option, parameter in find_attention(name).options().items():
        value = _another(name, option, parameter.default)
        if value is not None:
            dashed = option.replace("_", "-")
            flag = ["--attn", name, f"--attn-{dashed}", str(value)]
            entry = ["--attn", f"{name}:{option}={value}"]
            flags, entries = (parse(run.RunOptions, w, "harness.run")[1] for w in (flag, entry))
            assert flags == entries == [Variant(name, {option: value})]


def test_variants_of_one_command_are_not_repeated() -> None:
    words = ["--attn", "enlca", "enlca:m=128", "enlca:k=6", "all", "--reduction", "4"]
    _, variants = parse(run.RunOptions, words, "harness.run")
    assert len(variants) == len({*variants})
    assert sum(variant.name == "enlca" for variant in variants) == 1
    assert {variant.name for variant in variants} == {*list_attentions()}


def test_settings_of_a_module_of_ones_own(import_folder: Path) -> None:
    (import_folder / "own.py").write_text(
        "from attention_zoo.conv import Conv\n"
        "class Mine(Conv):\n"
        "    def __init__(self, channels, *, sizes: tuple[int, ...] = (1,), mode: str = 'a'):\n"
        "        super().__init__(channels)\n"
    )
    words = ["--attn", "own:Mine", "own:Mine:sizes=3,5,mode=b:c,d", "own:Mine:mode=True"]
    assert parse(run.RunOptions, words, "harness.run")[1] == [
        Variant("own:Mine"),
        Variant("own:Mine", {"sizes": (3, 5), "mode": "b:c,d"}),
        Variant("own:Mine", {"mode": "True"}),
    ]
    with pytest.raises(UserError, match=r"sizes takes tuple\[int, ...\], got '3;5'"):
        parse(run.RunOptions, ["--attn", "own:Mine:sizes=3;5"], "harness.run")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["enlca:mm=16"], "enlca:mm=16: enlca has no option mm (did you mean m?): it takes m, k,"),
        (["nla", "mean:x=1"], "mean:x=1: mean has no option x"),
        (["enlca:m=x"], "enlca:m=x: m takes an integer, got 'x'"),
        (["enlca:m=1.5"], "m takes an integer, got '1.5'"),
        (["enlca:k="], "k takes a number, got ''"),
        (["nystrom:skip=maybe"], "skip takes True or False, got 'maybe'"),
        (["enlca:16"], "enlca:16: settings follow as option=value"),
        (["enlca:"], "enlca:: settings follow as option=value"),
        (["m=16"], "m=16: settings follow as option=value"),
        (["enlca:m=16,m=2"], "m is given twice"),
        (["all:m=16"], "all takes no settings"),
        (["enlca:m=16", "--m", "8"], "--m has no effect"),
        (["enlca:m=16", "--mm", "8"], "unknown option --mm (did you mean --m?)"),
        (["enlca", "--atn", "nla"], "unknown option --atn (did you mean --attn?)"),
    ],
)
def test_a_bad_setting_is_named(words: list[str], told: str) -> None:
    with pytest.raises(UserError, match=re.escape(told)):
        parse(run.RunOptions, ["--attn", *words], "harness.run")


def help_of(command: str, name: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        parse(COMMANDS[command], ["--attn", name, "--help"], command)
    return re.sub(r"[\s│]+", " ", capsys.readouterr().out)


@pytest.mark.parametrize("command", ["harness.run", "harness.sweep", "harness.latency"])
def test_help_names_every_implementation(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ", ".join(implementation_names()) in help_of(command, "nla", capsys)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nystrom", ["--attn-steps", "iterations for the pseudo-inverse", "Training steps"]),
        ("enlca", ["random features. (enlca: 128)"]),
    ],
)
def test_help_tells_options_of_the_module_and_of_the_command(
    name: str, told: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = help_of("harness.run", name, capsys)
    assert all(words in text for words in told)
    assert "--chunk-size" not in text  # of another module


@pytest.mark.parametrize("command", COMMANDS)
def test_unknown_rows_are_told_with_all_rows_in_order(command: str) -> None:
    with pytest.raises(UserError) as error:
        parse(COMMANDS[command], ["--rows", "table7"], command)
    names = [*(f"table{n}" for n in range(1, 7)), "figure6", "rivals", "controls", "profile"]
    assert str(error.value) == f"unknown rows 'table7': choose from {', '.join(names)}"


def test_choices_of_other_options_are_sorted_and_without_none() -> None:
    with pytest.raises(UserError) as error:
        parse(latency.Options, ["--parts", "cor"], "harness.latency")
    assert "Expected one of core, module, network (did you mean core?); see" in str(error.value)
