"""A variant: one attention module with its options.

Naming and comparing variants needs no torch; everything that asks the module's class does.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attention_zoo import Attention

#: Channels of the "core" part: c = c_out = 64, as in the ENLCA paper's Table 4.
CORE_CHANNELS = 64
#: Channels of the "module" part, as in the paper's EDSR; the embedding is the module's default.
MODULE_CHANNELS = 256
# Letters of a label in file names, so that no name is too long for a file system.
_LONGEST_NAME = 80


@dataclass(frozen=True)
class Variant:
    """One attention module with its options; options left out take the module's defaults.

    Two variants are equal if name and options are: :meth:`of` leaves out what is at its default,
    so that it gives one variant for one module, and variants serve as keys.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # JSON has no tuples, and lists have no hash.
        options = {o: tuple(v) if isinstance(v, list) else v for o, v in self.options.items()}
        object.__setattr__(self, "options", options)

    def __hash__(self) -> int:
        return hash((self.name, frozenset(self.options)))

    @classmethod
    def of(cls, name: str, options: Mapping[str, Any]) -> Variant:
        """The variant with these options, checked, without those at their defaults.

        Raises:
            AttentionError: as :meth:`check`.
        """
        variant = cls(name, options)
        variant.check()
        defaults = _defaults(name)
        # 0 and 1 for a switch are no variants of their own.
        given = {o: bool(v) if _is_switch(defaults[o], v) else v for o, v in options.items()}
        return cls(name, cls(name, given).changed)

    def check(self) -> None:
        """Ask the module whether it has these options.

        Raises:
            AttentionError: unknown module or option, or a value that a record cannot hold.
        """
        from attention_zoo import AttentionError, check_options

        check_options(self.name, dict(self.options))
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

        The label of somebody else's module names all options that are not at their defaults:
        readers of its records may not have the module.
        """
        from attention_zoo import is_built_in

        cls = _class(self.name)
        label = cls.label(**self.options)
        return label if is_built_in(cls) else with_options(label, self._not_shown())

    @property
    def row_label(self) -> str:
        """The label, followed by what it does not show, so that it names this variant alone.

        Options that are not at their defaults follow; the module's name does if a module of
        attention_zoo could have the label.
        """
        from attention_zoo import is_built_in

        if is_built_in(_class(self.name)):
            return with_options(self.label, self._not_shown())
        return f"{self.label}, {self.name}" if _is_built_in_label(self.label) else self.label

    @property
    def entry(self) -> str:
        """The variant as ``--attn`` takes it, e.g. ``enlca:m=16,k=2``."""
        words = (
            f"{option}={','.join(map(str, v)) if isinstance(v, tuple) else v}"
            for option, v in self.changed.items()
        )
        return f"{self.name}:{','.join(words)}" if self.changed else self.name

    @property
    def without_weight(self) -> Variant:
        """The variant without ``res_scale`` among its options: with the usual weight."""
        return Variant(self.name, {o: v for o, v in self.options.items() if o != "res_scale"})

    @property
    def file_name(self) -> str:
        """The label as part of file names: small letters, digits, dot, dash and underscore.

        The class's name where nothing is left of the label.
        """
        words = (self.label, _class(self.name).__name__, "module")
        return next(word for word in map(_file_name, words) if word)

    @property
    def has_core(self) -> bool:
        """Whether the attention operation can be had alone: not of a plain module."""
        return _class(self.name).has_core

    @property
    def takes_references(self) -> bool:
        """Whether somebody has to tell it the true matches, as an oracle."""
        from attention_zoo.oracle import Oracle

        return issubclass(_class(self.name), Oracle)

    @property
    def resolved(self) -> dict[str, Any]:
        """All options with their values."""
        return _defaults(self.name) | dict(self.options)

    @property
    def recorded(self) -> dict[str, Any]:
        """The options of a record, all but later ones at their defaults: an id stays the same."""
        unnamed = _later_options(_class(self.name)) - self.changed.keys()
        return {o: value for o, value in self.resolved.items() if o not in unnamed}

    @property
    def changed(self) -> dict[str, Any]:
        """Options that are not at their defaults."""
        defaults = _defaults(self.name)
        return {
            option: value
            for option, value in self.options.items()
            if (value, type(value)) != (defaults[option], type(defaults[option]))
        }

    @property
    def source_sha256(self) -> str | None:
        """Of the file that holds the class; None for the suite's own, whose version is recorded."""
        from attention_zoo import is_built_in

        path = self.source_file
        if path is None or is_built_in(_class(self.name)):
            return None
        try:
            return hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError:  # in an archive
            return None

    @property
    def source_file(self) -> Path | None:
        """The file that holds the class; None if it was typed in."""
        try:
            path = inspect.getsourcefile(_class(self.name))
        except (OSError, TypeError):
            return None
        return Path(path) if path else None

    def create(self, channels: int, **overrides: Any) -> Attention:
        """Build the module for maps of ``channels`` channels.

        Raises:
            AttentionError: a bad name or option, or the module cannot be built.
        """
        from attention_zoo import AttentionError, create_attention

        defaults = _defaults(self.name)
        options = {
            name: list(value)
            if isinstance(value, tuple) and isinstance(defaults.get(name), list)
            else value
            for name, value in (dict(self.options) | overrides).items()
        }
        try:
            return create_attention(self.name, channels, **options)
        except AttentionError as error:
            entry = self.entry
            text = str(error)
            # Some messages begin with the name already, as those about options do.
            if text.startswith(f"{self.name} ") and ":" not in entry.removeprefix(self.name):
                raise
            raise AttentionError(f"{entry}: {text}") from error

    def to_dict(self) -> dict[str, Any]:
        """``{"name", "label", "options"}``, on which run ids depend."""
        return {"name": self.name, "label": self.label, "options": self.recorded}

    def describe(self) -> dict[str, Any]:
        """:meth:`to_dict`, and what tables say of the module: see ``records.shapes``."""
        from attention_zoo import is_built_in

        cls, digest = _class(self.name), self.source_sha256
        described = self.to_dict() | {
            "row_label": self.row_label,
            "changed": self.changed,
            "source": cls.source,
            "growth": cls.complexity,
            "built_in": is_built_in(cls),
        }
        return described if digest is None else described | {"source_sha256": digest}

    def _not_shown(self) -> dict[str, Any]:
        """Options that are not at their defaults and that the label does not show."""
        label, defaults = _class(self.name).label, _defaults(self.name)
        options = dict(self.options)
        return {
            option: value
            for option, value in self.changed.items()
            if label(**options) == label(**options | {option: defaults[option]})
        }


