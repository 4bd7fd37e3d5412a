"""The variants that are the rows of the paper's tables and figures."""

from __future__ import annotations

import itertools
from typing import Literal, get_args

from ..base.errors import UserError
from .variants import Variant, built_in_attentions

TableName = Literal[
    "table1",
    "table2",
    "table3",
    "table4",
    "table5",
    "table6",
    "figure6",
    "rivals",
    "controls",
    "profile",
]
#: Feature maps (height, width) of the paper's Table 5.
TABLE5_SIZES = ((100, 100), (150, 150))
# What the paper writes out and the modules have as defaults: a variant names it by leaving it out.
_DEFAULTS = {"m": 128, "k": 6.0, "n1": 0.02, "n2": 0.08, "window": 8} | {
    "chunk_size": 144,
    "recurrence": 1,
}
#: Published from 2023 on, or named beside such; the last is a control without attention.
TODAY = (
    *("top-k", "hspa", "differential", "token-cluster", "cluster-landmarks", "neighbourhood"),
    *("overlap-window", "permuted-window", "patch-knn", "gated-delta", "selective-scan", "rela"),
    *("hedgehog", "large-kernel"),
)


def table_rows(table: str) -> list[Variant]:
    """Variants that are the rows of one of the paper's tables or figures, or the rivals, in order.

    Table 1: the modules of its networks EDSR, NLSN and ENLCN, and NLA. Table 2: base, ENLA, + k,
    + contrastive learning, both; without k is k = 1, no amplification, in the attention (Eq. 3)
    and in the loss (Eq. 8). Table 3: ENLCA with each n1, and for each with every n2. Table 5
    continues with the methods that the paper counts or trains but does not time. Figure 6 and the
    rivals begin with the baseline, to which the differences refer. The rivals are those of
    docs/modules.md, with windows of 8 and of 16. The controls are those of docs/tasks.md. The
    profile is every module of the zoo.

    Raises:
        UserError: no such table.
    """
    enlca = [_variant("enlca", m=m) for m in (256, 128, 64, 32, 16, 8, 4, 2)]
    none, nla, nlsa = Variant("none"), Variant("nla"), Variant("nlsa")
    controls = [none, *map(Variant, ("conv", "mean", "reference-mean", "oracle"))]
    n1_n2 = itertools.product((0.01, 0.015, 0.02, 0.03), (0.04, 0.08, 0.13, 0.2))
    rows = {
        "table1": [none, nla, nlsa, enlca[1]],
        "table2": [
            none,
            _variant("enla", k=1.0),
            Variant("enla"),
            _variant("enlca", k=1.0),
            enlca[1],
        ],
        "table3": [_variant("enlca", n1=n1, n2=n2) for n1, n2 in n1_n2],
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
            *(_variant(name, window=w) for name in ("window", "shifted-window") for w in (8, 16)),
            Variant("agent"),
            Variant("nystrom"),
            Variant("performer"),
            Variant("focused-linear"),
            Variant("atd"),
            Variant("mdta"),
            Variant("channel-attention"),
            *map(Variant, TODAY),
        ],
        "controls": controls,
        "profile": [
            *(*controls, nla),
            *(_variant("nlsa", chunk_size=size) for size in (144, 72, 24)),
            *(_variant("criss-cross", recurrence=passes) for passes in (1, 2)),
            *enlca,
            *(_variant("enla", m=m) for m in (128, 16)),
        ],
        "figure6": [none, *(_variant("enlca", k=float(k)) for k in (1, 2, 4, 6, 8, 10))],
    }
    if table not in rows:
        raise UserError(f"unknown rows {table!r}: choose from {', '.join(get_args(TableName))}")
    if table == "profile":  # and all rivals after them, without the baseline again
        return [*rows["profile"], *rows["rivals"][1:]]
    return rows[table]


def rows_to_run(table: str) -> list[Variant]:
    """As :func:`table_rows`; rivals and profile end with built-in modules that no table names.

    Raises:
        UserError: no such table.
    """
    rows = table_rows(table)
    if table not in ("rivals", "profile"):
        return rows
    named = {variant.name for name in get_args(TableName) for variant in table_rows(name)}
    return [*rows, *(Variant(name) for name in built_in_attentions() if name not in named)]


def _variant(name: str, **options: float) -> Variant:
    changed = {option: value for option, value in options.items() if value != _DEFAULTS[option]}
    return Variant(name, changed)
