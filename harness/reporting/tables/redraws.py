"""Table of quality under other random draws."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import groupby

from ...records.origin import by_age, describe_machine, origin_note
from ...records.shapes import Redraw
from ..cells import fixed, variant_columns
from .render import Table


def redraw_table(records: Sequence[Redraw]) -> Table:
    """Quality of networks under other random draws: a row for each network, test set and m."""
    rows, data = [], []
    for record in by_age(records):
        label, network = record.variant.label, record.settings.network
        for (test_set, m), group in groupby(
            sorted(record.rows, key=lambda r: (r.test_set, r.m or 0, r.draw)),
            key=lambda r: (r.test_set, r.m),
        ):
            found = [row.psnr for row in group if row.draw]
            trained = next(r.psnr for r in record.rows if (r.test_set, r.draw) == (test_set, 0))
            mean = statistics.fmean(found)
            spread = statistics.stdev(found) if len(found) > 1 else None
            low, high = min(found) - trained, max(found) - trained
            rows.append(
                [
                    label,
                    network,
                    test_set,
                    "" if m is None else str(m),
                    fixed(trained, 3),
                    fixed(mean - trained, 4, "+"),
                    fixed(spread, 4),
                    f"{low:+.4f} … {high:+.4f}",
                    str(len(found)),
                ]
            )
            data.append(
                variant_columns(label, record.variant)
                | {
                    "run": network,
                    "test_set": test_set,
                    "m": m,
                    "psnr_db_trained_draw": trained,
                    "psnr_db_redrawn_mean": mean,
                    "psnr_db_redrawn_std": spread,
                    "psnr_db_redrawn_min": min(found),
                    "psnr_db_redrawn_max": max(found),
                    "draws": len(found),
                    "tile": record.settings.tile,
                    "machine": describe_machine(record),
                }
            )
    return Table(
        name="redraws",
        caption="Quality of trained networks under other random draws, without further training",
        notes=[
            "Differences are to the draw of the training; the spread is the standard deviation "
            "over redraws.",
            "Each redraw replaces the projections F of ENLA and ENLCA, with the m of the training "
            "or another m, or the rotations of NLSA's hashing. Differences are to the draw that "
            "the run's own quality was measured with. The spread is the standard deviation over "
            "redraws.",
            origin_note(records, "Measured"),
        ],
        headers=[
            ("", "Network"),
            ("", "run"),
            ("", "test set"),
            ("", "m"),
            ("PSNR (dB)", "as trained"),
            ("Redrawn, PSNR (dB)", "mean difference"),
            ("Redrawn, PSNR (dB)", "spread"),
            ("Redrawn, PSNR (dB)", "range of differences"),
            ("", "draws"),
        ],
        rows=rows,
        data=data,
    )
