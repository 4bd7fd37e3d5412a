"""What is special to non-local attention; its oracle is in the table."""

from __future__ import annotations

import torch

from tests.attention_zoo.table import build
from tests.reference import nla as oracle
from tests.reference.cases import assert_module_agrees, random_map


def test_embeddings_are_one_by_one_convolutions_of_c_over_reduction_channels() -> None:
    module = build("nla", 4, reduction=2)
    assert [t.shape for t in module.project(random_map(0, 8, (3, 4)))] == [
        (2, width, 3, 4) for width in (4, 4, 8)
    ]
    assert all(p.shape[2:] == (1, 1) for p in module.parameters() if p.dim() == 4)


def test_released_form_activates_projections_and_scales_the_input() -> None:
    """NLSN's released NLA: PReLU after each projection, y = attention + res_scale · x."""
    module = build("nla", 2, released=True, res_scale=0.3)
    with torch.no_grad():
        slopes = [p for p in module.parameters() if p.numel() == 1]
        assert len(slopes) == 3
        for slope in slopes:
            slope.zero_()  # PReLU with slope 0 is ReLU
    x = random_map(0, 8, (4, 3))
    q, k, v = module.project(x)
    assert all((t >= 0).all() and (t == 0).any() for t in (q, k, v))
    assert_module_agrees(
        module, lambda x: oracle.non_local_attention(*module.project(x)) + 0.3 * x, x
    )
