"""Efficient non-local attention: oracle, estimator, and the life of its random projection."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from attention_zoo import AttentionError, create_attention
from attention_zoo.enla import normalise, orthogonal_gaussian, phi, random_feature_attention
from tests.reference import enla as oracle
from tests.reference.cases import (
    FORMATS,
    SIZES,
    TOLERANCES,
    assert_agrees,
    assert_close,
    assert_module_agrees,
    perturb,
    random_map,
    random_qkv,
)


def drawn(m: int, c: int, seed: int = 0) -> Tensor:
    return orthogonal_gaussian(m, c, torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("size", SIZES)
def test_agrees_with_the_oracle(
    size: tuple[int, int], dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    projection = drawn(6, 4).to(dtype)
    inputs = random_qkv(0, size, dtype=dtype, memory_format=memory_format)
    assert_agrees(
        lambda q, k, v: random_feature_attention(q, k, v, projection),
        lambda q, k, v: oracle.random_feature_attention(q, k, v, projection),
        inputs,
    )


@settings(max_examples=15)
@given(
    seed=st.integers(0, 1000),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    m=st.integers(1, 9),
    eps=st.sampled_from([0.0, 1e-4, 1e-2]),
    amplification=st.floats(0.5, 20),
    batch=st.integers(1, 3),
)
def test_agrees_with_the_oracle_for_drawn_shapes(
    seed: int, size: tuple[int, int], m: int, eps: float, amplification: float, batch: int
) -> None:
    projection = drawn(m, 4, seed)
    assert_agrees(
        lambda q, k, v: random_feature_attention(
            normalise(q, amplification), normalise(k, amplification), v, projection, eps
        ),
        lambda q, k, v: oracle.random_feature_attention(
            oracle.normalise(q, amplification),
            oracle.normalise(k, amplification),
            v,
            projection,
            eps,
        ),
        random_qkv(seed, size, batch=batch),
    )


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("amplification", [None, 3.0, 60.0])
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("c_out", [3, 5, 9])
def test_mapping_the_sums_is_mapping_the_values(
    dtype: torch.dtype, amplification: float | None, c_out: int, memory_format: torch.memory_format
) -> None:
    """Value and every gradient, those of weight and bias too; exponents shifted and not."""
    projection = drawn(6, 4).to(dtype)
    generator = torch.Generator().manual_seed(c_out)
    weight = torch.randn(c_out, 5, generator=generator, dtype=torch.float64)
    bias = torch.randn(c_out, generator=generator, dtype=torch.float64)
    weight, bias = (t.to(dtype).requires_grad_() for t in (weight, bias))

    def obvious(q: Tensor, k: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        values = torch.einsum("oc,bchw->bohw", weight, x) + bias.view(-1, 1, 1)
        if amplification is not None:
            q, k = (oracle.normalise(t, amplification) for t in (q, k))
        return oracle.random_feature_attention(q, k, values, projection, 1e-2)

    assert_agrees(
        lambda q, k, x, *value_map: random_feature_attention(
            q, k, x, projection, 1e-2, amplification, value_map
        ),
        obvious,
        (*random_qkv(0, (3, 4), dtype=dtype, memory_format=memory_format, batch=2), weight, bias),
    )


def test_a_map_that_does_not_fit_the_values_is_refused() -> None:
    q, k, v = random_qkv(0, (2, 2))
    for weight, bias in [((5, 4), (5,)), ((5, 5), (4,)), ((5, 5, 1), (5,))]:
        value_map = (torch.zeros(weight), torch.zeros(bias))
        with pytest.raises(AttentionError, match=r"value_map must be \[c_out, 5\] and \[c_out\]"):
            random_feature_attention(q, k, v, drawn(6, 4), value_map=value_map)


@pytest.mark.parametrize("size", [(2, 3), (4, 5)])  # fewer positions than features, and more
@pytest.mark.parametrize("replaced", ["project", "attend"])
def test_what_replaces_project_or_attend_is_called(replaced: str, size: tuple[int, int]) -> None:
    """On the object (as measurements do) and in a subclass."""
    module, x = module_with(), random_map(0, 8, size)
    expected = module(x)
    called: list[str] = []
    before = getattr(module, replaced)

    def noted(*maps: Tensor) -> object:
        called.append(replaced)
        return before(*maps)

    module.__dict__[replaced] = noted
    torch.testing.assert_close(module(x), expected)
    assert module.cost(*size).saved == 0
    del module.__dict__[replaced]
    kind = type(module)
    module.__class__ = type("Other", (kind,), {replaced: lambda _, *maps: noted(*maps)})
    before = getattr(super(type(module), module), replaced)
    torch.testing.assert_close(module(x), expected)
    assert module.cost(*size).saved == 0
    assert len(called) == 2


@pytest.mark.parametrize("eps", [0.0, 1e-4])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_a_large_amplification_does_not_underflow(dtype: torch.dtype, eps: float) -> None:
    """exp(Fu − |u|²/2) near e^-100, products near e^-200: a maximum taken off it must cancel."""
    projection = drawn(16, 4).to(dtype)
    q, k, v = random_qkv(0, (5, 6), dtype=dtype)
    q, k = (oracle.normalise(x.detach(), 300.0).to(dtype).requires_grad_() for x in (q, k))
    value_tolerance, gradient_tolerance = TOLERANCES[dtype]
    assert_agrees(
        lambda q, k, v: random_feature_attention(q, k, v, projection, eps),
        lambda q, k, v: oracle.random_feature_attention(q, k, v, projection, eps),
        [q, k, v],
        tolerance=(10 * value_tolerance, 10 * gradient_tolerance),
    )


@pytest.mark.parametrize("eps", [0.0, 1e-4])
@pytest.mark.parametrize("m", [1, 6])
def test_feature_map_agrees_with_the_oracle(m: int, eps: float) -> None:
    projection = drawn(m, 4)
    u = random_map(0, 4, (1, 1), batch=1).flatten(2).transpose(1, 2)  # [1, 1, 4]
    assert_close(phi(u, projection, eps).flatten(), oracle.phi(u.flatten(), projection, eps), 1e-12)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("size", [(1, 1), (3, 4)])
def test_normalise_agrees_with_the_oracle(size: tuple[int, int], dtype: torch.dtype) -> None:
    """Half precision is raised to float32 on the way."""
    x = random_map(0, 4, size, dtype=dtype)
    assert normalise(x, 6.0).dtype == torch.promote_types(dtype, torch.float32)
    assert_agrees(lambda x: normalise(x, 6.0).to(dtype), lambda x: oracle.normalise(x, 6.0), [x])


def test_normalise_of_tiny_and_zero_vectors() -> None:
    """Norms below 5e-5 are divided by 5e-5, in value and gradient."""
    x = torch.zeros(1, 3, 1, 3, dtype=torch.float64)
    x[0, 0, 0] = torch.tensor([0.0, 1e-5, 1.0])
    x.requires_grad_()
    y = normalise(x, 4.0)
    torch.testing.assert_close(y[0, 0, 0], torch.tensor([0.0, 0.4, 2.0]).double())
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.isfinite(gradient).all()
    torch.testing.assert_close(
        gradient[0, 0, 0], torch.tensor([2 / 5e-5, 2 / 5e-5, 0.0], dtype=torch.float64)
    )


def test_gradcheck() -> None:
    projection = drawn(5, 4)
    assert torch.autograd.gradcheck(
        lambda q, k, v: random_feature_attention(q, k, v, projection),
        random_qkv(0, (2, 3), batch=1),
    )
    assert torch.autograd.gradcheck(lambda x: normalise(x, 6.0), [random_map(0, 4, (2, 3))])


def test_draw_is_the_generators() -> None:
    assert torch.equal(drawn(10, 4, seed=1), drawn(10, 4, seed=1))
    assert not torch.equal(drawn(10, 4, seed=1), drawn(10, 4, seed=2))
    torch.manual_seed(3)
    first = orthogonal_gaussian(10, 4)
    torch.manual_seed(3)
    assert torch.equal(orthogonal_gaussian(10, 4), first)


def module_with(training: bool = False, **options: float) -> torch.nn.Module:
    torch.manual_seed(0)
    module = perturb(create_attention("enla", channels=8, **{"m": 6, **options}).double())
    return module.train(training)


def projection_of(module: torch.nn.Module) -> Tensor:
    """The random projection ``[m, c]``, a buffer."""
    return dict(module.named_buffers())["projection"]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_module_agrees_with_the_oracle(size: tuple[int, int], training: bool) -> None:
    module = module_with(training, k=3.0, eps=1e-2)

    def forward(x: Tensor) -> Tensor:
        q, k, v = module.project(x)
        return x + 0.1 * oracle.random_feature_attention(
            oracle.normalise(q, 3.0), oracle.normalise(k, 3.0), v, projection_of(module), 1e-2
        )

    assert_module_agrees(module, forward, random_map(0, 8, size))


def test_the_projection_is_in_the_checkpoint() -> None:
    module = module_with()
    state = copy.deepcopy(module.state_dict())
    assert any(torch.equal(x, projection_of(module)) for x in state.values())
    torch.manual_seed(99)
    other = create_attention("enla", channels=8, m=6).double().eval()
    assert not torch.equal(projection_of(other), projection_of(module))
    other.load_state_dict(state)
    x = random_map(0, 8, (4, 5))
    assert torch.equal(other(x), module(x))


def test_evaluation_never_redraws() -> None:
    module = module_with(redraw_every=1)
    before = projection_of(module).clone()
    x = random_map(0, 8, (4, 5))
    first = module(x)
    assert torch.equal(module(x), first)
    assert torch.equal(projection_of(module), before)


@pytest.mark.parametrize("every", [0, 1, 3])
def test_training_redraws_every_so_many_forwards(every: int) -> None:
    module = module_with(training=True, redraw_every=every)
    x = random_map(0, 8, (3, 4))
    draws = [projection_of(module).clone()]
    for _ in range(7):
        module(x)
        draws.append(projection_of(module).clone())
    changes = sum(not torch.equal(a, b) for a, b in itertools.pairwise(draws))
    assert changes == (6 // every if every else 0)  # never before the first


def test_redraw_takes_a_new_projection_in_place_from_the_global_generator() -> None:
    module = module_with(training=True)
    before = projection_of(module).clone()
    torch.manual_seed(5)
    module.redraw()
    first = projection_of(module).clone()
    torch.manual_seed(5)
    module.redraw()
    assert torch.equal(projection_of(module), first)
    assert not torch.equal(first, before)
    assert first.dtype == before.dtype
    assert first.shape == before.shape


def test_the_projection_has_no_gradient() -> None:
    module = module_with(training=True)
    assert not projection_of(module).requires_grad
    assert not any(p.shape == (6, 2) for p in module.parameters())


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("m", 0),
        ("m", -1),
        ("m", 1.5),
        ("m", 10**11),  # would be drawn for hours
        ("k", 0.0),
        ("k", -1.0),
        ("eps", -1e-4),
        ("redraw_every", -1),
    ],
)
def test_bad_options_are_refused_by_name(option: str, value: float) -> None:
    with pytest.raises(AttentionError, match=rf"\b{option}\b"):
        create_attention("enla", channels=8, **{option: value})


def test_exact_weights_are_the_softmax_that_the_features_approximate() -> None:
    torch.manual_seed(0)
    module = create_attention("enla", channels=8, m=20_000, k=0.5, eps=0.0).eval()
    q, k, _ = module.project(torch.randn(1, 8, 4, 5))
    exact = module.exact_weights(q, k, 1, 2)
    assert exact.shape == (1, 4, 5)
    assert torch.allclose(exact.sum(), torch.tensor(1.0))
    assert torch.allclose(exact, module.attention_weights(q, k, 1, 2), atol=0.01)


@pytest.mark.parametrize("k", [6.0, 60.0])  # exponents unshifted, and shifted
def test_executed_operations_are_those_of_any_processor(k: float) -> None:
    """Counted on the CPU, where kernels in C may exist; test_cost counts on the meta device."""
    module = create_attention("enla", channels=16, k=k).eval()
    qkv = module.project(torch.randn(1, 16, 13, 11))
    with FlopCounterMode(display=False) as counter:
        module.attend(*qkv)
    assert counter.get_total_flops() == 2 * module.cost(13, 11).executed


def test_shared_takes_one_embedding_as_query_and_key() -> None:
    module = create_attention("enla", 8, m=6, shared=True, res_scale=0.3).double()
    projection, k, eps = module.projection, module.k, module.eps

    def wanted(x: Tensor) -> Tensor:
        match, v = normalise(module.match(x), k), module.value(x)
        return x + 0.3 * oracle.random_feature_attention(match, match, v, projection, eps)

    assert {name for name, _ in module.named_parameters()} == {
        "match.weight",
        "match.bias",
        "value.weight",
        "value.bias",
    }
    assert module.match.weight.shape == (2, 8, 3, 3)
    for size in ((2, 2), (4, 5)):  # N < m, and N > m, where the sums are projected
        assert_module_agrees(module, wanted, random_map(0, 8, size))
