"""Shell completion of this project's commands.

After ``eval "$(python -m harness.completion bash)"`` (or ``zsh``) the shell completes commands
after ``python -m``, and their options, modules, presets and tables.
"""

from __future__ import annotations

import importlib
import shlex
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from .base.commands import command_line, usage_errors
from .base.doors import doors

_BASH = """\
_harness_complete() {
    local current=${COMP_WORDS[COMP_CWORD]} command= option= at i
    for ((i = 1; i < COMP_CWORD; i++)); do
        [[ ${COMP_WORDS[i]} == -m ]] && at=$i && command=${COMP_WORDS[i + 1]}
        [[ ${COMP_WORDS[i]} == -- && $command == -- ]] && command=${COMP_WORDS[i + 1]}
        [[ -n $command && ${COMP_WORDS[i]} == --* ]] && option=${COMP_WORDS[i]}
    done
    COMPREPLY=()
    [[ -z $at ]] && return
    if [[ $current == "$command" ]]; then
        COMPREPLY=($(compgen -W "@COMMANDS@" -- "$current"))
        return
    fi
    if [[ $current == -* ]]; then
        case $command in
@OPTIONS@
        esac
        return
    fi
    # Bash takes a colon for a word, so enlca:m= is completed word by word.
    if [[ $option == --attn && $current == : ]]; then
        _harness_settings "${COMP_WORDS[COMP_CWORD - 1]}" ""
        return
    fi
    if [[ $option == --attn && ${COMP_WORDS[COMP_CWORD - 1]} == : ]]; then
        _harness_settings "${COMP_WORDS[COMP_CWORD - 2]}" "$current"
        return
    fi
    case $command:$option in
@VALUES@
    esac
}
_harness_settings() {
    case $1 in
@SETTINGS@
    esac
    compopt -o nospace 2>/dev/null
}
complete -o bashdefault -o default -F _harness_complete python python3 torchrun
"""
_ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"


def commands() -> list[str]:
    """What can be typed after ``python -m``: the modules with an entry point."""
    return [f"harness.{name}" for name in doors()]


def options_of(command: str) -> dict[str, list[str]]:
    """Options of a command, each with the values that complete it (none: files).

    The key "" has what is typed without an option. A command with ``--attn`` has the options of
    all modules, one with ``--task`` those of all tasks.
    """
    from attention_zoo import find_attention, list_attentions

    from .config.options import module_option, own_options
    from .tasks.registry import tasks

    module = importlib.import_module(command)
    subcommands: dict[str, Callable[..., None]] = getattr(module, "COMMANDS", {})
    found: dict[str, list[str]] = {"": list(subcommands), "--help": []}
    for source in subcommands.values() if subcommands else [module.Options]:
        for name, hint in typing.get_type_hints(source, include_extras=True).items():
            if name != "return":
                _add(found, name, hint)
    if "--attn" in found:
        own = own_options(module.Options)
        for attention in list_attentions():
            cls = find_attention(attention)
            hints = typing.get_type_hints(cls.__init__)
            for name in cls.options():
                _add(found, module_option(name, own), hints.get(name))
    if "--task" in found:
        for task in tasks().values():
            hints = typing.get_type_hints(task.__init__)
            for name in task.options():
                _add(found, name, hints.get(name))
    return found


def completion(shell: Literal["bash", "zsh"]) -> str:
    """The script with which a shell completes every command."""
    known = {command: options_of(command) for command in commands()}
    options, values = [], []
    for command, takes in known.items():
        options.append(f"        {command}) {_reply(' '.join(filter(None, takes)))} ;;")
        values += [
            f"    {command}:{option}) {_reply(' '.join(choices))} ;;"
            for option, choices in takes.items()
            if choices
        ]
    settings = [
        f"        {name}) {_reply(' '.join(f'{option}=' for option in takes), '$2')} ;;"
        for name, takes in _module_options().items()
        if takes
    ]
    script = _BASH.replace("@COMMANDS@", " ".join(known))
    script = script.replace("@SETTINGS@", "\n".join(settings))
    script = script.replace("@OPTIONS@", "\n".join(options)).replace("@VALUES@", "\n".join(values))
    return (_ZSH if shell == "zsh" else "") + script


def _module_options() -> dict[str, list[str]]:
    """What can follow the colon of ``--attn enlca:m=16``, by module."""
    from attention_zoo import find_attention, list_attentions

    return {name: list(find_attention(name).options()) for name in list_attentions()}


def _reply(words: str, typed: str = "$current") -> str:
    return f'COMPREPLY=($(compgen -W {shlex.quote(words)} -- "{typed}"))'


def _add(found: dict[str, list[str]], name: str, hint: Any) -> None:
    """Add the option of a parameter, with the values that its type or its name implies."""
    parts = list(_parts(hint))
    positional = "Positional" in map(str, parts)
    flag = "" if positional else "--" + name.replace("_", "-")
    values = [str(v) for p in parts if typing.get_origin(p) is Literal for v in typing.get_args(p)]
    found[flag] = values or _values(name)
    if bool in parts:
        found["--no-" + flag[2:]] = []


def _values(name: str) -> list[str]:
    """Values of an option whose type does not list them."""
    from attention_zoo import list_attentions

    from .config.options import implementation_names
    from .config.presets import PRESETS
    from .tasks.registry import tasks

    return {
        "attn": [*list_attentions(), "all"],
        "preset": list(PRESETS),
        "device": ["auto", "cpu", "cuda", "mps"],
        "impl": implementation_names(),
        "task": list(tasks()),
    }.get(name, [])


def _parts(hint: Any) -> Iterator[Any]:
    """A type, and the parts of its unions, annotations and containers."""
    yield hint
    if typing.get_origin(hint) in (Annotated, typing.Union, types.UnionType, tuple):
        for part in typing.get_args(hint):
            yield from _parts(part)


@dataclass(frozen=True)
class Options:
    """Print a script for bash or zsh; eval "$(python -m harness.completion bash)" loads it."""

    shell: Annotated[Literal["bash", "zsh"], tyro.conf.Positional]
    """Your shell."""


@command_line
def main() -> None:
    """Entry point of ``python -m harness.completion``."""
    with usage_errors(Options):
        options = tyro.cli(Options, prog="python -m harness.completion")
    print(completion(options.shell), end="")


if __name__ == "__main__":
    main()
