"""An approximation record in words; every number is the record's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..records.origin import plural
from ..records.shapes import REFERENCE_K, REFERENCE_M, WHOLE, ApproximatedNetwork, Approximation

#: A row of an approximation record: quantity to number.
Row = dict[str, Any]
#: The three variances of an ``enla`` row and how figures name them.
VARIANCES = {
    "variance_closed": "Eq. 7",
    "variance_independent": "independent draws",
    "variance_orthogonal": "orthogonal draws",
}


def statements(record: Approximation) -> list[str]:
    """The approximation at k = 6 and m = 128, in words."""
    n = max(record.settings.sides) ** 2
    lines = [f"± is the standard deviation over {record.settings.draws} redraws; N = {n}."]
    for name in groups(record):
        if record.enla:
            lines += ["", f"ENLA, {_title(name)}, k = {REFERENCE_K:g}, m = {REFERENCE_M}:"]
            lines += _enla_statements(record, name, n)
        lines += ["", f"NLSA, {_title(name)}:", *_nlsa_statements(record, name, n)]
    if record.settings.network and record.network:
        lines += ["", *_network_statements(record.settings.network, record.network)]
    return lines


def _enla_statements(record: Approximation, name: str, n: int) -> list[str]:
    exact = one(record.exact, features=name, n=n, k=REFERENCE_K)
    by_m = {r["m"]: r for r in select(record.enla, features=name, n=n, k=REFERENCE_K)}
    ours, least, most = by_m[REFERENCE_M], by_m[min(by_m)], by_m[max(by_m)]

    def over_m(quantity: str) -> str:
        ends = [f"{_share(r, quantity)} at m = {r['m']}" for r in (least, most) if r is not ours]
        return f"{_share(ours, quantity)}" + (f" ({', '.join(ends)})" if ends else "")

    closed, independent, orthogonal = (ours[quantity] for quantity in VARIANCES)
    tail = (
        ", because the rare large values that dominate Eq. 7's do not occur in so few draws"
        if closed > 10 * independent
        else ""
    )
    noise = ", below zero because its noise outweighs the signal" if ours["explained"] < 0 else ""
    nearer = "nearer than" if ours["output_error"] < exact["mean_distance"] else "no nearer than"
    return [
        f"  kernel values: off by {_share(ours, 'kernel_error')} (median over pairs), on average "
        f"{ours['kernel_ratio']:.2f} ± {ours['kernel_ratio_std']:.2f} of exp(q·k); variance "
        f"{closed:.3g} by Eq. 7, {independent:.3g} over independent and {orthogonal:.3g} over "
        f"orthogonal redraws{tail}.",
        f"  attended positions (exp of the entropy; 1 / sum of squares): exact "
        f"{exact['positions_entropy']:.0f}; {exact['positions_simpson']:.0f}, ENLA "
        f"{ours['positions_entropy']:.0f}; {ours['positions_simpson']:.0f}, of {n}.",
        f"  exact output: {exact['mean_distance']:.1%} of its norm away from the plain mean of all "
        f"values, {exact['variation']:.1%} varies over queries.",
        f"  error of ENLA's output: {over_m('output_error')}; {nearer} the plain mean, at "
        f"{exact['mean_distance']:.1%} of the exact output's norm.",
        f"  ENLA explains {over_m('explained')} of the exact output's variation over queries"
        f"{noise}; cosine {over_m('cosine')}.",
    ]


def _nlsa_statements(record: Approximation, name: str, n: int) -> list[str]:
    rows = select(record.nlsa, features=name, n=n)
    return [
        f"  {plural(r['rounds'], 'round')}: the buckets catch "
        f"{_share(r, 'mass')} of the softmax ({_share(r, 'mass_others')} of what falls on other "
        f"positions) and {_share(r, 'recall')} of the {record.settings.top} largest weights, "
        f"looking at {_share(r, 'seen')} of the positions."
        for r in rows
        if r["rounds"] in (1, 4, rows[-1]["rounds"])
    ]


def _network_statements(network: ApproximatedNetwork, rows: list[Row]) -> list[str]:
    fixed = {r["attention"]: r["psnr"] for r in rows if r["m"] is None}
    enla = [r for r in rows if r["m"] is not None]
    means = [r["psnr"] for r in enla]
    values = ", ".join(f"{r['psnr']:.3f} ± {r['psnr_std']:.3f} (m = {r['m']})" for r in enla)
    low, high = (enla[means.index(end(means))]["m"] for end in (min, max))
    moved, spread = max(means) - min(means), max(r["psnr_std"] for r in enla)
    range_ = "beyond" if moved > 2 * spread else "within"
    return [
        f"PSNR (dB) of {network.name} (k = {network.variant.options['k']:g}) on "
        f"{plural(network.images, 'crop')}, with the attention of every module replaced without "
        "further training:",
        f"  exact softmax {fixed['exact']:.3f}; redrawn F: {values}; mean of all values "
        f"{fixed['mean']:.3f}; no attention {fixed['none']:.3f}.",
        f"  m moves it by {moved:.3f} dB (lowest at {low}, highest at {high}), {range_} twice the "
        f"largest spread over redraws at one m, {spread:.3f} dB; against the exact softmax the "
        f"plain mean makes {fixed['mean'] - fixed['exact']:+.3f} dB and no attention at all "
        f"{fixed['none'] - fixed['exact']:+.3f} dB.",
    ]


def _share(row: Row, quantity: str) -> str:
    return f"{row[quantity]:.1%} ± {row[f'{quantity}_std']:.1%}"


def groups(record: Approximation) -> list[str]:
    """Features with statements and panels of their own: the mean over modules, synthetic ones."""
    names = dict.fromkeys(row["features"] for row in record.nlsa)
    return [name for name in names if not name.startswith("module")]


def _title(name: str) -> str:
    return "trained network (mean over modules)" if name == WHOLE else f"{name} features"


def select(rows: Iterable[Row], **values: Any) -> list[Row]:
    """The rows with these values."""
    return [row for row in rows if all(row[key] == value for key, value in values.items())]


def one(rows: Iterable[Row], **values: Any) -> Row:
    """The only row with these values."""
    (row,) = select(rows, **values)
    return row
