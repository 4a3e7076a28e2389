"""Values and gradients against answers that were found in other ways."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from projection_reference import by_cvxpy, lml_exact, softmax_by_sorting, sparsemax_by_sorting
from scipy.optimize import brentq
from scipy.special import expit

from dcem.projections import constrained_softmax, constrained_sparsemax, hard_topk, lml

FAMILY = {"lml": lml, "constrained_softmax": constrained_softmax, "constrained_sparsemax": constrained_sparsemax}


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")  # of the solver, which is asked for its utmost
@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize(("n", "k", "temperature"), [(6, 2, 1.0), (12, 3.7, 0.5), (20, 19, 2.0), (5, 0.4, 1.0)])
def test_solves_the_optimisation_problem(name: str, n: int, k: float, temperature: float) -> None:
    for seed in range(3):
        x = np.random.default_rng(seed).normal(size=n)
        w = FAMILY[name](torch.tensor(x), k, temperature=temperature)
        np.testing.assert_allclose(w.cpu().numpy(), by_cvxpy(name, x, k, temperature), atol=2e-6)


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")  # of the solver, which is asked for its utmost
@pytest.mark.parametrize("name", FAMILY)
def test_gradient_is_that_of_the_optimisation_problem(name: str) -> None:
    rng = np.random.default_rng(7)
    x, direction, target, k, temperature, h = rng.normal(size=8), rng.normal(size=8), rng.normal(size=8), 3, 0.8, 1e-3
    ahead, behind = (by_cvxpy(name, x + s * h * direction, k, temperature) for s in (1, -1))
    leaf = torch.tensor(x).requires_grad_()
    w = FAMILY[name](leaf, k, temperature=temperature)
    (gradient,) = torch.autograd.grad((w * torch.tensor(target)).sum(), leaf)
    np.testing.assert_allclose(gradient.cpu().numpy() @ direction, target @ (ahead - behind) / (2 * h), atol=2e-3)


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0, 1e4])
@pytest.mark.parametrize(("n", "k"), [(1, 0.5), (7, 2), (40, 12.25), (300, 299), (300, 1)])
def test_exact_by_sorting(n: int, k: float, scale: float) -> None:
    for seed in range(4):
        x = np.random.default_rng(seed).normal(size=n) * scale
        x[: n // 3] = x[: n // 3].round()
        for function, exact in (
            (constrained_softmax, softmax_by_sorting),
            (constrained_sparsemax, sparsemax_by_sorting),
        ):
            np.testing.assert_allclose(
                function(torch.tensor(x), k).cpu().numpy(), exact(x, k), atol=2e-12 * scale + 1e-13
            )


def test_softmax_is_the_constrained_softmax_with_k_one() -> None:
    x = torch.randn(50, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for temperature in (0.01, 1.0, 50.0):
        leaves = [x.clone().requires_grad_() for _ in range(2)]
        mine = constrained_softmax(leaves[0], 1, temperature=temperature)
        theirs = torch.softmax(leaves[1] / temperature, -1)
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-14)
        gradients = [
            torch.autograd.grad((w * x.flip(0)).sum(), leaf)[0] for w, leaf in zip((mine, theirs), leaves, strict=True)
        ]
        torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-12)


def lml_rows() -> dict[str, tuple[list[float], float, float]]:
    rng = np.random.default_rng(1)
    normal = [float(v) for v in rng.normal(size=12)]
    gap = [float(v) for v in np.concatenate([rng.normal(size=4) + 1e4, rng.normal(size=8)])]
    return {
        "normal": (normal, 3, 1.0),
        "fractional k": (normal, 3.25, 0.3),
        "k below one": (normal, 0.01, 1.0),
        "k almost n": (normal, 12 - 1e-7, 1.0),
        "k equals n": (normal, 12, 1.0),
        "cold": (normal, 4, 1e-6),
        "cool": (normal, 4, 0.02),
        "hot": (normal, 4, 1e6),
        "gap": (gap, 4, 1.0),
        "gap elsewhere": (gap, 6, 1.0),
        "moderate gap": ([v / 500 for v in gap], 4, 1.0),
        "ties": ([1.0] * 5 + [0.0] * 5, 3, 1.0),
        "ties, cold": ([1.0] * 5 + [0.0] * 5, 3, 1e-3),
        "huge": ([v * 1e30 for v in normal], 3, 1.0),
        "huge ties": ([1e30, 1e30, 1e30, -1e30], 2, 1.0),
        "masked": ([*normal[:6], -math.inf, -math.inf, *normal[6:]], 5, 0.5),
        "masked to k": ([*normal[:5], -math.inf, -math.inf], 5, 0.5),
        "large": ([float(v) for v in rng.normal(size=60)], 6, 0.1),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", lml_rows())
def test_lml_in_many_digits(case: str, dtype: torch.dtype) -> None:
    row, k, temperature = lml_rows()[case]
    x = torch.tensor(row, dtype=dtype, requires_grad=True)
    weights, jacobian = lml_exact(x.tolist(), k, temperature)
    tolerance = 50 * torch.finfo(dtype).eps
    w = lml(x, k, temperature=temperature)
    np.testing.assert_allclose(w.detach().cpu().numpy(), weights, rtol=0, atol=tolerance)
    target = np.random.default_rng(2).normal(size=len(row))
    (gradient,) = torch.autograd.grad((w * torch.tensor(target).to(dtype)).sum(), x)
    np.testing.assert_allclose(gradient.cpu().numpy(), jacobian @ target, rtol=0, atol=10 * tolerance / temperature)


def test_lml_of_ten_thousand() -> None:
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    scores = x.double().cpu().numpy()
    for k in (100, 9_990):
        nu = brentq(lambda nu, k=k: math.fsum(expit(scores + nu)) - k, -20, 20, xtol=1e-14)
        np.testing.assert_allclose(lml(x, k).cpu().numpy(), expit(scores + nu), rtol=2e-6)


def test_gradient_of_saturated_weights_keeps_its_digits() -> None:
    """``y (1 - y)`` from a rounded ``y`` would lose all of them."""
    x = torch.tensor([14.0, 0.0, -14.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(lml(x, 2)[0], x)
    _, jacobian = lml_exact([14.0, 0.0, -14.0], 2, 1.0)
    np.testing.assert_allclose(gradient.cpu().numpy(), jacobian[0], rtol=2e-4)


scores = arrays(
    np.float64,
    st.integers(1, 12),
    elements=st.floats(-1e30, 1e30) | st.floats(-10, 10) | st.sampled_from([0.0, 1.0, -1e4, 1e4]),
)


@settings(max_examples=150)
@given(scores, st.floats(0.01, 1), st.floats(1e-6, 1e6), st.sampled_from(sorted(FAMILY)), st.booleans())
def test_any_row(row: np.ndarray, share: float, temperature: float, name: str, single: bool) -> None:
    dtype = torch.float32 if single else torch.float64
    k = share * len(row)
    x = torch.tensor(row).to(dtype).requires_grad_()
    tau = torch.tensor(temperature, dtype=dtype, requires_grad=True)
    w = FAMILY[name](x, k, temperature=tau)
    assert abs(w.double().sum().item() - k) <= (1e-5 if single else 1e-10) * k
    assert ((w >= 0) & (w <= 1)).all()
    order = x.detach().argsort()
    rounding = 0.0 if w.device.type == "cpu" else torch.finfo(dtype).eps  # of a GPU's code for one number and the next
    assert (w[order].diff() >= -rounding).all()
    gradients = torch.autograd.grad((w * torch.arange(len(row), dtype=dtype)).sum(), (x, tau))
    assert all(g.isfinite().all() for g in gradients)


@settings(max_examples=100)
@given(arrays(np.float32, (3, 9), elements=st.sampled_from([-2.0, 0.0, 0.5, 1e30])), st.integers(1, 9))
def test_hard_topk_is_a_stable_sort(values: np.ndarray, k: int) -> None:
    x = torch.tensor(values)
    w = hard_topk(x, k)
    chosen = torch.tensor(np.argsort(-values.astype(np.float64), axis=-1, kind="stable")[:, :k].copy())
    assert torch.equal(w, torch.zeros_like(x).scatter(-1, chosen, 1))
