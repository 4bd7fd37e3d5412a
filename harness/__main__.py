"""The commands, a line each: ``python -m harness``, or ``attention-zoo`` where it is installed.

``attention-zoo run --attn enlca`` is ``python -m harness.run --attn enlca``.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Mapping

from . import __version__
from .base.commands import command_line
from .base.doors import doors
from .base.errors import UserError
from .base.names import nearest


def overview(commands: Mapping[str, str]) -> str:
    """What ``python -m harness`` prints."""
    width = max(map(len, commands))
    lines = [f"  {name:{width}}  {text}" for name, text in commands.items()]
    return "\n".join(
        [
            f"attention-zoo {__version__}. Type attention-zoo COMMAND, or python -m "
            "harness.COMMAND; --help explains its options.",
            "",
            *lines,
        ]
    )


@command_line
def tell() -> None:
    """List the commands.

    Raises:
        UserError: a word that is no command.
    """
    word, commands = "".join(sys.argv[1:2]), doors()
    if word in ("", "-h", "--help"):
        print(overview(commands))
    elif word == "--version":
        print(__version__)
    else:
        near = nearest(word, commands)
        hint = f"did you mean {near}?" if near else f"choose from {', '.join(commands)}"
        raise UserError(f"there is no command {word!r}: {hint}")


def main() -> None:
    """Entry point of ``attention-zoo``: run a command, or :func:`tell` which there are."""
    name = "".join(sys.argv[1:2]).removeprefix("harness.")
    if name not in doors():
        tell()
        return
    sys.argv = [f"harness.{name}", *sys.argv[2:]]
    runpy.run_module(f"harness.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
