"""Efficient Non-Local Attention: random features approximate exp(q·k), O(N) time and memory."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from .base import (
    Attention,
    AttentionError,
    Cost,
    check_qkv,
    embedding_channels,
    require_at_least,
    to_map,
    to_rows,
)
from .nla import softmax_weights
from .registry import register_attention
from .softmax import no_autocast

#: Embeddings are divided by their norm, but by no less than this.
MIN_NORM = 5e-5


def orthogonal_gaussian(m: int, c: int, generator: torch.Generator | None = None) -> Tensor:
    """Projection F ``[m, c]``: blocks of c orthogonal rows, each row scaled by a chi_c norm.

    Every row is distributed as N(0, I_c); rows of one block are orthogonal, which lowers the
    variance of Eq. 7 (Choromanski, Rowland, Weller 2017). With m < c the first m rows are taken.
    """
    blocks = []
    for _ in range(math.ceil(m / c)):
        basis, upper = torch.linalg.qr(torch.randn(c, c, generator=generator, dtype=torch.float64))
        # QR fixes signs by convention; undoing that makes the basis uniform (Haar).
        blocks.append((basis * upper.diagonal().sign()).T)
    norms = torch.randn(m, c, generator=generator, dtype=torch.float64).norm(dim=1, keepdim=True)
    return (torch.cat(blocks)[:m] * norms).float()


def normalise(x: Tensor, amplification: float) -> Tensor:
    """Eq. 3: ``sqrt(k) · x / max(norm, 5e-5)`` over channels of a map ``[B, c, H, W]``.

    Half precision is raised to float32, where the norm of large features stays finite.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(MIN_NORM)
    return x * (math.sqrt(amplification) / norm)


def phi(u: Tensor, projection: Tensor, eps: float = 1e-4) -> Tensor:
    """Feature map of Eq. 4, rows ``[B, N, c]`` to ``[B, N, m]``.

    ``phi(u) = m^(-1/2) · (exp(Fu − |u|²/2) + eps)``.
    """
    return (_exponent(u, projection).exp() + eps) / math.sqrt(projection.shape[0])


def random_feature_attention(
    q: Tensor, k: Tensor, v: Tensor, projection: Tensor, eps: float = 1e-4
) -> Tensor:
    """Eq. 5–6: ``D^(-1) (phi(Q)ᵀ (phi(K) Vᵀ))``.

    The factor m^(-1/2) cancels and is left out. Each feature is divided by its largest value over
    the keys, each query by its largest feature: both cancel too, and keep every exponential in
    0 … 2 whatever the amplification and the dtype.

    Args:
        q: amplified, normalised queries ``[B, c, H, W]`` (:func:`normalise`).
        k: amplified, normalised keys ``[B, c, H, W]``.
        v: values ``[B, c_out, H, W]``.
        projection: F ``[m, c]``.
        eps: added to each exponential; 0 gives the unbiased estimator of Eq. 4.

    Returns:
        ``[B, c_out, H, W]`` in the dtype of v.

    Raises:
        AttentionError: the shapes do not fit together.

    Numerics: error up to ``(u + 2 min(1, g)) max|v|``, see :mod:`.softmax`, whatever the length of
    the raw embeddings; S is ``2 |f| sqrt(k) + k`` for the longest row f of F.
    """
    check_qkv(q, k, v)
    if projection.dim() != 2 or projection.shape[1] != q.shape[1]:
        raise AttentionError(f"projection must be [m, {q.shape[1]}], got {list(projection.shape)}")
    dtype = torch.promote_types(v.dtype, torch.float32)
    with no_autocast(v):
        phi_q, phi_k = _shifted_features(to_rows(q), to_rows(k), projection, eps)
        values = to_rows(v).to(dtype)
        # Means instead of sums over N: the factor cancels, and sums stay in range.
        summed = torch.bmm(phi_k.mT, values / values.shape[1])
        normaliser = torch.bmm(phi_q, phi_k.mean(1).unsqueeze(-1))
        out = torch.bmm(phi_q, summed) / normaliser
    return to_map(out.to(v.dtype), like=v)


def _exponent(u: Tensor, projection: Tensor) -> Tensor:
    """``Fu − |u|²/2`` of rows ``[B, N, c]``: ``[B, N, m]``, in float32 at least."""
    dtype = torch.promote_types(u.dtype, torch.float32)
    u, projection = u.to(dtype), projection.to(dtype)
    return torch.matmul(u, projection.mT) - u.square().sum(-1, keepdim=True) / 2


