"""How a command ends early: in one line, without a traceback."""

from __future__ import annotations

import codecs
import contextlib
import contextvars
import errno
import functools
import inspect
import io
import itertools
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from .. import DELETED
from .errors import UserError, is_out_of_memory
from .names import nearest
from .signals import stop_on_signals

#: What happens to characters that an encoding lacks: they are replaced by others.
PLAIN = "plain"
# Characters of tables and messages in ASCII.
_ASCII = {"×": "x", "·": "*", "±": "+-", "−": "-", "–": "-", "…": "...", "²": "^2", "Δ": "d"}
_ASCII |= {"≥": ">=", "≤": "<=", "→": "->", "’": "'", "“": '"', "”": '"', "─": "-", "━": "-"}


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """Replace what an encoding lacks: by ASCII where there is some, else by its number."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    escaped = (_ASCII.get(c) or c.encode("ascii", "backslashreplace").decode() for c in missing)
    return "".join(escaped), error.end


codecs.register_error(PLAIN, _plainly)


def command_line(main: Callable[[], None]) -> Callable[[], None]:
    """Decorate a ``main``: what ends it early is shown in one line, without a traceback.

    A user's mistake or a lack of memory exits with status 2, SIGINT with 130, SIGTERM with 143.
    ``main`` runs in a context of its own, so settings it makes, such as the choice of
    implementations, end with it.
    """

    @functools.wraps(main)
    def wrapped() -> None:
        for stream in (sys.stdout, sys.stderr):
            # Characters that the terminal cannot show are replaced instead of raising an error.
            # In the locale C, errors are "surrogateescape", which does raise one.
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors=PLAIN)
        try:
            _check_folder()
            with stop_on_signals():
                contextvars.copy_context().run(main)
        except KeyboardInterrupt as stop:
            signum = getattr(stop, "signum", signal.SIGINT)
            words = [f"stopped by {signal.Signals(signum).name}", *getattr(stop, "__notes__", [])]
            print("; ".join(words), file=sys.stderr)
            raise SystemExit(128 + signum) from None
        except SystemExit as stop:
            if place := _foreign_exit(stop):
                print(f"error: {place}", file=sys.stderr)
                raise SystemExit(2) from None
            raise
        except BrokenPipeError:  # the reader of our output went away, e.g. `| head`
            sys.stderr.close()
            raise SystemExit(141) from None
        except Exception as error:
            if (message := _user_message(error)) is None:
                raise
            print(f"error: {message}", file=sys.stderr)
            raise SystemExit(2) from None

    return wrapped


# What a user can do about errors of the file system that can meet any command anywhere.
_SPACE = "free space or choose another folder"
_RIGHTS = "give the rights to it, or choose another place"
_FILE_SYSTEM = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: _SPACE,
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EROFS: _RIGHTS,
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "remove the links that lead to themselves",
    errno.EIO: "check the disk",
    errno.ESTALE: "check the network drive",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


def _check_folder() -> None:
    try:
        os.getcwd()  # noqa: PTH109 - Path.cwd would be the same
    except OSError:
        raise UserError(DELETED) from None


def _foreign_exit(stop: SystemExit) -> str | None:
    """What to say of an exit that code from elsewhere asked for; None if it is a command's own."""
    frames = [*traceback.walk_tb(stop.__traceback__)]
    files = [(Path(frame.f_code.co_filename), line) for frame, line in frames]
    # exit() and quit() are functions of the interpreter themselves.
    files = [(path, line) for path, line in files if not path.name.startswith("<frozen")]
    if not files:
        return None
    path, line = files[-1]
    package = Path(__file__).parents[1]
    if package in path.parents or "tyro" in path.parts or path.name == "argparse.py":
        return None
    code = "" if stop.code is None else f" with {stop.code!r}"
    return (
        f"{path}, line {line}, ended the program{code}: raise an error there instead of calling "
        "sys.exit() or raising SystemExit"
    )


def _user_message(error: Exception) -> str | None:
    """What to tell the user; None for a fault of the program, which keeps its traceback."""
    zoo = sys.modules.get("attention_zoo")  # only a loaded package can have raised its error
    if isinstance(error, UserError) or (zoo and isinstance(error, zoo.AttentionError)):
        return str(error)
    if isinstance(error, OSError) and error.errno in _FILE_SYSTEM:
        place = f"{error.filename}: " if error.filename is not None else ""
        reason = error.strerror or errno.errorcode[error.errno]
        return f"{place}{reason}; {_FILE_SYSTEM[error.errno]}"
    if isinstance(error, (RuntimeError, MemoryError)) and is_out_of_memory(error):
        return (
            "not enough memory: free some, choose a smaller network or smaller sizes, "
            "or another --device"
        )
    return None


@contextlib.contextmanager
def usage_errors(options: Callable[..., object] | None = None) -> Iterator[None]:
    """Turn tyro's boxed message about a bad argument into a one-line UserError.

    Args:
        options: what tyro makes of the arguments, whose parameters are the known options.
    """
    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            yield
    except SystemExit as error:
        if not error.code:
            raise
        body = _without_box(captured.getvalue().splitlines())
        names = inspect.signature(options).parameters if options else ()
        raise UserError(f"{_usage_message(body, names)}; see --help") from None


_RULE = "─"


def _without_box(lines: Iterable[str]) -> list[str]:
    """What stands in tyro's box, without its title; rules between the parts are kept as one ─.

    Where the encoding has no lines to draw, title and rules are in ASCII.
    """
    body = [stripped for line in lines if (stripped := line.strip("│ "))]
    body = [_RULE if set(line) in ({"─"}, {"-"}) else line for line in body]
    if _RULE in body[1:2]:
        return body[2:]
    return [line for line in body if line[0] not in "╭╰"]


def _usage_message(body: list[str], names: Iterable[str]) -> str:
    """The lines of tyro's box in one line, with the known option or choice that is nearest."""
    # The message ends where a rule, an empty line or the list of attempts begins.
    end = next((i for i, x in enumerate(body) if x in (_RULE, "Got errors:")), len(body))
    message = (" ".join(body[:end]) or "bad arguments").removeprefix("Error ").rstrip(".")
    # Unknown words, in the first line or, where options are missing too, below it.
    start = next((i for i, x in enumerate(body) if x.startswith(_UNKNOWN)), None)
    if start is not None:
        after = itertools.takewhile(lambda line: line != _RULE, body[start:])
        words = " ".join(after).removeprefix(_UNKNOWN).replace(",", " ").split()
        if option := next((word for word in words if word.startswith("--")), None):
            flags = [name.replace("_", "-") for name in names]
            near = nearest(option[2:].partition("=")[0], flags)
            return f"unknown option {option}" + (f" (did you mean --{near}?)" if near else "")
        if start == 0 and words:
            return f"unexpected argument {words[0]!r}"
    if found := re.search(r"(.*)(Expected one of )\((.*?)\)(.*)", message):
        # Their order is random; None stands for the absence of one.
        choices = sorted(set(re.findall(r"'([^']*)'", found[3])) - {"None"})
        given = re.search(r"invalid choice '([^']*)'", message)
        near = nearest(given[1], choices) if given else None
        hint = f" (did you mean {near}?)" if near else ""
        message = f"{found[1]}{found[2]}{', '.join(choices)}{found[4]}{hint}"
    return message


_UNKNOWN = "Unrecognized options:"
