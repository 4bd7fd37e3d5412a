"""Row labels: what tells variants apart."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from attention_zoo import AttentionError, find_attention, is_built_in, list_attentions

from ..base.names import canonical_json


def untold_options(
    label: Callable[..., str], options: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Options that are neither at their defaults nor told by the label."""
    known = {option: value for option, value in options.items() if option in defaults}
    return {
        option: value
        for option, value in options.items()
        if option not in defaults
        or (
            value != defaults[option]
            and label(**known) == label(**known | {option: defaults[option]})
        )
    }


def told_options(label: str, options: Mapping[str, Any]) -> str:
    """The label followed by options, as ``NLSA-r4 (chunk_size=64)``."""
    text = ", ".join(f"{option}={value}" for option, value in sorted(options.items()))
    return f"{label} ({text})" if text else label


def variant_key(variant: Mapping[str, Any]) -> str:
    """What tells variants apart: the name and all options, those left out at their defaults."""
    options = _defaults(variant["name"]) | variant["options"]
    return canonical_json([variant["name"], options])


def variant_labels(variants: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Row label of each variant by its key.

    It is the recorded label, followed by the options that it does not tell: those that differ
    from the module's defaults or, for a module that is not installed, among equal labels. The
    label of a user's module that is another variant's too, or could be one of ``attention_zoo``'s,
    is followed by the module's name. So no variant is taken for another, or for the paper's row.
    """
    by_key = {variant_key(variant): variant for variant in variants}
    namesakes: dict[str, list[Mapping[str, Any]]] = {}
    for variant in by_key.values():
        namesakes.setdefault(variant["label"], []).append(variant)
    labels = {}
    for key, variant in by_key.items():
        told = _untold_options(variant, namesakes[variant["label"]])
        labels[key] = told_options(variant["label"], told)
    built_in, shared = built_in_attentions(), Counter(labels.values())
    return {
        key: f"{label}, {by_key[key]['name']}"
        if by_key[key]["name"] not in built_in and (shared[label] > 1 or _is_built_in_label(label))
        else label
        for key, label in labels.items()
    }


def built_in_attentions() -> list[str]:
    """Names of the modules of ``attention_zoo`` itself."""
    # A user's may be registered too, by the decorator.
    return [n for n in list_attentions(installed=False) if is_built_in(find_attention(n))]


def _is_built_in_label(label: str) -> bool:
    """Whether a module of ``attention_zoo`` gives the label, with whatever options."""
    formats = (find_attention(name).label_format for name in built_in_attentions())
    return any(
        re.fullmatch(".+".join(map(re.escape, re.split("{.*?}", text))), label) for text in formats
    )


def distinct_labels(variants: Sequence[Mapping[str, Any]]) -> list[str]:
    """Row label of each of a row of panels; those that several share are numbered."""
    labels = variant_labels(variants)
    names = [labels[variant_key(variant)] for variant in variants]
    return [
        name if names.count(name) == 1 else f"{name}, run {i}" for i, name in enumerate(names, 1)
    ]


def _untold_options(
    variant: Mapping[str, Any], namesakes: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    options, defaults = variant["options"], _defaults(variant["name"])
    if not defaults:
        return {
            option: value
            for option, value in options.items()
            if any(other["options"].get(option) != value for other in namesakes)
        }
    return untold_options(find_attention(variant["name"]).label, options, defaults)


@cache
def _defaults(name: str) -> dict[str, Any]:
    """Default options of a registered module; empty for a user's own, which is not imported."""
    if ":" in name:
        return {}
    try:
        options = find_attention(name).options()
    except (AttentionError, ImportError):
        return {}
    return {o: json.loads(json.dumps(p.default, default=str)) for o, p in options.items()}