def _shifted_features(
    q: Tensor, k: Tensor, projection: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """phi(q) and phi(k) ``[B, N, m]`` up to factors that cancel in the attention."""
    log_eps = math.log(eps) if eps > 0 else -math.inf
    exponent_q, exponent_k = _exponent(q, projection), _exponent(k, projection)
    shift_k = exponent_k.detach().amax(1, keepdim=True).clamp_min(log_eps)
    exponent_q = exponent_q + shift_k
    floor_q = shift_k + log_eps
    shift_q = torch.maximum(exponent_q.detach(), floor_q).amax(2, keepdim=True)
    phi_k = (exponent_k - shift_k).exp() + (log_eps - shift_k).exp()
    phi_q = (exponent_q - shift_q).exp() + (floor_q - shift_q).exp()
    return phi_q, phi_k


@register_attention("enla")
class EfficientNonLocalAttention(Attention):
    """ENLA with 1x1 embeddings, Eq. 2–6 of the ENLCA paper, without the contrastive loss.

    F is a buffer (``projection``), kept in checkpoints. It is drawn anew by :meth:`redraw` (the
    trainer calls it every epoch, as in the paper) and, if asked, every so many training forwards;
    never in evaluation.

    Args:
        channels: channels C of input and output.
        m: random features.
        k: amplification factor (> 0).
        reduction: query and key have C / reduction channels.
        eps: added to each feature; 0 gives the unbiased estimator.
        redraw_every: training forwards between redraws, 0 for none (released code: 640).
        res_scale: weight of the attention in ``y = x + res_scale · attention``.
    """

    label_format: ClassVar[str] = "ENLA-m{m}"
    source: ClassVar[str] = "ENLCA, Xia et al., AAAI 2022, Eq. 3–7"
    complexity: ClassVar[str] = "O(N)"

    projection: Tensor
    forwards: Tensor

    def __init__(
        self,
        channels: int,
        *,
        m: int = 128,
        k: float = 6.0,
        reduction: int = 4,
        eps: float = 1e-4,
        redraw_every: int = 0,
        res_scale: float = 0.1,
    ) -> None:
        super().__init__(channels, res_scale=res_scale)
        require_at_least("m", m, 1)
        require_at_least("redraw_every", redraw_every, 0)
        if not 0 < k < math.inf:
            raise AttentionError(f"k must be a finite number above 0, got {k}")
        if not 0 <= eps < math.inf:
            raise AttentionError(f"eps must be a finite number, at least 0, got {eps}")
        self.m, self.k, self.eps, self.redraw_every = m, k, eps, redraw_every
        self.embedding = embedding_channels(channels, reduction)
        self.query = nn.Conv2d(channels, self.embedding, 1)
        self.key = nn.Conv2d(channels, self.embedding, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.register_buffer("projection", orthogonal_gaussian(m, self.embedding))
        self.register_buffer("forwards", torch.zeros((), dtype=torch.long))

    def redraw(self) -> None:
        """Draw F anew from torch's global CPU generator."""
        self.projection.copy_(orthogonal_gaussian(self.m, self.embedding))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, C, H, W]`` to raw q, k ``[B, C/reduction, H, W]`` and v ``[B, C, H, W]``."""
        return self.query(x), self.key(x), self.value(x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Normalise q and k (Eq. 3), then :func:`random_feature_attention`."""
        check_qkv(q, k, v)
        q, k = normalise(q, self.k), normalise(k, self.k)
        return random_feature_attention(q, k, v, self.projection, self.eps)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, C, H, W]``."""
        if self.training and self.redraw_every:
            if self.forwards > 0 and self.forwards % self.redraw_every == 0:
                self.redraw()
            self.forwards += 1
        return super().forward(x)

    def attention_weights(self, q: Tensor, k: Tensor, row: int, col: int) -> Tensor:
        """The weights ``[B, H, W]`` that the random features give: phi(q)·phi(k_j) / D."""
        rows_q = to_rows(normalise(q, self.k)[:, :, row : row + 1, col : col + 1])
        rows_k = to_rows(normalise(k, self.k))
        with no_autocast(q):
            phi_q, phi_k = _shifted_features(rows_q, rows_k, self.projection, self.eps)
            kernel = torch.bmm(phi_q, phi_k.mT)
        return (kernel / kernel.sum(-1, keepdim=True)).view(-1, *q.shape[2:])

    def exact_weights(self, q: Tensor, k: Tensor, row: int, col: int) -> Tensor:
        """Softmax of the inner products ``[B, H, W]``, what the features approximate."""
        return softmax_weights(normalise(q, self.k), normalise(k, self.k), row, col)

    def cost(self, height: int, width: int) -> Cost:
        """Core 2 N m (c + c_out) + N m / 2 MACs, as the paper counts the normaliser."""
        n, c, c_out = height * width, self.embedding, self.channels
        products = 2 * n * self.m * (c + c_out)
        return Cost(
            projections=n * self.channels * (2 * c + c_out),
            core=products + n * self.m / 2,
            executed=products + n * self.m,
        )
