"""Efficient Non-Local Attention (ENLA): softmax attention by random features, O(N) time and memory.

Source: ENLCA, Xia et al., AAAI 2022, Eq. 3–7. i and j are positions of a feature map x, N = H·W of
them; theta, delta and psi are 1x1 convolutions::

    q_i = sqrt(k) theta(x_i) / |theta(x_i)|,  k_j = sqrt(k) delta(x_j) / |delta(x_j)|      Eq. 3
    exp(q_i·k_j) ≈ phi(q_i)·phi(k_j),  phi(u) = m^(-1/2) (exp(Fu − |u|²/2) + eps)          Eq. 4
    y_i = sum_j phi(q_i)·phi(k_j) v_j / sum_j phi(q_i)·phi(k_j),  v_j = psi(x_j)
        = (sum_j v_j phi(k_j)ᵀ) phi(q_i) / (sum_j phi(k_j))·phi(q_i)                     Eq. 5–6

Shapes: q and k are ``[B, c, H, W]``, v and y ``[B, c_out, H, W]``, F is ``[m, c]``.

Softmax attention (:mod:`.nla`) weights v_j by exp(q_i·k_j), a number for each of N² pairs. phi
splits it into a factor of the query and one of the key. Both sums over j in the last line,
``[c_out, m]`` and ``[m]``, are then the same for all queries: no N x N matrix is ever made.

- **phi** maps ``[c]`` to m positive numbers, the random features. For a row f ~ N(0, I_c) of F,
  exp(f·u − |u|²/2) exp(f·w − |w|²/2) has the mean exp(u·w). So m rows estimate it without bias,
  with variance exp(2 u·w) (exp(|u + w|²) − 1) / m (Eq. 7). The authors' code adds eps = 1e-4 to
  each exponential, a small bias; eps = 0 is the estimator of the paper's proof.
- **F is orthogonal** in blocks of c rows. Each row alone is still N(0, I_c), so there is no bias.
  Rows of a block do not repeat each other, so the variance is lower than that of Eq. 7.
- **m** is the number of features. Cost grows with m; the error falls with sqrt(m).
- **k** is the amplification: the score q_i·k_j is k times a cosine. A larger k singles out similar
  positions more sharply and raises the variance. Unlike m and F, k changes what is estimated.

Numerics: features are computed in float32 at least; half precision cannot hold such exponentials.
Where k and the longest row of F could carry them out of float32's range too, exponents are shifted
by two maxima, which cancel in y (:func:`stable_features`). The error of y is at most
``(u + 2 min(1, g)) max|v|``, see :mod:`.base`, with S = ``2 |f| sqrt(k) + k`` for the longest row f
of F. It does not depend on the length of theta(x) and delta(x).

Errors: :func:`random_feature_attention` raises AttentionError, one line that names the tensor and
the shape wanted. There is no second derivative, and no gradient for F.
"""

from __future__ import annotations

import math
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from .base import (
    Attention,
    AttentionError,
    Cost,
    check_qkv,
    embedding_channels,
    is_repeated,
    no_autocast,
    require_at_least,
    to_rows,
)
from .implementations import outside_graphs, run
from .layers import add_embeddings, embed, projects_sums, weight_and_bias
from .nla import softmax_weights
from .registry import register_attention

#: Embeddings are divided by their norm, but by no less than this.
MIN_NORM = 5e-5
#: More features than this have no use, and drawing them takes minutes.
MOST_FEATURES = 2**16


