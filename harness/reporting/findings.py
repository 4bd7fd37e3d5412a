"""What the capability profile says of each question and prediction of docs/tasks.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ..config.rows import table_rows
from ..config.variants import Variant
from .laws import FittedLaw, exponent, fit_with_intervals, kendall, kendall_interval, paired
from .predictions import (
    NOT_MEASURED,
    PAIRS,
    PREDICTIONS,
    REQUIREMENTS,
    ROWS,
    SIZES,
    Compared,
    Condition,
    Finding,
    Prediction,
    at_least,
    bracket,
    checked,
)
from .profile import Profile, ProfileCell, ProfileRow
from .settings import PAPER_SET, Setting, paper_table, photographs_header
from .statistics import Estimate

#: Least number of points of a fit.
_POINTS = 3
_D4, _D16 = PAIRS


def find_findings(profile: Profile, photos: Setting | None = None) -> list[Finding]:
    """All findings; those without a record say so. None without recall, which they are about.

    Args:
        profile: of all runs.
        photos: setting that gives the gains on photographs (:func:`.settings.photographs`).
    """
    if not any(task.label in PAIRS for task in profile.tasks):
        return []
    return [
        *_laws(profile),
        *_effects(profile),
        *_orders(profile, photos),
        *(checked(profile, "requirement", one) for one in REQUIREMENTS),
        *(checked(profile, "prediction", one) for one in (*PREDICTIONS, SAME_ORDER)),
    ]


def law_points(profile: Profile, setting: str, size: int = 1) -> dict[float, Estimate]:
    """Score over seeds of ENLCA by m, in order, all other options at their defaults."""
    found = {
        float(row.recorded.options["m"]): score
        for row in profile.rows
        if row.variant.name == "enlca"
        and set(row.variant.options) <= {"m"}
        and (score := row.score(setting, size))
    }
    return dict(sorted(found.items()))


def fitted_laws(profile: Profile) -> dict[str, FittedLaw]:
    """The law of ENLCA's score at 2n against m, by setting, where enough m have runs."""
    nla = profile.row("nla")
    fits = {}
    for setting in PAIRS:
        points = law_points(profile, setting)
        if len(points) >= _POINTS:
            fits[setting] = fit_with_intervals(points, nla.score(setting, 1) if nla else None)
    return fits


def _laws(profile: Profile) -> Iterator[Finding]:
    fits = fitted_laws(profile)
    for setting in PAIRS:
        statement = f"{setting}: R² of ENLCA at 2n against m, R² = a / (1 + (m50 / m)^p)"
        if setting not in fits:
            yield Finding("law", statement, NOT_MEASURED, f"fewer than {_POINTS} m have runs")
            continue
        fit = fits[setting]
        law, (low, high) = fit.law, fit.m50
        text = (
            f"a {law.limit:.2f}, p {law.power:.2f}, m50 {law.m50:.3g} [{low:.3g}, {high:.3g}], "
            f"residual {law.residual:.3f}, {len(law_points(profile, setting))} m"
        )
        yield Finding("law", statement, "", text, law.m50, low, high)
        statement = f"{setting}: m for half of NLA's R² at 2n"
        if fit.half is None or fit.half_interval is None:
            yield Finding("law", statement, "", "the law never comes there, or NLA has no run")
        else:
            low, high = fit.half_interval
            text = f"{fit.half:.3g} [{low:.3g}, {high:.3g}]"
            yield Finding("law", statement, "", text, fit.half, low, high)
    found = exponent({float(PAIRS[setting]): fit for setting, fit in fits.items()})
    statement = "m50 against D: exponent b of m50 = c · D^b"
    if found is None:
        yield Finding("law", statement, NOT_MEASURED, "needs two D")
    else:
        value, low, high = found
        text = f"{value:.2f} [{low:.2f}, {high:.2f}] from {len(fits)} D"
        yield Finding("law", statement, "", text, value, low, high)


