"""Command-line options of the attention modules, taken from their signatures.

Where a command has an option of the same name, such as ``steps`` of ``harness.run`` and of nystrom,
the module's is ``--attn-steps``. Every option of a module may be written with ``--attn-``. An
option holds for all chosen modules that have it and do not set it themselves, as ``enlca:m=16``
does (:mod:`.entries`).
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import operator
import re
import shlex
import sys
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from attention_zoo import AttentionError, find_attention, list_attentions
from attention_zoo.implementations import AUTO, list_implementations

from ..base.commands import usage_errors
from ..base.errors import UserError
from ..base.names import nearest
from .entries import ALL, Entry, typed_entries
from .rows import rows_to_run
from .variants import Variant

T = TypeVar("T")


def implementation_names() -> list[str]:
    """What ``--impl`` takes for all cores: ``auto``, then every implementation of any core."""
    names = {name for core in list_implementations().values() for name in core}
    return [AUTO, *sorted(names - {AUTO})]


#: The type of ``--impl``, in every command that has it.
Implementation = Annotated[
    str,
    tyro.conf.arg(
        help=f"Implementation of the attention: {', '.join(implementation_names())}; or core by "
        "core, e.g. enla=triton,nla=sdpa."
    ),
]


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) of ``HEIGHTxWIDTH``.

    Raises:
        UserError: the text has another form, or a side is 0.
    """
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not match:
        raise UserError(f"size {text!r} is not height x width, e.g. 100x100")
    return int(match[1]), int(match[2])


def parse(cls: type[T], argv: Sequence[str], module: str) -> tuple[T, list[Variant]]:
    """Parse a command line whose ``--attn`` modules have options of their own.

    Args:
        cls: dataclass of the command's own options, with fields ``attn`` and ``rows``; ``--help``
            shows its docstring.
        argv: arguments, without the program's name.
        module: what is typed after ``python -m``.

    Returns:
        An instance of ``cls`` and the chosen variants, without repetition.

    Raises:
        UserError: an unknown option, an option of another module, or ``--attn`` with ``--rows``.
        AttentionError: an unknown module, or an option that no record can hold.
    """
    entries = _chosen(argv)
    names, own = _names(entries), own_options(cls)
    options = {
        name: module_option(name, own) for n in names for name in find_attention(n).options()
    }
    argv = [_shortened(word, options) for word in argv]
    _refuse_unknown(argv, own, {"help", *options.values()}, names)
    types_of = {option: _types(option, names) for option in options}
    switches = {
        options[option] for option, found in types_of.items() if set(found.values()) == {bool}
    }
    argv = list(_with_values(argv, switches))
    fields = [
        (name, _annotation(option, types_of[option]), _default(option, types_of[option]))
        for option, name in options.items()
    ]
    combined = dataclasses.make_dataclass("Options", fields, bases=(cls,), kw_only=True)
    with usage_errors():
        values: Any = tyro.cli(
            combined,
            args=argv,
            prog=f"python -m {module}",
            description=f"{inspect.getdoc(cls)}\n\nModules: {', '.join(list_attentions())}.",
        )
    if values.rows:
        return values, rows_to_run(values.rows)
    present = {_name(word) for word in argv if word.startswith("--")}
    given = {o: getattr(values, name) for o, name in options.items() if name in present}
    variants = []
    for entry in entries:
        flags = {
            option: _of_type(value, types_of[option][entry.name], option, entry.name)
            for option, value in given.items()
            if entry.name in types_of[option]
        }
        try:
            variants.append(Variant.of(entry.name, {**flags, **settings_of(entry)}))
        except AttentionError as error:
            if not entry.settings:
                raise
            raise AttentionError(f"--attn {entry.word}: {error}") from None
    for option in given:
        if all(option in e.settings for e in entries if e.name in types_of[option]):
            raise UserError(
                f"--{options[option].replace('_', '-')} has no effect: every module that has it "
                "sets it after its colon"
            )
    return values, list(dict.fromkeys(variants))


def own_options(cls: type) -> frozenset[str]:
    """Names of a command's own options, the fields of its dataclass."""
    return frozenset(field.name for field in dataclasses.fields(cls))


def chosen_options(argv: Sequence[str]) -> set[str]:
    """Names of the options of the modules that a command line chooses.

    Raises:
        UserError, AttentionError: as :func:`parse`.
    """
    names = _names(_chosen(argv))
    return {option for name in names for option in find_attention(name).options()}


