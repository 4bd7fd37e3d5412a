"""Mistakes on the command lines that measure: one line, status 2, and nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.harness.conftest import Cli

MISTAKES = {
    "latency": {
        "--batch 0": "batch must be at least 1, got 0",
        "--max-runs 0": "max-runs must be at least 1, got 0",
        "--preset huge": "unknown preset 'huge'",
        "--impl fastest": "fastest",
        "--attn nla --impl triton": "triton",
    },
    "scaling": {
        "--max-runs 0": "--max-runs must be at least 1, got 0",
        "--fit-from 0": "--fit-from must be at least 1, got 0",
        "--max-seconds inf": "--max-seconds must be finite and not negative, got inf",
        "--memory-seconds nan": "--memory-seconds must be finite and not negative, got nan",
        "--size-seconds -1": "--size-seconds must be finite and not negative, got -1",
        "--max-seconds nan": "--max-seconds must be finite",
        "--from-records": "no scaling records under",
    },
    "speed": {
        "--only nonsense": "no case begins with 'nonsense'",
        "--seconds 0": "seconds must be above 0, got 0.0",
        "--seconds many": "many",
        "--threads 0": "threads must be at least 1",
        "--device cuda:99": "cuda:99",
    },
    "gpu": {
        "": "the GPU benchmark needs a CUDA device, and this machine has none",
        "--device cuda:1": "needs a CUDA device",
        "--only nonsense": "no piece begins with 'nonsense'",
        "--seconds 0": "seconds must be above 0",
        "--sizes 5": "size '5' is not height x width",
        "--device cpu --only limits-float32 --sizes 5x6": "must be square",
        "--device cpu --only limits-tf32": "tf32 needs a CUDA device",
    },
    "approximation": {
        "": "give --weights RUN-OR-FILE, --synthetic, or both",
        "--synthetic --m 0": "--m must be at least 1, got 0",
        "--synthetic --k 0": "--k must be above 0 and at most 100, got 0.0",
        "--synthetic --k nan": "--k must be above 0 and at most 100, got nan",
        "--synthetic --k 101": "got 101.0",
        "--synthetic --m many": "--m",
        "--synthetic --draws 1": "--draws must be at least 2, got 1",
        "--synthetic --chunk-size 0": "--chunk-size must be at least 1",
        "--synthetic --sizes 1": "--sizes needs sides of at least 2",
        "--synthetic --threads 0": "--threads must be at least 1",
        "--weights nowhere": "no weights of run 'nowhere'",
        "--from-records": "no approximation records under",
    },
}
for _name in ("latency", "scaling"):
    MISTAKES[_name] |= {
        "--sizes 3": "size '3' is not height x width",
        "--device cuda:99": "cuda:99",
        "--threads 0": "threads must be at least 1",
        "--attn nonsense": "unknown attention 'nonsense'",
        "--attn nlsa --m 3": "no option --m",
        "--attn enlca --m 0": "m must be",
        "--dtype tf32 --device cpu": "tf32 needs a CUDA device",
    }


@pytest.mark.parametrize(
    ("name", "words"), [(name, words) for name, table in MISTAKES.items() for words in table]
)
def test_mistakes_are_one_line(name: str, words: str, cli: Cli, tmp_path: Path) -> None:
    if name == "gpu" and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    assert MISTAKES[name][words] in cli.refused(f"{name} {words}", "--results", tmp_path)
    assert not list(tmp_path.iterdir())
