"""What is special to Nyström attention, and how it approximates; its oracle is in the table."""

from __future__ import annotations

import pytest
import torch

from attention_zoo import AttentionError
from attention_zoo.nla import non_local_attention
from attention_zoo.rivals.nystrom import landmark_inverse, landmarks, nystrom_attention
from tests.reference.cases import (
    SIZES,
    assert_close,
    random_qkv,
)


@pytest.mark.parametrize("size", SIZES)
def test_a_landmark_for_every_position_is_softmax_attention(size: tuple[int, int]) -> None:
    """``A Z A = A`` once Z has converged."""
    q, k, v = random_qkv(2, size)
    exact = non_local_attention(q / 2, k, v)
    assert_close(nystrom_attention(q, k, v, 7, steps=40), exact, 1e-8)


def test_every_step_comes_closer_to_softmax_attention() -> None:
    q, k, v = random_qkv(2, (4, 5))
    exact = non_local_attention(q / 2, k, v)
    errors = [(nystrom_attention(q, k, v, 5, steps) - exact).norm() for steps in (1, 3, 6, 12, 24)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3 * errors[0]


def test_the_inverse_is_that_of_moore_and_penrose() -> None:
    """Of well-conditioned weights; and of equal ones, which have rank one."""
    q, k, _ = random_qkv(4, (6, 6), c=16)
    landmarks_q, landmarks_k = landmarks(q + k, 3), landmarks(k + q, 3)
    a = (landmarks_q @ landmarks_k.mT / 4).softmax(-1)
    wanted = torch.linalg.pinv(a.detach())
    assert_close(landmark_inverse(landmarks_q, landmarks_k, 20), wanted, 1e-8)
    same = landmark_inverse(0 * landmarks_q, landmarks_k, 6)
    assert_close(same, torch.full_like(same, 1 / 9), 1e-12)


def test_images_do_not_share_a_start() -> None:
    """The released code divides all of a batch by one number."""
    q, k, v = random_qkv(2, (4, 5), batch=3)
    together = nystrom_attention(q, k, v, 2)
    alone = [nystrom_attention(*(t[i : i + 1] for t in (q, k, v)), 2) for i in range(3)]
    assert_close(together, torch.cat(alone), 1e-12)


@pytest.mark.parametrize("option", ["grid", "steps"])
@pytest.mark.parametrize("value", [0, -1, 2.5])
def test_bad_options_are_refused_by_name(option: str, value: float) -> None:
    with pytest.raises(AttentionError, match=option):
        nystrom_attention(*random_qkv(0, (3, 4)), **{option: value})
