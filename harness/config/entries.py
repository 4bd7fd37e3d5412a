"""Entries of ``--attn``: modules, each with settings of its own if it has any.

``enlca:m=16,k=2`` is enlca with m = 16 and k = 2, and ``my_package.my_module:Mine:window=8`` a
module of one's own. So one command can name a module several times.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from attention_zoo import list_attentions

from ..base.errors import UserError
from .rows import rows_to_run

ALL = "all"


@dataclass(frozen=True)
class Entry:
    """A module's name and its settings, as text by option.

    Attributes:
        word: as it was typed.
    """

    word: str
    name: str
    settings: Mapping[str, str] = field(default_factory=dict)


def parse_entry(word: str) -> Entry:
    """The entry of a word.

    Raises:
        UserError: the settings have another form, or name an option twice.
    """
    # A class has no "=" in its name; a value may have commas and colons.
    found = re.fullmatch(r"([^=]+?):([\w-]+=.*)", word, re.DOTALL)
    name, text = (found[1], found[2]) if found else (word, "")
    known = (ALL, *list_attentions())
    if not found and ("=" in word or (word.partition(":")[0] in known and ":" in word)):
        raise UserError(f"--attn {word}: settings follow as option=value, e.g. enlca:m=16,k=2")
    if found and name == ALL:
        raise UserError(f"--attn {word}: {ALL} takes no settings; give the option, e.g. --m 16")
    settings: dict[str, str] = {}
    for part in re.split(r",(?=[\w-]+=)", text) if text else ():
        option, _, value = part.partition("=")
        option = option.replace("-", "_")
        if option in settings:
            raise UserError(f"--attn {word}: {option} is given twice")
        settings[option] = value
    return Entry(word, name, settings)


def typed_entries(argv: Sequence[str], default: Sequence[str] = ()) -> list[Entry]:
    """The entries after ``--attn`` in a command line, or the command's default; none with --rows.

    Raises:
        UserError: ``--attn`` without a name or beside ``--rows``, or as :func:`parse_entry`.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--attn", nargs="*")
    parser.add_argument("--rows")
    try:
        known, _ = parser.parse_known_args(list(argv))
    except (argparse.ArgumentError, SystemExit) as error:
        raise UserError(f"{error}; see --help") from None
    if known.rows is not None:
        rows_to_run(known.rows)  # an unknown name shows here, with the names in their order
        if known.attn is not None:
            raise UserError("give either --attn or --rows, not both")
        return []
    if known.attn == []:
        raise UserError(f"--attn needs a name: choose from {', '.join(list_attentions())}, or all")
    return [parse_entry(word) for word in dict.fromkeys(known.attn or default)]
