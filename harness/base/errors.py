"""Errors that a user can mend, and how the command line shows them."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import io
import sys
from collections.abc import Callable, Iterator


class UserError(Exception):
    """Something the user can mend; the message is one line that names the thing and the fix."""


def command_line(main: Callable[[], None]) -> Callable[[], None]:
    """Decorate a ``main``: a user's mistake prints one line and exits with status 2.

    It runs in a context of its own: what it chooses there, such as implementations, ends with it.
    """

    @functools.wraps(main)
    def wrapped() -> None:
        for stream in (sys.stdout, sys.stderr):
            # A sign or a name that the terminal cannot show is escaped, and ends nothing.
            if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
                stream.reconfigure(errors="backslashreplace")
        try:
            contextvars.copy_context().run(main)
        except (UserError, *_attention_errors()) as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            print(
                "error: the memory does not suffice: free some, choose a smaller network or "
                "smaller sizes, or another --device",
                file=sys.stderr,
            )
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise SystemExit(130) from None
        except BrokenPipeError:  # the reader of our output went away, e.g. `| head`
            sys.stderr.close()
            raise SystemExit(141) from None

    return wrapped


def _attention_errors() -> tuple[type[Exception], ...]:
    """attention_zoo's own error; none where the package, and torch with it, is not imported."""
    zoo = sys.modules.get("attention_zoo")
    return (zoo.AttentionError,) if zoo else ()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    text = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"  # torch's, without importing torch
        or "out of memory" in text
        or "allocate memory" in text
        or "status_alloc_failed" in text  # cuBLAS, cuDNN
    )


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Turn tyro's boxed message about a bad argument into a UserError of one line."""
    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            yield
    except SystemExit as error:
        if not error.code:
            raise
        lines = [line.strip("│ ") for line in captured.getvalue().splitlines()]
        body = [line for line in lines if line and line[0] not in "╭╰"]
        # The message ends where a rule, an empty line or the list of attempts begins.
        end = next((i for i, x in enumerate(body) if x[0] == "─" or x == "Got errors:"), None)
        message = " ".join(body[:end]) or "bad arguments"
        raise UserError(f"{message.removeprefix('Error ')}; see --help") from None
