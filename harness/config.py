"""What a run is: variants of attention, rows of the paper's tables, presets, configuration."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import itertools
import json
import math
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import attention_zoo
from attention_zoo import Attention, AttentionError
from attention_zoo.implementations import AUTO

from .errors import UserError

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


TableName = Literal[
    "table1",
    "table2",
    "table3",
    "table4",
    "table5",
    "table6",
    "figure6",
    "rivals",
]


def table_rows(table: str) -> list[Variant]:
    """Variants that are the rows of one of the paper's tables or figures, or the rivals, in order.

    Table 1: the modules of its networks EDSR, NLSN and ENLCN, and NLA. Table 2: base, ENLA, + k,
    + contrastive learning, both; without k is k = 1, no amplification, in the attention (Eq. 3)
    and in the loss (Eq. 8). Table 3: ENLCA with each n1, and for each with every n2. Table 5 goes
    on with the methods that the paper counts or trains but does not time. Figure 6 begins with
    the baseline, which the differences are to. So do the rivals: what docs/modules.md lists under
    that name, windows of 8 and of 16.

    Raises:
        UserError: no such table.
    """
    enlca = [Variant("enlca", {"m": m}) for m in (256, 128, 64, 32, 16, 8, 4, 2)]
    none, nla, nlsa = Variant("none"), Variant("nla"), Variant("nlsa")
    plain = {"k": 1.0}
    n1_n2 = itertools.product((0.01, 0.015, 0.02, 0.03), (0.04, 0.08, 0.13, 0.2))
    rows = {
        "table1": [none, nla, nlsa, enlca[1]],
        "table2": [
            none,
            Variant("enla", plain),
            Variant("enla"),
            Variant("enlca", plain),
            enlca[1],
        ],
        "table3": [Variant("enlca", {"n1": n1, "n2": n2}) for n1, n2 in n1_n2],
        "table4": [none, nla, Variant("conv"), nlsa, *enlca],
        "table5": [nla, nlsa, enlca[1], enlca[4], Variant("criss-cross"), Variant("conv")],
        "table6": [none, nla, Variant("criss-cross"), nlsa, enlca[1]],
        "rivals": [
            none,
            Variant("nla-flash"),
            Variant("nlrn"),
            Variant("region"),
            Variant("rnan"),
            Variant("csnln"),
            *(Variant(n, {"window": w}) for n in ("window", "shifted-window") for w in (8, 16)),
            Variant("agent"),
            Variant("nystrom"),
            Variant("performer"),
            Variant("focused-linear"),
            Variant("atd"),
            Variant("mdta"),
            Variant("channel-attention"),
        ],
        "figure6": [none, *(Variant("enlca", {"k": float(k)}) for k in (1, 2, 4, 6, 8, 10))],
    }
    if table not in rows:
        raise UserError(f"unknown rows {table!r}: choose from {', '.join(rows)}")
    return rows[table]


@dataclass(frozen=True)
class Preset:
    """Size of network and training; each value can be overridden on the command line."""

    blocks: int
    channels: int
    block_res_scale: float
    patch: dict[int, int]
    batch: int
    steps: int
    steps_per_epoch: int
    learning_rate: float
    schedule: str
    purpose: str


PRESETS = {
    "quick": Preset(
        blocks=8,
        channels=32,
        block_res_scale=1.0,
        patch={2: 28, 3: 28, 4: 28},
        batch=16,
        steps=300,
        steps_per_epoch=100,
        learning_rate=1e-3,
        schedule="one-cycle",
        purpose="a newcomer: embedded images, under 5 minutes on 2 cores",
    ),
    "small": Preset(
        blocks=8,
        channels=32,
        block_res_scale=1.0,
        patch={2: 28, 3: 28, 4: 28},
        batch=16,
        steps=1000,
        steps_per_epoch=100,
        learning_rate=1e-3,
        schedule="one-cycle",
        purpose="a real image folder on a laptop or in CI",
    ),
    "base": Preset(
        blocks=16,
        channels=64,
        block_res_scale=1.0,
        patch={2: 48, 3: 48, 4: 48},
        batch=16,
        steps=50_000,
        steps_per_epoch=1000,
        learning_rate=4e-4,
        schedule="halving",
        purpose="DIV2K or a real folder, one GPU, minutes to an hour a variant",
    ),
    "paper": Preset(
        blocks=32,
        channels=256,
        block_res_scale=0.1,
        patch={2: 46, 3: 28, 4: 28},
        batch=16,
        steps=1_000_000,
        steps_per_epoch=1000,
        learning_rate=1e-4,
        schedule="halving",
        purpose="the ENLCA paper: DIV2K, 1000 epochs of 1000 steps",
    ),
}


def find_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        UserError: no such preset.
    """
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}: choose from {', '.join(PRESETS)}")
    return PRESETS[name]