def normalise(x: Tensor, amplification: float) -> Tensor:
    """Eq. 3: ``sqrt(k) · x / max(|x|, 5e-5)`` over the channels of a map ``[B, c, H, W]``.

    Half precision is raised to float32, where the norm of large features stays finite.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(MIN_NORM)
    return x * (math.sqrt(amplification) / norm)


def phi(u: Tensor, projection: Tensor, eps: float = 1e-4) -> Tensor:
    """Eq. 4: ``m^(-1/2) · (exp(Fu − |u|²/2) + eps)``, rows ``[B, N, c]`` to ``[B, N, m]``."""
    return (_exponent(u, projection).exp() + eps) / math.sqrt(projection.shape[0])


def _exponent(u: Tensor, projection: Tensor) -> Tensor:
    """``Fu − |u|²/2`` of rows ``[B, N, c]``: ``[B, N, m]``, in float32 at least."""
    dtype = torch.promote_types(u.dtype, torch.float32)
    u, projection = u.to(dtype), projection.to(dtype)
    return torch.matmul(u, projection.mT) - u.square().sum(-1, keepdim=True) / 2


def stable_features(q: Tensor, k: Tensor, projection: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """phi(q) and phi(k) ``[B, N, m]`` of rows, in 0 … 2, up to factors that cancel in Eq. 5.

    Keys are divided by the largest value that each feature has among them, and queries multiplied
    by it; then each query is divided by its largest feature. m^(-1/2) is left out.
    """
    log_eps = math.log(eps) if eps > 0 else -math.inf
    exponent_q, exponent_k = _exponent(q, projection), _exponent(k, projection)
    shift_k = exponent_k.detach().amax(1, keepdim=True).clamp_min(log_eps)
    exponent_q = exponent_q + shift_k
    floor_q = shift_k + log_eps
    shift_q = torch.maximum(exponent_q.detach(), floor_q).amax(2, keepdim=True)
    phi_k = (exponent_k - shift_k).exp() + (log_eps - shift_k).exp()
    phi_q = (exponent_q - shift_q).exp() + (floor_q - shift_q).exp()
    return phi_q, phi_k


def orthogonal_gaussian(m: int, c: int, generator: torch.Generator | None = None) -> Tensor:
    """A draw of F ``[m, c]``: blocks of c orthogonal rows, each row scaled by a chi_c norm.

    Every row is distributed as N(0, I_c). That rows of a block are orthogonal lowers the variance
    (Choromanski, Rowland, Weller, NIPS 2017). With m < c the first m rows are taken.
    """

    def gaussian(rows: int) -> Tensor:
        return torch.randn(rows, c, generator=generator, dtype=torch.float64, device="cpu")

    blocks = []
    for _ in range(math.ceil(m / c)):
        basis, upper = torch.linalg.qr(gaussian(c))
        # QR fixes signs by convention; undoing that makes the basis uniform (Haar).
        blocks.append((basis * upper.diagonal().sign()).T)
    norms = gaussian(m).norm(dim=1, keepdim=True)
    return (torch.cat(blocks)[:m] * norms).float()


def require_features(m: int) -> None:
    """Raise AttentionError unless m features can be drawn in reasonable time."""
    require_at_least("m", m, 1)
    if m > MOST_FEATURES:
        raise AttentionError(f"m must be at most {MOST_FEATURES}, got {m}")


def random_feature_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    projection: Tensor,
    eps: float = 1e-4,
    amplification: float | None = None,
    value_map: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Eq. 5–6: ``D^(-1) (phi(Q)ᵀ (phi(K) Vᵀ))``, D being the same for values of 1.

    Args:
        q: normalised queries ``[B, c, H, W]`` (:func:`normalise`).
        k: normalised keys ``[B, c, H, W]``.
        v: values ``[B, c_out, H, W]``.
        projection: F ``[m, c]``.
        eps: added to each exponential; 0 gives the unbiased estimator of Eq. 4.
        amplification: if given, q and k are raw and normalised here with it, which is faster.
        value_map: weight W ``[c_out, C]`` and bias b ``[c_out]`` if the values are ``W x + b`` of
            v = x ``[B, C, H, W]``. As ``phi(K) Vᵀ`` is linear in them, its m rows are mapped
            instead of N positions: the same result.

    Returns:
        ``[B, c_out, H, W]`` in the dtype of v.

    Raises:
        AttentionError: the shapes do not fit together.

    Implementations: ``native``, ``triton`` (its backward pass is tiled), ``tiled``, ``reference``,
    ``released``. ``auto`` is native on the CPU where it can run (not in float64, nor without a C
    compiler, nor without an amplification, nor where exponents must be shifted), else tiled.
    """
    check_qkv(q, k, v)
    if projection.dim() != 2 or projection.shape[1] != q.shape[1]:
        raise AttentionError(f"projection must be [m, {q.shape[1]}], got {list(projection.shape)}")
    if value_map is not None:
        weight, bias = value_map
        if weight.dim() != 2 or weight.shape[1] != v.shape[1] or bias.shape != weight.shape[:1]:
            shapes = f"{list(weight.shape)} and {list(bias.shape)}"
            raise AttentionError(
                f"value_map must be [c_out, {v.shape[1]}] and [c_out], got {shapes}"
            )
    return run("enla", q, k, v, projection, eps, amplification, value_map)


def feature_weights(
    q: Tensor, k: Tensor, row: int, col: int, projection: Tensor, eps: float
) -> Tensor:
    """Weights ``[B, H, W]`` of the query at (row, col): ``phi(q)·phi(k_j)`` over their sum.

    Args:
        q, k: normalised queries and keys ``[B, c, H, W]``.
        row, col: position of the query.
        projection: F ``[m, c]``.
        eps: added to each exponential.
    """
    query = to_rows(q[:, :, row : row + 1, col : col + 1])
    with no_autocast(q):
        phi_q, phi_k = stable_features(query, to_rows(k), projection, eps)
        products = torch.bmm(phi_q, phi_k.mT)
    return (products / products.sum(-1, keepdim=True)).view(-1, *k.shape[2:])