def create_core(variant: Variant) -> Attention:
    """The variant for the "core" part: 64 channels, the embedding not reduced.

    Raises:
        AttentionError: a bad name or option.
    """
    whole = {"reduction": 1} if "reduction" in _class(variant.name).options() else {}
    return variant.create(CORE_CHANNELS, **whole)


def with_options(label: str, options: Mapping[str, Any]) -> str:
    """The label followed by options, as ``NLSA-r4 (chunk_size=64)``."""
    text = ", ".join(f"{option}={value}" for option, value in sorted(options.items()))
    return f"{label} ({text})" if text else label


def built_in_attentions() -> list[str]:
    """Names of the modules of ``attention_zoo`` itself."""
    from attention_zoo import is_built_in, list_attentions

    # A user's may be registered too, by the decorator.
    return [name for name in list_attentions(installed=False) if is_built_in(_class(name))]


def _class(name: str) -> type[Attention]:
    from attention_zoo import find_attention

    return find_attention(name)


def _defaults(name: str) -> dict[str, Any]:
    return {option: p.default for option, p in _class(name).options().items()}


def _is_switch(default: Any, value: Any) -> bool:
    return isinstance(default, bool) and isinstance(value, (int, float)) and value in (0, 1)


def _later_options(cls: type[Attention]) -> frozenset[str]:
    """Those of the class whose ``__init__`` has the options: a subclass may have its own."""
    owner = next(one for one in cls.__mro__ if "__init__" in vars(one))
    found: frozenset[str] = vars(owner).get("later_options", frozenset())
    return found


def _is_built_in_label(label: str) -> bool:
    """Whether a module of ``attention_zoo`` gives the label, with whatever options."""
    formats = (_class(name).label_format for name in built_in_attentions())
    return any(
        re.fullmatch(".+".join(map(re.escape, re.split("{.*?}", text))), label) for text in formats
    )


def _file_name(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    found = re.sub(r"[^a-z0-9._-]+", "-", plain.lower().replace(":", "."))
    return found.strip("-._")[:_LONGEST_NAME].strip("-._")