def _effects(profile: Profile) -> Iterator[Finding]:
    """Paired differences between rows that differ in one thing."""
    pairs: list[tuple[str, ProfileRow, ProfileRow]] = []
    for row in profile.rows:
        options = dict(row.variant.options)
        if row.variant.name == "enlca" and set(options) <= {"m"}:
            if plain := profile.row("enla", **options):
                pairs.append(("contrastive loss", row, plain))
        elif row.variant.name in ("enlca", "enla") and "k" in options:
            del options["k"]
            if other := profile.row(row.variant.name, **options):
                pairs.append(("amplification k", row, other))
        if "res_scale" in options:
            del options["res_scale"]
            if other := profile.row(row.variant.name, **options):
                pairs.append(("weight of the attention", row, other))
    for what, ours, theirs in pairs:
        for setting in PAIRS:
            if setting not in ours.cells or setting not in theirs.cells:
                continue
            for size in (1, 2):
                found = paired(
                    _by_seed(ours.cells[setting], size), _by_seed(theirs.cells[setting], size)
                )
                if found is None:
                    continue
                statement = f"{what}, {setting} at {SIZES[size]}: {ours.label} minus {theirs.label}"
                seeds = len(found.values)
                text = f"{found.mean:+.3f}{bracket(found, '+.3f')}, paired over seeds: {seeds}"
                yield Finding("effect", statement, "", text, found.mean, found.low, found.high)
    for what in ("contrastive loss", "amplification k", "weight of the attention"):
        if what not in {pair[0] for pair in pairs}:
            yield Finding("effect", what, NOT_MEASURED, "no two rows differ in it alone")


def _orders(profile: Profile, photos: Setting | None) -> Iterator[Finding]:
    """Agreement with the paper's orders and, where it was measured, with that of photographs."""
    measures: dict[str, Callable[[ProfileRow], Estimate | None]] = {
        f"{_D4} at 2n": lambda row: row.score(_D4, 1),
        "aggregate": lambda row: row.aggregate,
    }
    orders = {
        f"PSNR on {PAPER_SET} ×4 of the paper's Table {number}": _paper_psnr(number)
        for number in (4, 6)
    }
    if photos:  # does probing predict what a module gains?
        orders[f"gain on {photographs_header(photos)}"] = _gains(photos)
    for order, values in orders.items():
        for what, measure in measures.items():
            rows = [
                (found, values[row.variant])
                for row in profile.rows
                if row.variant in values and (found := measure(row))
            ]
            statement = f"Kendall's tau: {what} and {order}"
            yield _tau("order", statement, [one for one, _ in rows], [value for _, value in rows])


def _gains(photos: Setting) -> dict[Variant, float]:
    """PSNR in dB over the baseline's on the paper's test set."""
    return {
        variant: summary.difference
        for variant in photos.runs_of
        if (summary := photos.summary(variant, PAPER_SET)) and summary.difference is not None
    }


def _tau(topic: str, statement: str, x: Sequence[Estimate], y: Sequence[float]) -> Finding:
    if len(x) < ROWS:
        return Finding(topic, statement, NOT_MEASURED, f"{len(x)} common rows")
    value, ends = kendall([one.mean for one in x], y), kendall_interval(x, y)
    low, high = ends or (None, None)
    bracket = "" if low is None else f" [{low:.2f}, {high:.2f}]"
    return Finding(topic, statement, "", f"{value:.2f}{bracket}, rows: {len(x)}", value, low, high)


def _same_order(profile: Profile) -> list[Condition]:
    """Kendall's tau of the rows at both D is at least 0.8."""
    rows = [
        (one.mean, two.mean)
        for row in profile.rows
        if (one := row.score(_D4, 1)) and (two := row.score(_D16, 1))
    ]
    value = kendall(*zip(*rows, strict=True)) if len(rows) >= ROWS else None
    return [at_least(Compared(f"tau of {len(rows)} rows", value), 0.8)]


#: A prediction that needs an order.
SAME_ORDER = Prediction("D = 16: the order is that of D = 4 (tau at least 0.8)", _same_order)


def _paper_psnr(number: int) -> dict[Variant, float]:
    """PSNR in dB of the paper's Table 4 or 6 by variant."""
    variants = table_rows("table4" if number == 4 else "table6")
    return {
        variant: float(row["psnr_db"])
        for variant, row in zip(variants, paper_table(number), strict=True)
        if row["psnr_db"]
    }


def _by_seed(cell: ProfileCell, size: int) -> dict[int, float]:
    return {seed: float(score.score) for seed, score in cell.found(size).items()}
