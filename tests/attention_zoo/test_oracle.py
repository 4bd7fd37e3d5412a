"""The control that is told where to attend."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attention_zoo import AttentionError, create_attention
from tests.reference.cases import random_map


def test_every_position_takes_the_value_of_its_reference() -> None:
    module: Any = create_attention("oracle", channels=3, res_scale=0.5).double()
    x = random_map(0, 3, (2, 4))
    references = torch.randint(8, (len(x), 8))
    module.references = references
    y, v = module(x), module.project(x)[2]
    for image, (own, theirs) in enumerate(zip(v.flatten(2), references, strict=True)):
        for position, reference in enumerate(theirs.tolist()):
            row, col = divmod(position, 4)
            wanted = x[image, :, row, col] + 0.5 * own[:, reference]
            assert torch.equal(y[image, :, row, col], wanted)
    module.references = references[:1]
    (weight,) = module.correlation(x[:1], (1, 2)).flatten().nonzero()
    assert weight == references[0, 6]


def test_references_of_another_size_are_refused() -> None:
    module: Any = create_attention("oracle", channels=2)
    module.references = torch.zeros(1, 8, dtype=torch.int64)
    with pytest.raises(AttentionError, match=r"\[1, 8\] for images of \[1, 9\] positions"):
        module(torch.zeros(1, 2, 3, 3))
