"""The ENLCA paper's claims, and whether the runs of a setting reproduce them.

Every claim compares two variants on the paper's test set, paired over the same images and seeds.
Claims are decided at 5 % after Holm's correction over the setting's claims. With one seed none is
decided, because the noise of training is unknown. A claim that is not decided is refuted in its
size alone where the interval excludes the paper's difference; in super-resolution, as the paper's
differences are of it. "Within" says something only of a method that gains: it is not judged where
the method does not beat the baseline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from ...config.variants import Variant
from ...records.origin import plural
from ...records.shapes import CONFIDENCE
from ..cells import caption, difference_cell, fixed, measured_header, setting_notes
from ..settings import Setting, paper_table
from ..statistics import (
    FloatArray,
    Summary,
    bootstrap_means,
    compare,
    several_means,
    standard_error,
    summarise,
)
from .render import Table


@dataclass(frozen=True)
class Claim:
    """One variant is better than another, or within a margin of it.

    Attributes:
        better: the variant that the paper finds better, or as good.
        than: the other one.
        margin: None for better; else the difference in dB within which they count as equal.
    """

    better: Variant
    than: Variant
    margin: float | None = None


_NLA, _NLSA, _BASELINE = Variant("nla"), Variant("nlsa"), Variant("none")
_ENLCA, _CRISS_CROSS = Variant("enlca"), Variant("criss-cross")  # m = 128 is ENLCA's default


def _enlca(m: int) -> Variant:
    return Variant("enlca", {"m": m})


#: From the ENLCA paper's Tables 4 and 6 and its text on them.
CLAIMS = (
    Claim(_NLA, _BASELINE),
    Claim(_NLSA, _NLA),
    Claim(_ENLCA, _BASELINE),
    Claim(_ENLCA, _NLA),
    Claim(_ENLCA, _NLSA),
    Claim(_enlca(16), _NLSA),
    Claim(_ENLCA, _enlca(2)),
    Claim(_ENLCA, _enlca(16), margin=0.05),
    Claim(_enlca(256), _ENLCA, margin=0.05),
    Claim(_NLA, _CRISS_CROSS),
    Claim(_ENLCA, _CRISS_CROSS),
    Claim(_ENLCA, Variant("enla")),
)


#: What the runs may say of a claim.
VERDICTS = (
    REPRODUCED := "reproduced",
    CONTRADICTED := "not reproduced",
    SMALLER := "no effect of that size here",
    UNDECIDED := "not decided",
    UNJUDGED := "not judged",
)


@dataclass(frozen=True)
class Finding:
    """The runs' verdict on a claim.

    Attributes:
        claim: the claim.
        better, than: row labels of its two variants.
        summary: the difference in dB, its 95 % interval, seeds and images.
        p: smallest level at which the difference decides the claim, for or against it; None with
            one seed.
        adjusted: p after Holm's correction.
        verdict: one of :data:`VERDICTS`, or the first words of it.
        paper: the paper's difference in dB on Urban100 x4; None where it prints none.
    """

    claim: Claim
    better: str
    than: str
    summary: Summary
    p: float | None
    adjusted: float | None
    verdict: str
    paper: float | None = None

    @property
    def text(self) -> str:
        """The claim in words."""
        if self.claim.margin is None:
            return f"{self.better} over {self.than}"
        return f"{self.better} within {self.claim.margin:g} dB of {self.than}"

    @property
    def sentence(self) -> str:
        """E.g. ``ENLCA-m128 over NLA: +0.010 dB, 95 % [-0.020, +0.040], 3 seeds: not decided``."""
        found = self.summary
        interval = f"[{fixed(found.low, 3, '+')}, {fixed(found.high, 3, '+')}]"
        return (
            f"{self.text}: {fixed(found.difference, 3, '+')} dB, 95 % {interval}, "
            f"{plural(found.paired_seeds, 'seed')}: {self.verdict}"
        )


def p_above(table: FloatArray, bound: float, *, resamples: int = 10_000) -> float:
    """One-sided level at which the mean of ``table [seeds, images]`` lies above a bound.

    The largest of the levels behind :func:`.statistics.difference_interval`: that of the crossed
    bootstrap, and those of Student's t of the seeds' and of the images' means. 1 with one seed.
    """
    if table.shape[0] < 2:
        return 1.0
    drawn = bootstrap_means(table, resamples=resamples)
    found = [float((1 + np.count_nonzero(drawn <= bound)) / (1 + resamples))]
    for means in several_means(table - bound):
        if (error := standard_error(means)) == 0:
            found.append(0.0 if means.mean() > 0 else 1.0)
        else:
            found.append(float(stats.t.sf(means.mean() / error, len(means) - 1)))
    return float(max(found))


def levels(claim: Claim, table: FloatArray) -> tuple[float, float]:
    """Levels at which the differences speak for the claim, and against it."""
    if claim.margin is None:
        return p_above(table, 0.0), p_above(-table, 0.0)
    # Equal within the margin: neither as far above as the margin, nor as far below.
    within = max(p_above(table, -claim.margin), p_above(-table, -claim.margin))
    apart = min(p_above(table, claim.margin), p_above(-table, claim.margin))
    return within, min(1.0, 2 * apart)


def holm(levels: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Scandinavian Journal of Statistics 6, 1979), in their order."""
    count, adjusted, largest = len(levels), [0.0] * len(levels), 0.0
    for rank, index in enumerate(sorted(range(count), key=lambda i: levels[i])):
        largest = max(largest, min(1.0, (count - rank) * levels[index]))
        adjusted[index] = largest
    return adjusted


