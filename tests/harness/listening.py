"""The progress that measurements report."""

from __future__ import annotations


def texts_of(progress: list[tuple[float, str]]) -> set[str]:
    """Texts of what ``on_run`` heard; its shares grow from 0 to at most 1."""
    shares = [share for share, _ in progress]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert 0.5 <= shares[-1] <= 1
    return {text for _, text in progress}
