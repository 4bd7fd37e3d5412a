"""Efficient Non-Local Attention: random features approximate exp(q·k), O(N) time and memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .base import (
    Attention,
    AttentionError,
    Cost,
    check_qkv,
    embedding_channels,
    require_at_least,
    to_rows,
)
from .nla import softmax_weights
from .registry import register_attention
from .softmax import no_autocast, refuse_second_derivative

#: Embeddings are divided by their norm, but by no less than this.
MIN_NORM = 5e-5

# Features that are alive at once: 32 MB in float32; on the CPU 4 MB, within the last-level cache,
# yet enough that threads are not woken for crumbs.
_TILE = 2**23
_CPU_TILE = 2**20


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
        flat = (t.to(dtype).flatten(2) for t in (q, k, v))
        out = _RandomFeatureAttention.apply(*flat, projection.to(dtype), eps)
    return out.to(v.dtype).unflatten(2, v.shape[2:])


class _RandomFeatureAttention(torch.autograd.Function):
    """Eq. 5–6 over tiles of positions; q, k ``[B, c, N]``, v ``[B, c_out, N]``, F ``[m, c]``.

    The features ``[m, N]`` are never kept whole: the backward pass computes them again. What eps
    adds is of rank one, and joins the sums over positions instead of every feature.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, projection: Tensor, eps: float
    ) -> Tensor:
        batch, c_out, n = v.shape
        m = projection.shape[0]
        out = torch.empty_like(v)
        context = v.new_empty(batch, m, c_out + 1)
        shift = v.new_empty(batch, m, 1)
        normaliser = v.new_empty(batch, 1, n)
        for b, tiles, space in _tiles(q, m):
            context[b], shift[b] = _summarise(k[b], v[b], projection, eps, tiles, space)
            eps_q, floor = _eps_features(shift[b], eps)
            eps_sums = (context[b] * eps_q).sum(1).unsqueeze(2)
            for i in tiles:
                features, scale = _query_features(q[b, :, i], projection, shift[b], floor, space)
                sums = torch.bmm(context[b].mT, features).addcmul_(eps_sums, scale)
                normaliser[b, :, i] = sums[:, c_out:]
                torch.div(sums[:, :c_out], sums[:, c_out:], out=out[b, :, i])
        ctx.save_for_backward(q, k, v, projection, out, context, shift, normaliser)
        ctx.eps = eps
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("random_feature_attention")
        q, k, v, projection, out, context, shift, normaliser = ctx.saved_tensors
        m, c_out, n = projection.shape[0], v.shape[1], v.shape[2]
        grad_q, grad_k, grad_v = (torch.empty_like(t) for t in (q, k, v))
        for b, tiles, space in _tiles(q, m):
            grad_context = torch.zeros_like(context[b])
            eps_q, floor = _eps_features(shift[b], ctx.eps)
            for i in tiles:
                features, scale = _query_features(q[b, :, i], projection, shift[b], floor, space)
                grad = grads[0][b, :, i] / normaliser[b, :, i]
                grad_norm = (grad * out[b, :, i]).sum(1, keepdim=True).neg_()
                grad_sums = torch.cat([grad, grad_norm], dim=1)
                grad_context += torch.bmm(features, grad_sums.mT)
                grad_context += eps_q * torch.bmm(scale, grad_sums.mT)
                features.mul_(torch.bmm(context[b], grad_sums))
                grad_q[b, :, i] = _through_exponents(features, q[b, :, i], projection)
            by_value, by_norm = grad_context[..., :c_out], grad_context[..., c_out:]
            eps_k = (_log(ctx.eps) - shift[b]).exp() / n
            eps_grad = (by_value * eps_k).sum(1).unsqueeze(2)
            for i in tiles:
                features = _exponents(k[b, :, i], projection, space)
                features.sub_(shift[b] + math.log(n)).exp_()
                grad_v[b, :, i] = torch.baddbmm(eps_grad, by_value.mT, features)
                features.mul_(torch.baddbmm(by_norm, by_value, v[b, :, i]))
                grad_k[b, :, i] = _through_exponents(features, k[b, :, i], projection)
        return grad_q, grad_k, grad_v, None, None


def _tiles(q: Tensor, m: int) -> Iterator[tuple[slice, list[slice], Tensor]]:
    """Images, tiles of their positions, and memory for one tile's features, taken once."""
    batch, _, n = q.shape
    size = _CPU_TILE if q.device.type == "cpu" else _TILE
    width = max(1, min(n, size // m))
    group = max(1, min(batch, size // (m * width)))
    space = q.new_empty(group * m * width)
    tiles = [slice(i, i + width) for i in range(0, n, width)]
    for b in range(0, batch, group):
        yield slice(b, b + group), tiles, space


def _exponents(u: Tensor, projection: Tensor, space: Tensor) -> Tensor:
    """``Fu − |u|²/2`` of a tile ``[B, c, T]``: ``[B, m, T]``, written into ``space``."""
    shape = (u.shape[0], projection.shape[0], u.shape[2])
    out = space[: math.prod(shape)].view(shape)
    bias = u.square().sum(1, keepdim=True).div_(-2)
    return torch.baddbmm(bias, projection.expand(u.shape[0], -1, -1), u, out=out)


def _through_exponents(grad: Tensor, u: Tensor, projection: Tensor) -> Tensor:
    """Gradient ``[B, c, T]`` of :func:`_exponents`, given that of its result ``[B, m, T]``."""
    through_product = torch.bmm(projection.T.expand(u.shape[0], -1, -1), grad)
    return through_product.addcmul_(u, grad.sum(1, keepdim=True), value=-1)


def _summarise(
    k: Tensor, v: Tensor, projection: Tensor, eps: float, tiles: list[slice], space: Tensor
) -> tuple[Tensor, Tensor]:
    """phi(K) [Vᵀ, 1] / N ``[B, m, c_out + 1]``, each feature divided by exp(shift ``[B, m, 1]``).

    shift is a feature's largest exponent over the keys, or log eps where that is larger.
    """
    n = v.shape[2]
    context, shift = v.new_zeros(()), v.new_full((), _log(eps))
    for i in tiles:
        features = _exponents(k[:, :, i], projection, space)
        new_shift = torch.maximum(features.amax(2, keepdim=True), shift)
        features.sub_(new_shift + math.log(n)).exp_()
        sums = [torch.bmm(features, v[:, :, i].mT), features.sum(2, keepdim=True)]
        context = torch.cat(sums, dim=2).add_(context * (shift - new_shift).exp())
        shift = new_shift
    values = torch.cat([v.mean(2), v.new_ones(v.shape[0], 1)], dim=1).unsqueeze(1)
    return context.addcmul_((_log(eps) - shift).exp(), values), shift


def _eps_features(shift: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """What eps adds to a query's features, over its largest entry ``[B, m, 1]``; log of that."""
    exponents = shift + _log(eps)
    floor = exponents.amax(1, keepdim=True)
    return (exponents - floor).exp_(), floor


def _query_features(
    q: Tensor, projection: Tensor, shift: Tensor, floor: Tensor, space: Tensor
) -> tuple[Tensor, Tensor]:
    """exp of a tile's exponents over each query's largest ``[B, m, T]``; that of floor so too."""
    exponents = _exponents(q, projection, space).add_(shift)
    top = torch.maximum(exponents.amax(1, keepdim=True), floor)
    return exponents.sub_(top).exp_(), (floor - top).exp_()


def _log(eps: float) -> float:
    """log eps; for 0 so low that its exp is 0, yet finite: differences of it stay defined."""
    return math.log(eps) if eps > 0 else -1e30


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
