"""Records that suffice for a table, a figure and a plot of each kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import synthetic_records as synthetic
from msgspec.structs import replace

from harness.records.store import save_record


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of two presets and two devices; every number is made up."""
    folder = tmp_path_factory.mktemp("results")
    awkward = {"name": "my_package.my_module:User", "label": synthetic.AWKWARD, "options": {}}
    gpu: dict[str, Any] = {"preset": "quick", "device": "cuda", "machine": synthetic.GPU_MACHINE}
    quick = [
        synthetic.run(name, seed, [20.0 + i + seed, 21.0 + i], **gpu)
        for i, name in enumerate(("Baseline", "NLA"))
        for seed in range(3)
    ]
    timed = [synthetic.latency_row("NLA", 9.0), synthetic.latency_row("NLSA-r4", 3.0)]
    timed.append(timed[0] | {"variant": synthetic.variant("enlca", m=16), "mean_ms": 1.0})
    laws = {"NLA": (2.0, 1.0), "NLSA-r4": (1.0, 1.0)}
    for record in (
        *synthetic.figure6(2.0, 4.0, 6.0),
        synthetic.run("NLA", values=[25.0, 26.5, 27.5]),
        synthetic.run("NLSA-r4", values=[25.1, 26.2, 27.3]),
        synthetic.run(synthetic.variant("enlca", m=16), values=[25.1, 26.1, 27.9]),
        synthetic.run(awkward, identifier="awkward"),
        *(replace(run, command=f"{run.command} --preset quick") for run in quick),
        *(synthetic.cost("NLA", 2.0), synthetic.cost("NLSA-r4", 1.0)),
        synthetic.cost(awkward, 0.5, id="cost-awkward"),
        synthetic.latency(timed),
        synthetic.approximation("enlca-k2"),
        synthetic.scaling(laws, machine=synthetic.GPU_MACHINE),
    ):
        save_record(folder, record)
    return folder