@dataclass(frozen=True)
class DataConfig:
    """The images of a run, without a path: two machines with the same images agree."""

    name: str
    train: list[str]
    train_images: int
    train_sha256: str
    test: list[str]


@dataclass(frozen=True)
class StartConfig:
    """Training of the baseline that the runs of protocol ``warm-start`` begin with."""

    steps: int
    learning_rate: float
    schedule: str


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run's result. Equal configurations have equal ids.

    Protocol ``scratch`` has no ``start``. In ``warm-start`` the backbone begins with the weights
    of :attr:`baseline`, the same for every variant of a seed, and trains ``steps`` further.
    ``implementation`` is a choice of ``attention_zoo.implementations``; ``auto`` is left out of
    records and ids.
    """

    variant: Variant
    preset: str
    protocol: str
    scale: int
    seed: int
    blocks: int
    channels: int
    block_res_scale: float
    patch: int
    batch: int
    steps: int
    steps_per_epoch: int
    learning_rate: float
    schedule: str
    betas: tuple[float, float]
    auxiliary_weight: float
    auxiliary_warmup: float
    precision: str
    device: str
    tile: int | None
    data: DataConfig
    start: StartConfig | None = None
    implementation: str = AUTO

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise UserError(
                f"unknown protocol {self.protocol!r}: choose from {', '.join(PROTOCOLS)}"
            )
        if self.start is not None:
            _ = self.baseline  # its values are checked too
        for name in ("blocks", "channels", "patch", "batch", "steps", "steps_per_epoch"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.blocks < 4:
            raise UserError(
                f"blocks must be at least 4 (attention follows each quarter), got {self.blocks}"
            )
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed must be 0 to {2**32 - 1}, got {self.seed}")
        if not math.isfinite(self.block_res_scale):
            raise UserError(f"block res scale must be finite, got {self.block_res_scale}")
        if not 0 <= self.auxiliary_weight < math.inf:
            raise UserError(
                f"auxiliary weight must be a finite number, at least 0, got {self.auxiliary_weight}"
            )
        if self.scale not in (2, 3, 4):
            raise UserError(f"scale must be 2, 3 or 4, got {self.scale}")
        if not 0 < self.learning_rate < float("inf"):
            raise UserError(
                f"learning rate must be a finite number above 0, got {self.learning_rate}"
            )
        if not 0 <= self.auxiliary_warmup <= 1:
            raise UserError(
                f"auxiliary warm-up must be a share, 0 to 1, got {self.auxiliary_warmup}"
            )
        if self.schedule not in SCHEDULES:
            raise UserError(
                f"unknown schedule {self.schedule!r}: choose from {', '.join(SCHEDULES)}"
            )
        if self.precision not in PRECISIONS:
            raise UserError(
                f"unknown precision {self.precision!r}: choose from {', '.join(PRECISIONS)}"
            )
        if self.tile is not None and self.tile < 16:
            raise UserError(f"tile must be at least 16 LR pixels, got {self.tile}")

    @property
    def setting(self) -> dict[str, Any]:
        """The configuration without its variant: what records hold as ``config``."""
        values = dataclasses.asdict(self)
        del values["variant"]
        if self.start is None:
            del values["start"]
        if self.implementation == AUTO:
            del values["implementation"]
        values["betas"] = list(self.betas)
        return values

    @property
    def baseline(self) -> RunConfig:
        """The run whose weights a warm start begins with: plain EDSR, trained from scratch."""
        if self.start is None:
            raise ValueError("a run from scratch has no baseline to begin with")
        return dataclasses.replace(
            self,
            variant=Variant("none"),
            protocol="scratch",
            start=None,
            **dataclasses.asdict(self.start),
        )

    @property
    def run_id(self) -> str:
        """Readable name with a hash of the full configuration."""
        content = json.dumps(
            {"variant": self.variant.to_dict(), "config": self.setting},
            sort_keys=True,
            separators=(",", ":"),
        )
        digest = hashlib.sha256(content.encode()).hexdigest()[:12]
        return f"{self.variant.file_name}-{self.preset}-x{self.scale}-s{self.seed}-{digest}"


PROTOCOLS = ("scratch", "warm-start")
PRECISIONS = ("float32", "tf32", "bfloat16")
SCHEDULES = ("halving", "one-cycle")


def learning_rate(config: RunConfig, step: int) -> float:
    """Learning rate of a step (from 0).

    ``halving``: the paper's, halved after each fifth of the steps. ``one-cycle``: linear warm-up
    over a tenth, then a cosine down to 1 % (Smith and Topin 2019).
    """
    share = step / config.steps
    if config.schedule == "halving":
        return config.learning_rate * 0.5 ** int(5 * share)
    if share < 0.1:
        return config.learning_rate * (0.04 + 0.96 * share / 0.1)
    return config.learning_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * (share - 0.1) / 0.9)) / 2)
