"""Every module of the zoo in a synthetic task."""

from __future__ import annotations

from pathlib import Path

import pytest

from attention_zoo import list_attentions
from harness.records.shapes import Run
from harness.records.store import load_records
from tests.harness.conftest import Cli


@pytest.mark.slow
def test_every_module_trains_and_is_scored_at_every_size(cli: Cli, tmp_path: Path) -> None:
    """Maps of 12x12, 24x24 and 48x48 positions with 8 channels, under autocast, two seeds."""
    sizes = "--channels 8 --steps 2 --batch 2 --precision bfloat16 --seeds 0 1"
    cli(f"run --task recall --attn all {sizes}", "--results", tmp_path)
    records = load_records(tmp_path, Run)
    names = list_attentions(installed=False)
    assert sorted(record.variant.name for record in records) == sorted(2 * names)
    for record in records:
        assert [*record.scores] == ["n6", "n12", "n24"]
        assert (record.scores["n24"].as_mean is None) == (record.variant.name == "none")
