"""Errors that a user can fix."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can fix; the message is one line that names the thing and the fix."""


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
