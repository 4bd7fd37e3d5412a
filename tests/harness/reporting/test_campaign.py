"""What modules gain on photographs: the note's numbers are those of the published records."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from statistics import fmean

import pytest

from harness.config.presets import PHOTOGRAPHS
from harness.records.shapes import Run, measured
from harness.records.store import load_records
from harness.reporting.settings import PAPER_SET
from harness.reporting.statistics import Summary, summarise

RESULTS = Path(__file__).parents[3] / "results"
NOTE = (RESULTS / "notes" / "photographs.md").read_text(encoding="utf-8")
TEXT = " ".join(NOTE.split())
(TABLES,) = (RESULTS / "tables").glob("denoise-sigma-50-photographs-*")

#: Rows of the note's tables by the label of the published ones.
NAMES = {
    "Conv": "`conv`",
    "Mean": "`mean`",
    "NLA": "`nla`",
    "NLSA-r4": "`nlsa`",
    "Criss-Cross": "`criss-cross`",
    **{f"ENLCA-m{m}": f"`enlca` m = {m}" for m in (256, 128, 64, 32, 16, 8, 4, 2)},
    "Top-32": "`top-k` k = 32",
}
SHARED = " (shared=True)"


def shown(value: float | str, digits: int = 3) -> str:
    return f"{float(value):+.{digits}f}".replace("-", "−")


def interval(row: dict[str, str], name: str) -> str:
    value, low, high = (shown(row[f"{name}{end}_db"]) for end in ("", "_low", "_high"))
    return f"{value} [{low}, {high}]"


@pytest.fixture(scope="module")
def rows() -> dict[tuple[str, str], dict[str, str]]:
    """Of the table ``per-image``, by method and test set."""
    with (TABLES / "per-image.csv").open(encoding="utf-8", newline="") as file:
        return {(row["method"], row["test_set"]): row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def runs() -> dict[str, list[Run]]:
    """By the variant as ``--attn`` takes it, without its weight."""
    found: dict[str, list[Run]] = {}
    for run in load_records(RESULTS, Run):
        if run.config.preset == PHOTOGRAPHS:
            assert run.variant.changed is not None
            changed = {o: v for o, v in run.variant.changed.items() if o != "res_scale"}
            words = ",".join(f"{option}={value}" for option, value in sorted(changed.items()))
            found.setdefault(f"{run.variant.name}:{words}".rstrip(":"), []).append(run)
    return found


def gain(runs: dict[str, list[Run]], name: str, test_set: str) -> Summary:
    """Of seed 0 over the baseline."""
    first = [[run for run in runs[one] if run.config.seed == 0] for one in (name, "none")]
    return summarise(*first, test_set)


def test_what_the_modules_gain(rows: dict[tuple[str, str], dict[str, str]]) -> None:
    for label, name in NAMES.items():
        urban, b100 = rows[label, PAPER_SET], rows[label, "B100"]
        high = urban["difference_over_seeds_high_db"]
        seeds = f"± {float(high) - float(urban['difference_db']):.3f}" if high else ""
        low, top = (shown(urban[f"rank_correlation_{end}"], 2) for end in ("low", "high"))
        cells = [
            name,
            urban["paired_seeds"],
            interval(urban, "difference"),
            seeds,
            interval(b100, "difference"),
            f"{shown(urban['rank_correlation'], 2)} [{low}, {top}]",
        ]
        assert "| " + " | ".join(cells).replace("|  |", "| |") + " |" in NOTE, name


def test_nlsa_is_above_a_convolution_by_a_tenth_of_a_decibel(runs: dict[str, list[Run]]) -> None:
    found = summarise(runs["nlsa"], runs["conv"], PAPER_SET)
    assert found.difference is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low > 0.1
    values = shown(found.difference), shown(found.low), shown(found.high)
    assert "above `conv`, by {} [{}, {}] dB".format(*values) in TEXT


def test_a_plain_mean_gains_what_nla_gains(runs: dict[str, list[Run]]) -> None:
    values = [
        shown(gain(runs, name, test_set).difference or 0.0)
        for test_set in (PAPER_SET, "B100")
        for name in ("mean", "nla")
    ]
    assert "({} and {} dB on Urban100, {} and {} on B100)".format(*values) in TEXT


def test_the_profile_does_not_predict_the_gains() -> None:
    with (RESULTS / "tables" / "profile-findings.csv").open(encoding="utf-8", newline="") as file:
        (found,) = (
            row
            for row in csv.DictReader(file)
            if row["statement"].startswith("Kendall's tau: aggregate and gain on Urban100, denoise")
        )
    tau, low, high = (shown(found[name], 2) for name in ("value", "low", "high"))
    rows = found["numbers"].rpartition(" ")[2]
    assert f"gain on Urban100 is {tau} [{low}, {high}] over {rows} rows: not decided" in TEXT


def test_embedding_or_buckets(runs: dict[str, list[Run]]) -> None:
    for name, shared, label in (
        ("nla", "nla:shared=True", "`nla`"),
        ("enlca", "enlca:shared=True", "`enlca` m = 128"),
        ("enlca:m=16", "enlca:m=16,shared=True", "`enlca` m = 16"),
        ("top-k", "top-k:shared=True", "`top-k` k = 32"),
    ):
        cells = [
            shown(gain(runs, one, test_set).difference or 0.0)
            for test_set in (PAPER_SET, "B100")
            for one in (name, shared)
        ]
        assert f"| {label} | {' | '.join(cells)} |" in NOTE
    top, own, best = (
        gain(runs, name, PAPER_SET).difference or 0.0
        for name in ("top-k:shared=True", "top-k", "nlsa")
    )
    assert f"with NLSA's {top - own:.2f} dB more, which is {top - best:.2f} dB above NLSA" in TEXT
    nlsa = [shown(gain(runs, "nlsa", one).difference or 0.0) for one in (PAPER_SET, "B100")]
    assert "| `nlsa` | | {} | | {} |".format(*nlsa) in NOTE


def test_near_or_far(
    rows: dict[tuple[str, str], dict[str, str]], runs: dict[str, list[Run]]
) -> None:
    for label in ("NLSA-r4", f"NLA{SHARED}", "NLA", f"ENLCA-m128{SHARED}", "ENLCA-m128", "Conv"):
        row, b100 = rows[label, PAPER_SET], rows[label, "B100"]
        assert row["lost_confined_images"] == b100["lost_confined_images"] == "25"
        plain = label.removesuffix(SHARED)
        cells = [
            NAMES[plain] + (" shared" if label != plain else ""),
            interval(row, "difference_self_similar"),
            interval(row, "difference_elsewhere"),
            shown(row["lost_as_mean_db"], 2),
            interval(row, "lost_confined"),
            interval(b100, "lost_confined"),
        ]
        assert f"| {' | '.join(cells)} |" in NOTE, label
    nlsa, none = (
        {
            image.name: image
            for run in runs[name]
            if run.config.seed == 0
            for image in run.quality[PAPER_SET].images
        }
        for name in ("nlsa", "none")
    )
    some = [name for name, image in nlsa.items() if measured(image, "lost_confined") is not None]
    gained = fmean(nlsa[name].psnr - none[name].psnr for name in some)
    lost = float(rows["NLSA-r4", PAPER_SET]["lost_confined_db"])
    assert f"{lost:.2f} of {gained:.2f} dB on these images" in NOTE


def test_effective_positions_are_those_of_the_maps() -> None:
    content = json.loads((RESULTS / "figures" / "maps-photographs.json").read_text())
    found = {
        panel["label"]: panel["effective_positions"]
        for panel in content["panels"]
        if panel["weights"] == "as used"
    }
    plain, shared, nlsa = (f"{found[one]:,.0f}" for one in ("NLA", f"NLA{SHARED}", "NLSA-r4"))
    assert f"a plain mean ({plain} effective positions" in TEXT
    assert f"leaves out the joints ({shared})" in TEXT
    assert f"on several bricks ({nlsa})" in TEXT