def find_claims(setting: Setting) -> list[Finding]:
    """Every claim whose two variants were trained in the setting, with a common seed."""
    compared = []
    for claim in CLAIMS:
        ours, theirs = (setting.runs_of.get(v, []) for v in (claim.better, claim.than))
        if not ours or not theirs or setting.test_set is None:
            continue
        table = compare(ours, theirs, setting.test_set)
        if table.size:
            summary = summarise(ours, theirs, setting.test_set)
            compared.append((claim, summary, *levels(claim, table), _is_judged(setting, claim)))
    # Two-sided: a claim may be reproduced or contradicted. One seed decides nothing.
    tested = [
        min(1.0, 2 * min(for_it, against))
        for _, summary, for_it, against, judged in compared
        if summary.paired_seeds > 1 and judged
    ]
    decided = iter(zip(tested, holm(tested), strict=True))
    printed = _paper_psnr()
    # Of another task the paper's difference in dB says nothing.
    enlarges = setting.config.scale > 1
    findings = []
    for claim, summary, for_it, against, judged in compared:
        better, than = setting.labels[claim.better], setting.labels[claim.than]
        ours_db, theirs_db = printed.get(better), printed.get(than)
        paper = None if ours_db is None or theirs_db is None else round(ours_db - theirs_db, 2)
        p = adjusted = None
        if summary.paired_seeds == 1:
            verdict = f"{UNDECIDED} (one seed)"
        elif not judged:
            verdict = f"{UNJUDGED} ({better} does not beat the baseline)"
        else:
            p, adjusted = next(decided)
            verdict = UNDECIDED
            if adjusted < 1 - CONFIDENCE:
                verdict = REPRODUCED if for_it < against else CONTRADICTED
            elif claim.margin is None and enlarges and _excludes(summary, paper):
                verdict = SMALLER
        findings.append(Finding(claim, better, than, summary, p, adjusted, verdict, paper))
    return findings


def _is_judged(setting: Setting, claim: Claim) -> bool:
    """Whether "within" can say something: the method beats the baseline, its interval is above 0.

    True of other claims, and without a baseline.
    """
    if claim.margin is None or not setting.baseline:
        return True
    gain = setting.summary(claim.better, setting.test_set)
    return gain is not None and gain.low is not None and gain.low > 0


def _excludes(summary: Summary, paper: float | None) -> bool:
    """Whether the paper's difference in dB lies outside the interval."""
    if paper is None or summary.low is None or summary.high is None:
        return False
    return not summary.low <= paper <= summary.high


def _paper_psnr() -> dict[str, float]:
    """PSNR in dB on Urban100 x4 by row label, as the paper's Tables 4 and 6 print it."""
    printed = {row["method"]: row["psnr_db"] for row in paper_table(4)}
    printed["Criss-Cross"] = next(r["psnr_db"] for r in paper_table(6) if "Criss" in r["method"])
    return {label: float(psnr) for label, psnr in printed.items() if psnr}


def claims_table(setting: Setting) -> Table | None:
    """The claims of a setting; None where no two of the claims' variants were trained."""
    findings = find_claims(setting)
    if not findings:
        return None
    rows, data = [], []
    for found in findings:
        summary = found.summary
        rows.append(
            [
                found.text,
                fixed(found.paper, 2, "+"),
                difference_cell(summary),
                str(summary.paired_seeds),
                fixed(found.adjusted, 3),
                found.verdict,
            ]
        )
        data.append(
            {
                "claim": found.text,
                "better": found.better,
                "than": found.than,
                "margin_db": found.claim.margin,
                "difference_db_paper": found.paper,
                "difference_db": summary.difference,
                "difference_low_db": summary.low,
                "difference_high_db": summary.high,
                "paired_seeds": summary.paired_seeds,
                "paired_images": summary.images,
                "p": found.p,
                "p_holm": found.adjusted,
                "verdict": found.verdict,
                "sentence": found.sentence,
                "test_set": setting.test_set,
            }
        )
    return Table(
        name="claims",
        label=f"{setting.label}-claims",
        caption=caption("The paper's claims", setting),
        notes=[
            "Reproduced and not reproduced: at 5 % after Holm's correction. "
            + (
                "No effect of that size here: the 95 % interval excludes the paper's difference. "
                if setting.config.scale > 1
                else "The paper's differences are of super-resolution. "
            )
            + "Not decided is neither.",
            f"Differences in PSNR on {measured_header(setting)} are paired over "
            "the same images and seeds; the paper's are on Urban100 ×4. Brackets hold the 95 % "
            "interval of the crossed bootstrap over images and seeds, or of Student's t of the "
            "seeds' or the images' means where it reaches further.",
            "Claims are decided at 5 % after Holm's correction over this table. A claim's p is the "
            "largest of the bootstrap's and of Student's t, two-sided; 'within' is tested as "
            "equivalence, and judged only of a method whose 95 % interval lies above the baseline. "
            "Claims that are not decided are neither reproduced nor contradicted.",
            *(f"{found.sentence}." for found in findings),
            *setting_notes(
                setting,
                [],
                variants=[v for f in findings for v in (f.claim.better, f.claim.than)],
            ),
        ],
        headers=[
            ("", "Claim"),
            ("Difference (dB)", "paper"),
            ("Difference (dB)", "measured"),
            ("", "seeds"),
            ("", "p (Holm)"),
            ("", "verdict"),
        ],
        rows=rows,
        data=data,
    )