@register_attention("enla")
class EfficientNonLocalAttention(Attention):
    """ENLA with 1x1 embeddings, Eq. 2–6 of the ENLCA paper, without the contrastive loss.

    F is a buffer (``projection``) and part of checkpoints. In training, :meth:`redraw` replaces it:
    the trainer calls it every epoch, as in the paper, and ``redraw_every`` counts forwards, as in
    the released code. Evaluation never changes it.

    Args:
        channels: channels C of input and output.
        m: random features.
        k: amplification (> 0).
        reduction: query and key have C / reduction channels.
        eps: added to each exponential; 0 gives the unbiased estimator.
        redraw_every: training forwards between redraws, 0 for none (released code: 640).
        res_scale: weight of the attention in ``y = x + res_scale · attention``.
        shared: one 3x3 convolution serves as query and key, as in NLSA.
    """

    label_format: ClassVar[str] = "ENLA-m{m}"
    source: ClassVar[str] = "ENLCA, Xia et al., AAAI 2022, Eq. 3–7"
    complexity: ClassVar[str] = "O(N)"
    later_options: ClassVar[frozenset[str]] = frozenset({"shared"})
    shared: bool = False  # also of a subclass whose own ``__init__`` makes the projections

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
        shared: bool = False,
    ) -> None:
        super().__init__(channels, res_scale=res_scale)
        require_features(m)
        require_at_least("redraw_every", redraw_every, 0)
        if not 0 < k < math.inf:
            raise AttentionError(f"k must be a finite number above 0, got {k}")
        if not 0 <= eps < math.inf:
            raise AttentionError(f"eps must be a finite number, at least 0, got {eps}")
        self.m, self.k, self.eps, self.redraw_every = m, k, eps, redraw_every
        self.embedding = embedding_channels(channels, reduction)
        add_embeddings(self, self.embedding, shared, partial(nn.Conv2d, kernel_size=1))
        self.value = nn.Conv2d(channels, channels, 1)
        draw = orthogonal_gaussian(m, self.embedding).to(torch.get_default_device())
        self.register_buffer("projection", draw)
        self.register_buffer("forwards", torch.zeros((), dtype=torch.long))

    def redraw(self) -> None:
        """Replace F by a new draw from torch's global CPU generator."""
        self.projection.copy_(orthogonal_gaussian(self.m, self.embedding))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, C, H, W]`` to raw q, k ``[B, C/reduction, H, W]`` and v ``[B, C, H, W]``."""
        return embed(self, x, self.value)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Normalise q and k (Eq. 3), then :func:`random_feature_attention`."""
        return random_feature_attention(q, k, v, self.projection, self.eps, self.k)

    def attended(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As the base's; the values' projection maps m sums instead of N values if that is less."""
        if not projects_sums(self, EfficientNonLocalAttention, self.m, x.shape[2] * x.shape[3]):
            return super().attended(x)
        q, k = embed(self, x)
        value_map = weight_and_bias(self.value)
        return q, k, random_feature_attention(q, k, x, self.projection, self.eps, self.k, value_map)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, C, H, W]``."""
        if self.training and self.redraw_every:
            self._count_forward()
        return super().forward(x)

    @outside_graphs
    def _count_forward(self) -> None:
        if is_repeated():
            return
        if self.forwards > 0 and self.forwards % self.redraw_every == 0:
            self.redraw()
        self.forwards += 1

    def attention_weights(self, q: Tensor, k: Tensor, row: int, col: int) -> Tensor:
        """The weights ``[B, H, W]`` that the random features give."""
        q, k = normalise(q, self.k), normalise(k, self.k)
        return feature_weights(q, k, row, col, self.projection, self.eps)

    def exact_weights(self, q: Tensor, k: Tensor, row: int, col: int) -> Tensor:
        """Softmax of the inner products ``[B, H, W]``, what the features approximate."""
        return softmax_weights(normalise(q, self.k), normalise(k, self.k), row, col)

    def cost(self, height: int, width: int) -> Cost:
        """Core 2 N m (c + c_out) + N m / 2 MACs: the paper counts N m additions for D.

        Executed are N m MACs for D, a matrix product with the sums of the keys' features.
        """
        n, c, c_out = height * width, self.embedding, self.channels
        sums = projects_sums(self, EfficientNonLocalAttention, self.m, n)
        products = 2 * n * self.m * (c + c_out)
        return Cost(
            projections=n * self.channels * ((9 if self.shared else 2) * c + c_out),
            core=products + n * self.m / 2,
            executed=products + n * self.m,
            saved=(n - self.m) * c_out * self.channels if sums else 0,
        )
