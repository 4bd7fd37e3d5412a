"""The control that is told where to attend."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attention_zoo import AttentionError, create_attention
from tests.reference.cases import random_map


@pytest.mark.parametrize("count", [1, 3])
def test_every_position_takes_the_mean_of_its_references(count: int) -> None:
    module: Any = create_attention("oracle", channels=3, res_scale=0.5).double()
    x = random_map(0, 3, (2, 4))
    references = torch.stack([torch.randperm(8)[:count] for _ in range(8 * len(x))])
    module.references = references.view(len(x), 8, count)
    y, v = module(x), module.project(x)[2]
    for image, own in enumerate(v.flatten(2)):
        for position in range(8):
            row, col = divmod(position, 4)
            found = [own[:, r] for r in module.references[image, position].tolist()]
            wanted = x[image, :, row, col] + 0.5 * sum(found) / count
            torch.testing.assert_close(y[image, :, row, col], wanted, rtol=0, atol=1e-14)
    module.references = module.references[:1]
    weights = module.correlation(x[:1], (1, 2)).flatten()
    assert sorted(weights.nonzero().flatten()) == sorted(module.references[0, 6])
    assert torch.allclose(weights[weights > 0], torch.tensor(1 / count).to(weights))


def test_the_mean_of_what_another_position_refers_to() -> None:
    module: Any = create_attention("reference-mean", channels=3, res_scale=0.5).double()
    x = random_map(0, 3, (2, 3))
    # Positions 4 and 1 are referred to by others; 2 and 5 by themselves alone.
    first = [[4], [1], [2], [1], [4], [5]]
    second = [[3], [3], [3], [3], [3], [0]]
    module.references = torch.tensor([first, second])
    y, v = module(x), module.project(x)[2].flatten(2)
    for image, chosen in enumerate(([1, 4], [0, 3])):
        mean = sum(v[image, :, r] for r in chosen) / 2
        wanted = x[image] + 0.5 * mean[:, None, None]
        torch.testing.assert_close(y[image], wanted, rtol=0, atol=1e-14)
    module.references = module.references[:1]
    weights = module.correlation(x[:1], (0, 2)).flatten()
    torch.testing.assert_close(weights, torch.tensor([0, 0.5, 0, 0, 0.5, 0]).to(weights))
    module.references = torch.arange(6).view(1, 6, 1)  # nobody refers to another
    assert torch.equal(module(x[:1]), x[:1])


@pytest.mark.parametrize("name", ["oracle", "reference-mean"])
def test_references_of_another_size_are_refused(name: str) -> None:
    module: Any = create_attention(name, channels=2)
    module.references = torch.zeros(1, 8, 1, dtype=torch.int64)
    with pytest.raises(AttentionError, match=r"\[1, 8, 1\] for images of \[1, 9\] positions"):
        module(torch.zeros(1, 2, 3, 3))
