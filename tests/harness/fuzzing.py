"""Inputs nobody thought of. ``FUZZ_EXAMPLES`` says how many of each kind are tried."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from harness.base.errors import UserError

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))
fuzz = settings(
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
#: For what takes a tenth of a second.
slow_fuzz = settings(fuzz, max_examples=max(1, EXAMPLES // 3))

numbers = (
    st.integers()
    | st.integers(-2, 9)
    | st.floats()
    | st.sampled_from([2**31, 2**63, 2**64, -(2**63), 1e308, 5e-324])
)

anything = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 40) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)


def mutated(content: bytes) -> st.SearchStrategy[bytes]:
    """The content with some bytes changed, put in or taken out, or cut, or anything else."""
    place = st.integers(0, len(content) - 1)
    edit = st.tuples(place, place.map(lambda i: i % 9), st.binary(max_size=9))

    def apply(edits: list[tuple[int, int, bytes]]) -> bytes:
        out = content
        for start, gone, new in edits:
            out = out[:start] + new + out[start + gone :]
        return out

    flips = st.lists(st.tuples(place, st.integers(0, 7)), min_size=1, max_size=20)

    def flip(bits: list[tuple[int, int]]) -> bytes:
        out = bytearray(content)
        for at, bit in bits:
            out[at] ^= 1 << bit
        return bytes(out)

    edited = st.lists(edit, min_size=1, max_size=4).map(apply)
    return flips.map(flip) | edited | place.map(lambda n: content[:n]) | st.binary(max_size=99)


def change_one(content: dict[str, Any], value: Any, data: st.DataObject) -> None:
    """Put a value in the place of another, wherever that is."""
    place: Any = content
    while True:
        keys = sorted(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        inner = place[key]
        if not isinstance(inner, (dict, list)) or not inner or not data.draw(st.booleans()):
            place[key] = value
            return
        place = inner


def check_message(error: Exception, *words: object) -> None:
    """A refusal is one line that names what is at fault."""
    text = str(error)
    assert text
    assert "\n" not in text
    assert all(str(word) in text for word in words)


@contextmanager
def taken_or_refused(*words: object, refusals: Any = UserError) -> Iterator[None]:
    """Input is taken whole, or refused with one line that names ``words``; nothing else."""
    try:
        yield
    except refusals as error:
        check_message(error, *words)
