"""A variant: one attention module with its options."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import attention_zoo
from attention_zoo import Attention, AttentionError, find_attention

from .labels import told_options, untold_options

# Letters of a label in file names, so that no name is too long for a file system.
_LONGEST_NAME = 80


@dataclass(frozen=True)
class Variant:
    """One attention module with its options; options left out take the module's defaults.

    Raises:
        AttentionError: unknown module or option, or a value that a record cannot hold.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        attention_zoo.check_options(self.name, self.options)
        for option, value in self.resolved.items():
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError):
                raise AttentionError(
                    f"{self.name}: {option} = {value!r} cannot be kept in a record: options are "
                    "finite numbers, text, True, False, None, or tuples of these"
                ) from None

    @property
    def label(self) -> str:
        """Row label, e.g. ``ENLCA-m16``.

        That of a module which is not this package's names all options that are not at their
        defaults: readers of its records may not have the module.
        """
        cls = attention_zoo.find_attention(self.name)
        label = cls.label(**self.options)
        if attention_zoo.is_built_in(cls):
            return label
        defaults = {name: p.default for name, p in cls.options().items()}
        return told_options(label, untold_options(cls.label, self.options, defaults))

    @property
    def file_name(self) -> str:
        """The label as part of file names: small letters, digits, dot, dash and underscore.

        The class's name where nothing is left of the label.
        """
        words = (self.label, attention_zoo.find_attention(self.name).__name__, "module")
        return next(word for word in map(_file_name, words) if word)

    @property
    def resolved(self) -> dict[str, Any]:
        """All options with their values."""
        defaults = attention_zoo.find_attention(self.name).options()
        return {name: p.default for name, p in defaults.items()} | self.options

    @property
    def source_sha256(self) -> str | None:
        """Of the file that holds the class; None for the suite's own, whose version is recorded."""
        cls = attention_zoo.find_attention(self.name)
        if attention_zoo.is_built_in(cls):
            return None
        try:
            path = inspect.getsourcefile(cls)
            return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else None
        except (OSError, TypeError):  # typed in, or in an archive
            return None

    def create(self, channels: int, **overrides: Any) -> Attention:
        """Build the module for maps of ``channels`` channels."""
        defaults = attention_zoo.find_attention(self.name).options()
        # JSON has no tuples.
        options = {
            name: tuple(value)
            if isinstance(value, list) and isinstance(defaults[name].default, tuple)
            else value
            for name, value in (self.options | overrides).items()
        }
        return attention_zoo.create_attention(self.name, channels, **options)

    def to_dict(self) -> dict[str, Any]:
        """``{"name", "label", "options"}`` as records hold it."""
        return {"name": self.name, "label": self.label, "options": self.resolved}


def _file_name(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    found = re.sub(r"[^a-z0-9._-]+", "-", plain.lower().replace(":", "."))
    return found.strip("-._")[:_LONGEST_NAME].strip("-._")


#: Channels of the "core" part: c = c_out = 64, as in the ENLCA paper's Table 4.
CORE_CHANNELS = 64
#: Channels of the "module" part, as in the paper's EDSR; the embedding is the module's default.
MODULE_CHANNELS = 256


def create_core(variant: Variant) -> Attention:
    """The variant for the "core" part: 64 channels, the embedding not reduced.

    Raises:
        AttentionError: a bad name or option.
    """
    whole = {"reduction": 1} if "reduction" in find_attention(variant.name).options() else {}
    return variant.create(CORE_CHANNELS, **whole)