def module_option(option: str, own: Collection[str]) -> str:
    """Name of a module's option in a command: ``attn_steps`` if ``steps`` is among its ``own``.

    Flags are names with dashes: ``--attn-steps``.
    """
    return f"attn_{option}" if option in own else option


def _shortened(word: str, options: Mapping[str, str]) -> str:
    """``--attn-m`` as ``--m``, where the command has no ``--m`` of its own."""
    flag, equals, value = word.partition("=")
    found = re.fullmatch(r"--(no-)?attn[-_](.+)", flag)
    if found and options.get(option := found[2].replace("-", "_")) == option:
        return f"--{found[1] or ''}{found[2]}{equals}{value}"
    return word


def describe_command(module: str, argv: Sequence[str], launcher: str = "python -m") -> str:
    """The command as typed, with the last part alone of absolute paths: records name no machine."""
    return shlex.join([*launcher.split(), module, *map(_without_folders, argv)])


def _without_folders(word: str) -> str:
    """The word; of an absolute path, alone or as ``--option=PATH``, the last part."""
    flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return flag + equals + (Path(value).name if Path(value).is_absolute() else value)


def _chosen(argv: Sequence[str]) -> list[Entry]:
    """Entries after ``--attn``, or the command's default; none with ``--rows``.

    ``all`` stands for every module that can be imported.

    Raises:
        UserError: as :func:`.entries.typed_entries`.
        AttentionError: an unknown module.
    """
    chosen: list[Entry] = []
    for entry in typed_entries(argv, default=["enlca"]):
        if entry.name == ALL:
            chosen += [Entry(name, name) for name in list_attentions() if _is_sound(name)]
        else:
            find_attention(entry.name)
            chosen.append(entry)
    return chosen


def _names(entries: Sequence[Entry]) -> list[str]:
    return list(dict.fromkeys(entry.name for entry in entries))


def settings_of(entry: Entry) -> dict[str, Any]:
    """The settings of an entry with the types of the module's options.

    Raises:
        UserError: the module has no such option, or not of this type.
    """
    takes = find_attention(entry.name).options()
    values = {}
    for option, text in entry.settings.items():
        if option not in takes:
            raise UserError(
                f"--attn {entry.word}: {entry.name} has no option {option}"
                f"{did_you_mean(option, takes)}: it takes {', '.join(takes) or 'no options'}"
            )
        kind = _types(option, [entry.name])[entry.name]
        try:
            values[option] = _read(text, kind)
        except UserError:
            raise UserError(
                f"--attn {entry.word}: {option} takes {_in_words(kind)}, got {text!r}"
            ) from None
    return values


def _read(text: str, kind: Any) -> Any:
    """The text as a value of this type, read as a flag's value is.

    Raises:
        UserError: it is none.
    """
    annotation = Annotated[kind, tyro.conf.FlagConversionOff]
    made = dataclasses.make_dataclass("Setting", [("value", annotation)], kw_only=True)
    several = typing.get_origin(kind) in (tuple, list)
    if text.lower() in ("true", "false"):
        text = text.capitalize()
    words = ["--value", *text.split(",")] if several else [f"--value={text}"]
    with usage_errors():
        values: Any = tyro.cli(made, args=words)
    return values.value


def _in_words(kind: Any) -> str:
    words = {int: "an integer", float: "a number", bool: "True or False", str: "text"}
    return words.get(kind) or str(kind).replace("typing.", "")


def did_you_mean(word: str, known: Collection[str]) -> str:
    """A hint at the known word that is nearest; empty if none is near."""
    near = nearest(word, known)
    return f" (did you mean {near}?)" if near else ""


def _is_sound(name: str) -> bool:
    """Whether a module can be imported; a line names a module that cannot."""
    try:
        find_attention(name)
    except AttentionError as error:
        print(f"left out: {error}", file=sys.stderr)
        return False
    return True


