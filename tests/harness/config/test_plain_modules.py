"""A plain ``nn.Module`` in every command that takes ``--attn``."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from attention_zoo import AttentionError
from harness.config.options import parse
from harness.config.variants import Variant
from harness.measuring.flops import count
from harness.records.shapes import Cost, Latency, Run
from harness.records.store import load_records
from harness.runs.options import RunOptions
from tests.harness.conftest import Cli

SOURCE = '''
import torch
from torch import nn

class Published(nn.Module):
    """Somebody's.

    Args:
        channels: of input and output.
        squeeze: how much narrower the hidden layer is.
    """

    def __init__(self, channels, squeeze=2, act=torch.relu, residual=True):
        super().__init__()
        self.down = nn.Conv2d(channels, channels // squeeze, 1)
        self.up = nn.Conv2d(channels // squeeze, channels, 1)
        self.act, self.residual = act, residual

    def forward(self, x):
        return x * self.residual + 0.1 * self.up(self.act(self.down(x)))

class Upscaling(nn.Module):
    def __init__(self, channels):
        super().__init__()

    def forward(self, x):
        return nn.functional.interpolate(x, scale_factor=2)
'''


@pytest.fixture
def published(import_folder: Path) -> str:
    (import_folder / "published.py").write_text(SOURCE)
    return "published:Published"


def test_its_parameters_are_options(published: str) -> None:
    words = ["--attn", published, "--squeeze", "4", "--no-residual"]
    _, (variant,) = parse(RunOptions, words, "harness.run")
    assert variant == Variant(published, {"squeeze": 4, "residual": False})
    assert variant.label == "Published (residual=False, squeeze=4)"
    assert variant.source_sha256 is not None
    assert not variant.has_core


def test_its_cost_is_counted_and_says_so(published: str) -> None:
    found = count(Variant(published, {"squeeze": 4}), 10, 10)
    assert all(v is None for k, v in found["parts"]["core"].items() if k != "channels")
    gflops = 2 * 2 * 100 * 256 * 64 / 1e9
    for key in ("executed_gflops", "inserted_gflops", "torch_gflops", "fvcore_gflops"):
        assert found["parts"]["module"][key] == pytest.approx(gflops)
    assert found["notes"][0].startswith("the module is a plain one: torch counted")


def test_from_run_to_tables(published: str, cli: Cli, tiny: list[str], results: Path) -> None:
    """Trained, counted, timed as a module and not as a core, and in the tables."""
    printed = cli("run --attn none nla", published, *tiny, "--skip-latency").out
    assert printed.count("(counted)") == 1
    cli(f"latency --attn nla {published} --sizes 6x5 --max-seconds 0.01 --results", results)
    runs, costs, (latency,) = (load_records(results, kind) for kind in (Run, Cost, Latency))
    assert published in {run.variant.name for run in runs}
    assert published in {cost.variant.name for cost in costs}
    parts = {row.part for row in latency.rows if row.variant.name == published}
    assert parts == {"module"}
    assert {row.part for row in latency.rows} == {"core", "module"}
    cli("tables --results", results)
    cli("figures --results", results)
    table = results / "tables" / "table4.md"
    (row,) = (line for line in table.read_text(encoding="utf-8").splitlines() if "Publi" in line)
    cells = [cell.strip() for cell in row.split("|")[2:-1]]
    assert cells[:6] == [""] * 6, "the paper's GFLOPs, ours and four counts of the core"
    assert cells[6] == "1.31 (counted)"
    assert "(counted): by torch's counter" in table.read_text(encoding="utf-8")
    with table.with_suffix(".csv").open(encoding="utf-8", newline="") as file:
        sources = {row["variant"]: row["gflops_inserted_source"] for row in csv.DictReader(file)}
    assert (sources[published], sources["nla"]) == ("counted", "closed form")


def test_check(published: str, cli: Cli) -> None:
    printed = cli("check", published).out
    assert "skipped cost equals the counter: a plain module's cost is counted" in printed
    assert "skipped growth of time: a plain module has no core to time" in printed
    assert "All contract checks passed." in printed


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("latency --parts core", "plain modules have no core"),
        ("scaling", "published:Published is a plain module: it has no core"),
    ],
)
def test_a_core_alone_is_refused(
    command: str, message: str, published: str, cli: Cli, results: Path
) -> None:
    assert message in cli.refused(command, "--attn", published, "--results", results)


def test_another_shape_is_told_before_the_training(
    published: str, cli: Cli, tiny: list[str], results: Path
) -> None:
    line = cli.refused("run --attn published:Upscaling", *tiny, "--skip-latency")
    assert "published:Upscaling gives [1, " in line
    with pytest.raises(AttentionError, match="not one map"):
        count(Variant("published:Upscaling", {}), 4, 4)
