"""Requirements and predictions of docs/tasks.md as conditions on a profile's numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

from ..config.profile import PROFILE
from ..config.variants import with_options

if TYPE_CHECKING:
    from .profile import Profile
    from .statistics import Estimate

#: What is held to be 0 in scores.
SLACK = 0.02
#: Least number of rows of an order.
ROWS = 3
#: D of each setting of recall.
PAIRS = {task.label: int(task.options["pairs"]) for task in PROFILE if task.task == "recall"}
_D4, _D16 = PAIRS
#: Sizes of the test sets, in the order of their names in the records.
SIZES = ("n", "2n", "4n")
HELD, FAILED, NOT_MEASURED = "held", "did not hold", "not measured"


@dataclass(frozen=True)
class Finding:
    """One line of the findings.

    Attributes:
        topic: ``law``, ``effect``, ``order``, ``requirement`` or ``prediction``.
        statement: what was asked or predicted.
        verdict: ``held``, ``did not hold``, ``not measured``; "" for what was no prediction.
        numbers: the answer in numbers.
        value, low, high: the main number with its interval; None where there is no single one.
    """

    topic: str
    statement: str
    verdict: str
    numbers: str
    value: float | None = None
    low: float | None = None
    high: float | None = None


def bracket(found: Estimate, form: str) -> str:
    """The interval as `` [low, high]``; "" where there is none."""
    if found.low is None or found.high is None:
        return ""
    return f" [{found.low:{form}}, {found.high:{form}}]"


@dataclass(frozen=True)
class Condition:
    """Part of a prediction.

    Attributes:
        holds: None if not measured.
        score: what is compared, with its number.
        relation: to what, as ``≤ 0.02``.
    """

    holds: bool | None
    score: str
    relation: str = ""


@dataclass(frozen=True)
class Prediction:
    """A statement, and the conditions that a profile gives for it."""

    statement: str
    conditions: Callable[[Profile], list[Condition]]


@dataclass(frozen=True)
class Compared:
    """A score: in words, and None where it was not measured."""

    name: str
    value: float | None

    @property
    def shown(self) -> str:
        return f"{self.name} {'–' if self.value is None else f'{self.value:.3f}'}"


@dataclass(frozen=True)
class _Reader:
    """Scores of a profile in one setting."""

    profile: Profile
    setting: str = _D4

    def __call__(self, name: str, size: int, **options: float) -> Compared:
        row = self.profile.row(name, **options)
        label = row.label if row else with_options(name, options)
        where = "" if self.setting == _D4 else f"{self.setting} "
        found = row.score(self.setting, size) if row else None
        if row and found and not row.cells[self.setting].finished:
            label += "*"
        return Compared(f"{label} {where}{SIZES[size]}", found.mean if found else None)


def _at_most(score: Compared, bound: Compared | float, slack: float = 0.0) -> Condition:
    """The score is at most the bound and the slack."""
    return _compare(score, bound, "≤", lambda a, b: a <= b + slack)


def at_least(score: Compared, bound: Compared | float, slack: float = 0.0) -> Condition:
    return _compare(score, bound, "≥", lambda a, b: a >= b - slack)


def _above(score: Compared, bound: Compared | float) -> Condition:
    return _compare(score, bound, ">", lambda a, b: a > b)


def _below(score: Compared, bound: Compared | float) -> Condition:
    return _compare(score, bound, "<", lambda a, b: a < b)


def _near(score: Compared, bound: Compared | float, slack: float) -> Condition:
    return _compare(score, bound, f"within {slack:g} of", lambda a, b: abs(a - b) <= slack)


def _compare(
    score: Compared, bound: Compared | float, words: str, test: Callable[[float, float], bool]
) -> Condition:
    if isinstance(bound, Compared):
        value, against = bound.value, bound.shown
    else:
        value, against = bound, f"{bound:.3g}"
    known = score.value is not None and value is not None
    holds = test(score.value, value) if known else None  # type: ignore[arg-type]
    return Condition(holds, score.shown, f"{words} {against}")


def _chain(
    scores: Sequence[Compared], words: str, test: Callable[[float, float], bool]
) -> Condition:
    """Each score is in a relation to the next; not measured if one is not, and no pair fails."""
    pairs = [
        test(one.value, two.value)
        for one, two in pairwise(scores)
        if one.value is not None and two.value is not None
    ]
    holds = None if len(pairs) < len(scores) - 1 else True
    text = f" {words} ".join(score.shown for score in scores)
    return Condition(False if False in pairs else holds, text)


def _texts(conditions: Sequence[Condition]) -> str:
    """Numbers of those that were measured; scores of one relation are listed before it."""
    found = []
    for (holds, relation), group in groupby(conditions, lambda one: (one.holds, one.relation)):
        if holds is not None:
            text = f"{', '.join(one.score for one in group)} {relation}".rstrip()
            found.append(text if holds else f"not: {text}")
    if lacking := sum(one.holds is None for one in conditions):
        found.append(f"{lacking} of {len(conditions)} conditions not measured")
    return "; ".join(found)


def checked(profile: Profile, topic: str, prediction: Prediction) -> Finding:
    """Held if all conditions do; not held if one does not; else not measured."""
    conditions = prediction.conditions(profile)
    results = [condition.holds for condition in conditions]
    verdict = HELD if results and None not in results else NOT_MEASURED
    if False in results:
        verdict = FAILED
    # Those that decide come first.
    ordered = sorted(conditions, key=lambda one: one.holds is not False)
    return Finding(topic, prediction.statement, verdict, _texts(ordered))


def _deleted(profile: Profile) -> list[Condition]:
    """The highest score of all rows without references."""
    found = [
        (estimate.mean, f"{row.label} {setting} {SIZES[size]}")
        for row in profile.rows
        for setting, cell in row.cells.items()
        for size in range(len(cell.test_sets))
        if (estimate := cell.control("deleted", size))
    ]
    value, name = max(found, default=(None, "every row"))
    return [_at_most(Compared(f"highest of all: {name}", value), SLACK)]


def _apart(profile: Profile) -> list[Condition]:
    """The intervals of m = 128 and 16 do not touch."""
    conditions = []
    many, few = profile.row("enlca"), profile.row("enlca", m=16)
    for size in (1, 2):
        one = many.score(_D4, size) if many else None
        two = few.score(_D4, size) if few else None
        text = f"m = 128 {_with_interval(one)} and m = 16 {_with_interval(two)}"
        known = one and two and one.low is not None and two.high is not None
        holds = one.low > two.high if known else None  # type: ignore[union-attr, operator]
        conditions.append(Condition(holds, f"{SIZES[size]}: {text}"))
    return conditions


def _with_interval(found: Estimate | None) -> str:
    return f"{found.mean:.3f}{bracket(found, '.3f')}" if found else "–"


def _reference_mean_is_one_over_d(profile: Profile) -> list[Condition]:
    read = _Reader(profile)
    return [_near(read("reference-mean", size), 1 / PAIRS[_D4], 0.03) for size in range(3)]


def _mean_is_one_over_d(profile: Profile) -> list[Condition]:
    read = _Reader(profile)
    return [_near(read("mean", size), 1 / PAIRS[_D4], 0.03) for size in range(3)]


def _lower(profile: Profile) -> list[Condition]:
    """Every row is lower at the larger D, but for what is 0."""
    each = [
        _at_most(Compared(f"{row.label} {_D16} 2n", two.mean), Compared(_D4, one.mean), SLACK)
        for row in profile.rows
        if (one := row.score(_D4, 1)) and (two := row.score(_D16, 1))
    ]
    failed = [one for one in each if not one.holds]
    text = f"{len(each) - len(failed)} of {len(each)} rows"
    return [*failed, Condition(True if each else None, text)]


def _diluted(profile: Profile) -> list[Condition]:
    """The plain mean as N grows fourfold: r = 1, 1/4, 1/16 in r (2 - r) / D."""
    return [
        _near(_Reader(profile, setting)("mean", size), r * (2 - r) / pairs, 0.03)
        for setting, pairs in PAIRS.items()
        for size, r in enumerate((1, 1 / 4, 1 / 16))
    ]


def _small_m(profile: Profile) -> list[Condition]:
    conditions = []
    for setting, pairs in PAIRS.items():
        read = _Reader(profile, setting)
        each = [
            read("enlca", 1, **({} if m == 128 else {"m": m}))
            for m in (256, 128, 64, 32, 16, 8, 4, 2)
        ]
        conditions.append(_chain(each, "≥", lambda a, b: a >= b - SLACK))
        conditions += [
            _at_most(read("enlca", 1, m=m), 1 / pairs, SLACK) for m in (16, 8, 4, 2) if m <= pairs
        ]
    return conditions


def _contrastive(profile: Profile) -> list[Condition]:
    return [
        _above(_Reader(profile, setting)("enlca", size), _Reader(profile, setting)("enla", size))
        for setting in PAIRS
        for size in (1, 2)
    ]


def _windows(profile: Profile) -> list[Condition]:
    read = _Reader(profile)
    return [
        _at_most(read(name, size, **options), bound)
        for options, bound in (({}, SLACK), ({"window": 16}, 0.05))
        for name in ("window", "shifted-window")
        for size in range(3)
    ]


def _falls(read: _Reader, name: str, **options: float) -> list[Condition]:
    each = [read(name, size, **options) for size in range(3)]
    return [_chain(each, ">", lambda a, b: a > b)]


#: What issue and documents demand of the task and of the main rows, at D = 4 if not told.
REQUIREMENTS = (
    Prediction(
        "none is at 0 at 2n and 4n",
        lambda p: [_at_most(_Reader(p)("none", size), SLACK) for size in (1, 2)],
    ),
    Prediction("without references every row is at 0", _deleted),
    Prediction("mean is at 1/D at all n", _mean_is_one_over_d),
    Prediction("the mean over the references is at 1/D at all n", _reference_mean_is_one_over_d),
    Prediction(
        "oracle is at least 0.98 at all n",
        lambda p: [at_least(_Reader(p)("oracle", size), 0.98) for size in range(3)],
    ),
    Prediction(
        "nla is at least 0.9 at 2n and 4n",
        lambda p: [at_least(_Reader(p)("nla", size), 0.9) for size in (1, 2)],
    ),
    Prediction("the intervals of enlca with m = 128 and 16 do not touch at 2n and 4n", _apart),
    Prediction(
        "nlsa falls with N for chunks of 24, 72 and 144",
        lambda p: [
            one
            for options in ({}, {"chunk_size": 72}, {"chunk_size": 24})
            for one in _falls(_Reader(p), "nlsa", **options)
        ],
    ),
)

#: The predictions of docs/tasks.md as conditions, at D = 4 if not told.
#: Of the modules of today: scores at 2n and 4n, one setting after the other, and how near they are.
_TODAY = {
    "top-k": ((0.92, 0.91), (0.72, 0.62), (0.60, 0.58), (0.62, 0.55)),
    "hspa": ((0.94, 0.93), (0.80, 0.70), (0.62, 0.60), (0.65, 0.55)),
    "differential": ((0.88, 0.80), (0.50, 0.35), (0.45, 0.35), (0.35, 0.25)),
    "token-cluster": ((0.15, 0.05), (0.05, 0.02), (0.35, 0.30), (0.35, 0.25)),
    "cluster-landmarks": ((0.10, 0.05), (0.03, 0.03), (0.10, 0.10), (0.25, 0.30)),
    "neighbourhood": ((0.0, 0.0), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0)),
    "overlap-window": ((0.28, 0.05), (0.15, 0.0), (0.0, -0.1), (0.35, 0.28)),
    "permuted-window": ((0.75, 0.05), (0.45, 0.0), (0.45, -0.1), (0.50, 0.25)),
    "patch-knn": ((0.60, 0.10), (0.80, 0.15), (0.60, 0.0), (0.60, 0.45)),
    "gated-delta": ((0.75, 0.60), (0.50, 0.35), (0.30, 0.25), (0.25, 0.15)),
    "selective-scan": ((0.50, 0.30), (0.20, 0.10), (0.20, 0.12), (0.20, 0.10)),
    "rela": ((0.40, 0.38), (0.10, 0.09), (0.12, 0.12), (0.0, 0.0)),
    "hedgehog": ((0.65, 0.55), (0.30, 0.22), (0.25, 0.25), (0.15, 0.15)),
    "large-kernel": ((0.0, 0.0), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0)),
}
_WITHIN = 0.15


def _of_today() -> list[Prediction]:
    settings = [task.label for task in PROFILE]

    def conditions(profile: Profile, name: str) -> list[Condition]:
        return [
            _near(_Reader(profile, setting)(name, size), Compared("predicted", value), _WITHIN)
            for setting, values in zip(settings, _TODAY[name], strict=True)
            for size, value in zip((1, 2), values, strict=True)
        ]

    return [
        Prediction(
            f"{name}: within {_WITHIN} of the predicted scores at 2n and 4n, on every setting",
            lambda profile, name=name: conditions(profile, name),  # type: ignore[misc]
        )
        for name in _TODAY
    ]


PREDICTIONS = (
    Prediction(
        "none, conv, channel-attention: 0",
        lambda p: [
            _at_most(_Reader(p)(name, size), SLACK)
            for name in ("none", "conv", "channel-attention")
            for size in (1, 2)
        ],
    ),
    Prediction(
        "mdta: at most that of mean",
        lambda p: [_at_most(_Reader(p)("mdta", s), _Reader(p)("mean", s), SLACK) for s in (1, 2)],
    ),
    Prediction("mean: 1/D at n, 0.44/D at 2n, 0.12/D at 4n", _diluted),
    Prediction(
        "oracle: above 0.98 at all n",
        lambda p: [_above(_Reader(p)("oracle", size), 0.98) for size in range(3)],
    ),
    Prediction(
        "nla, nla-flash: above 0.9 at all n, a little lower at 4n",
        lambda p: [
            condition
            for name in ("nla", "nla-flash")
            for condition in (
                *(_above(_Reader(p)(name, size), 0.9) for size in range(3)),
                _below(_Reader(p)(name, 2), _Reader(p)(name, 1)),
            )
        ],
    ),
    Prediction(
        "enlca, enla at m = 128: below NLA, and falling with n",
        lambda p: [
            condition
            for name in ("enlca", "enla")
            for condition in (
                *(_below(_Reader(p)(name, size), _Reader(p)("nla", size)) for size in (1, 2)),
                *_falls(_Reader(p), name),
            )
        ],
    ),
    Prediction("enlca: falls with m; 1/D or below for m up to D", _small_m),
    Prediction("enlca against enla: the contrastive loss helps", _contrastive),
    Prediction(
        "performer: like enla or below",
        lambda p: [
            _at_most(_Reader(p)("performer", s), _Reader(p)("enla", s), 0.05) for s in (1, 2)
        ],
    ),
    Prediction(
        "nlsa: within 0.05 of NLA at n, falls with N, smaller chunks sooner",
        lambda p: [
            _near(_Reader(p)("nlsa", 0), _Reader(p)("nla", 0), 0.05),
            *_falls(_Reader(p), "nlsa"),
            _above(_Reader(p)("nlsa", 1), _Reader(p)("nlsa", 1, chunk_size=72)),
            _above(_Reader(p)("nlsa", 1, chunk_size=72), _Reader(p)("nlsa", 1, chunk_size=24)),
        ],
    ),
    Prediction(
        "criss-cross: below 0.3 in one pass, more in two",
        lambda p: [
            condition
            for size in (1, 2)
            for condition in (
                _below(_Reader(p)("criss-cross", size), 0.3),
                _above(
                    _Reader(p)("criss-cross", size, recurrence=2), _Reader(p)("criss-cross", size)
                ),
            )
        ],
    ),
    Prediction(
        "window, shifted-window: 0 for 8, at most 0.05 for 16, at all n",
        _windows,
    ),
    Prediction(
        "nlrn: within 0.05 of NLA at n and 2n, lower at 4n",
        lambda p: [
            *(_near(_Reader(p)("nlrn", size), _Reader(p)("nla", size), 0.05) for size in (0, 1)),
            _below(_Reader(p)("nlrn", 2), _Reader(p)("nlrn", 1)),
        ],
    ),
    Prediction(
        "region: below 0.3", lambda p: [_below(_Reader(p)("region", size), 0.3) for size in (1, 2)]
    ),
    Prediction(
        "agent: weak below 49 pairs: less than half of NLA",
        lambda p: [
            _below(
                _Reader(p)("agent", size),
                Compared("half of NLA", _half(_Reader(p)("nla", size).value)),
            )
            for size in (1, 2)
        ],
    ),
    Prediction("nystrom: falls with n", lambda p: _falls(_Reader(p), "nystrom")),
    Prediction(
        "focused-linear: between mean and enla",
        lambda p: [
            condition
            for size in (1, 2)
            for condition in (
                at_least(_Reader(p)("focused-linear", size), _Reader(p)("mean", size)),
                _at_most(_Reader(p)("focused-linear", size), _Reader(p)("enla", size)),
            )
        ],
    ),
    Prediction(
        "agent, nystrom and atd: fail beyond 49, 64 and 64 pairs",
        lambda p: [
            Condition(None, f"the profile has D of {' and '.join(map(str, PAIRS.values()))}")
        ],
    ),
    Prediction(
        "rnan, csnln: low, below 0.3",
        lambda p: [
            _below(_Reader(p)(name, size), 0.3) for name in ("rnan", "csnln") for size in (1, 2)
        ],
    ),
    Prediction("D = 16: every row is lower than at D = 4", _lower),
    *_of_today(),
)


def _half(value: float | None) -> float | None:
    return None if value is None else value / 2