def _refuse_unknown(
    argv: Sequence[str], own: Collection[str], known: Collection[str], names: Sequence[str]
) -> None:
    valid = {*own, *known}
    for token in argv:
        if not token.startswith("--") or token == "--":
            continue
        option = token[2:].split("=")[0].replace("-", "_")
        if option in valid or option.removeprefix("no_") in valid or "tyro" in option:
            continue
        flag = "--" + option.replace("_", "-")
        owners = [n for n in list_attentions() if option.removeprefix("attn_") in _options_of(n)]
        if owners and names:
            takes = "; ".join(f"{name} takes {_flags(name, own)}" for name in names)
            raise UserError(
                f"{' and '.join(names)} {'has' if len(names) == 1 else 'have'} no option {flag} "
                f"(an option of {', '.join(owners)}): {takes}"
            )
        if owners:
            raise UserError(f"{flag} cannot be set with --rows, which fixes the modules' options")
        flags = ["--" + name.replace("_", "-") for name in sorted(valid)]
        raise UserError(f"unknown option {flag}{did_you_mean(flag, flags)}; see --help")


def _options_of(name: str) -> Collection[str]:
    """Options of a module; none if it cannot be imported: an installed package may be broken."""
    try:
        return find_attention(name).options()
    except AttentionError:
        return ()


def _flags(name: str, own: Collection[str]) -> str:
    options = (module_option(option, own) for option in find_attention(name).options())
    return ", ".join("--" + option.replace("_", "-") for option in options) or "no options"


def _name(flag: str) -> str:
    """``--chunk-size=3`` to chunk_size."""
    return flag[2:].partition("=")[0].replace("-", "_")


def _with_values(argv: Sequence[str], switches: Collection[str]) -> Iterator[str]:
    """``--x`` and ``--no-x`` of a switch as ``--x True`` and ``--x False``."""
    for word, after in itertools.zip_longest(argv, argv[1:]):
        if not word.startswith("--"):
            yield word
        elif (name := _name(word)) in switches and "=" not in word:
            yield from [word] if after in ("True", "False") else [word, "True"]
        elif name.startswith("no_") and name[3:] in switches and "=" not in word:
            yield from [f"--{name[3:]}", "False"]
        else:
            yield word


def _types(option: str, names: Sequence[str]) -> dict[str, Any]:
    """Type of an option in each module that has it: the annotation, else the default's type.

    Raises:
        AttentionError: an annotation cannot be resolved.
    """
    found = {}
    for name in names:
        cls = find_attention(name)
        if (parameter := cls.options().get(option)) is None:
            continue
        try:
            hints = typing.get_type_hints(cls.__init__)
        except Exception as error:  # it runs the user's words
            raise AttentionError(
                f"the types of {name}'s options cannot be read: {error}"
            ) from error
        default = parameter.default
        kind = hints.get(option, str if default is None else type(default))
        found[name] = kind | None if default is None else kind
    return found


def _default(option: str, types_of: Mapping[str, Any]) -> Any:
    """A default for the parser; the flags show which options are given."""
    default = find_attention(next(iter(types_of))).options()[option].default
    return dataclasses.field(default_factory=lambda: default)


def _annotation(option: str, types_of: Mapping[str, Any]) -> Any:
    """Type of an option in the command, with its help: the docstring and the modules' defaults.

    Numbers come before text, integers first, so that tyro tries them in this order; then see
    :func:`_of_type`.
    """
    classes = {name: find_attention(name) for name in types_of}
    defaults = ", ".join(f"{n}: {cls.options()[option].default}" for n, cls in classes.items())
    words = argument_help(inspect.getdoc(next(iter(classes.values()))) or "").get(option, "")
    help_text = f"{words} ({defaults})".strip()
    order = [int, float, str]
    kinds = sorted(
        dict.fromkeys(types_of.values()),
        key=lambda kind: order.index(kind) if kind in order else -1,
    )
    annotation = functools.reduce(operator.or_, kinds)
    return Annotated[
        annotation,
        tyro.conf.arg(help=help_text, help_behavior_hint=""),
        tyro.conf.FlagConversionOff,
    ]


def _of_type(value: Any, kind: Any, option: str, name: str) -> Any:
    """The value as the module's own type: modules may take one option as different types."""
    if kind is float and type(value) is int:
        return float(value)
    if kind is str and isinstance(value, (int, float)):
        return str(value)
    if kind is int and type(value) is not int:
        raise UserError(f"{option} must be an integer for {name}, got {value}")
    return value


def argument_help(docstring: str) -> dict[str, str]:
    """Descriptions in the ``Args:`` section of a docstring, by argument."""
    section = docstring.partition("Args:\n")[2]
    entries = re.findall(r"^ {4}(\w+): ((?:.+\n?)(?: {8}.*\n?)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}
