"""The compiled path against the reference it stands for."""

import math
import os
import shutil

import pytest
import torch
from torch import Tensor

import dcem
from dcem import _native

# Where there is a compiler they have to be there: a kernel that does not compile must not go unseen.
expected = os.environ.get("DCEM_NATIVE") != "0" and shutil.which("cc") is not None
pytestmark = pytest.mark.skipif(_native.library() is None and not expected, reason="no C compiler, or turned off")


def test_the_kernels_are_built_where_they_can_be() -> None:
    assert _native.library() is not None


@pytest.fixture
def reference(monkeypatch):
    """A function that calls another without the compiled path."""

    def call(function):
        with monkeypatch.context() as patch:
            patch.setattr(_native, "library", lambda: None)
            return function()

    return call


def rows(kind: str, dtype: torch.dtype) -> Tensor:
    torch.manual_seed(0)
    x = torch.randn(5, 37, dtype=dtype)
    if kind == "ties":
        x = x.round()
    if kind == "equal":
        x = torch.full_like(x, 0.3)
    if kind == "huge":
        x = x * 1e20
    if kind == "gap":
        x[:, :7] += 1e4
    if kind == "failed":
        x[0, 3] = torch.nan
        x[1, :20] = torch.inf
        x[2, 5:36] = -torch.inf
        x[3] = torch.nan
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["ordinary", "ties", "equal", "huge", "gap", "failed"])
@pytest.mark.parametrize("k", [1, 7, 6.5, 36, 37])
@pytest.mark.parametrize("temperature", [1e-3, 0.1, 1.0, 100.0])
@pytest.mark.parametrize("standardize", [True, False])
def test_compiled_refit_is_the_reference(dtype, kind, k, temperature, standardize, reference):
    values = rows(kind, dtype).requires_grad_()
    samples = torch.randn(5, 37, 2, dtype=dtype).requires_grad_()
    distribution = dcem.Gaussian(torch.zeros(5, 2, dtype=dtype), 1.0)
    solver = dcem.CEM(37, k, dcem.LML(temperature), standardize=standardize)
    seeds = torch.randn(5, 37, dtype=dtype), torch.randn(5, 2, dtype=dtype), torch.randn(5, 2, dtype=dtype)

    def run():
        fitted, weights, valid = solver.refit(distribution, samples, values)
        valid = torch.ones(5, dtype=torch.bool) if valid is None else valid
        outputs = weights, fitted.mean, fitted.std
        total = sum((out * seed)[valid].sum() for out, seed in zip(outputs, seeds, strict=True))
        gradients = torch.autograd.grad(total, (values, samples), allow_unused=True)
        return [out[valid] for out in outputs], gradients, valid

    compiled, theirs = run(), reference(run)
    assert torch.equal(compiled[2], theirs[2])
    tolerance = {"rtol": 2e-3, "atol": 2e-4} if dtype == torch.float32 else {"rtol": 1e-6, "atol": 1e-9}
    for ours, other in zip(compiled[0], theirs[0], strict=True):
        torch.testing.assert_close(ours, other, **tolerance)
    if kind == "failed" and k == 37:
        return
    steep = max(1.0, 1 / temperature)
    for ours, other in zip(compiled[1], theirs[1], strict=True):
        assert ours.isfinite().all()
        scale = max(1.0, other.abs().max().item(), steep if dtype == torch.float32 else 0.0)
        assert (ours - other).abs().max().item() < scale * (5e-3 if dtype == torch.float32 else 1e-7)


def test_compiled_refit_by_finite_differences(generator):
    """Where sampled solves differ only in rounding, `gradcheck` and `gradgradcheck` see the compiled path alone."""
    noise = torch.randn(2, 30, 2, dtype=torch.float64, generator=generator)

    def answer(theta: Tensor) -> Tensor:
        return dcem.minimize(
            lambda x: (x - theta).square().sum(-1) + (3 * x[..., 0]).sin(), torch.zeros(2, dtype=torch.float64),
            dcem.CEM(30, 4, dcem.LML(0.4)), num_iterations=2, noise=noise,
        ).x  # fmt: skip

    theta = torch.tensor([0.3, -0.7], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(answer, theta)
    assert torch.autograd.gradgradcheck(answer, theta)
    for create_graph in (False, True):  # the second one takes the reference's way
        (gradient,) = torch.autograd.grad(answer(theta).sum(), theta, create_graph=create_graph)
        torch.testing.assert_close(gradient.detach(), torch.autograd.functional.jacobian(answer, theta).sum(0))


def test_many_gradients_at_once(generator):
    """`is_grads_batched` hands over tensors without storage, which the kernels cannot read."""
    noise = torch.randn(2, 30, 2, dtype=torch.float64, generator=generator)
    theta = torch.tensor([0.3, -0.7], dtype=torch.float64, requires_grad=True)
    x = dcem.minimize(lambda x: (x - theta).pow(4).sum(-1), torch.zeros_like(theta), num_iterations=2,
                      solver=dcem.CEM(30, 4), noise=noise).x  # fmt: skip
    each = torch.stack([torch.autograd.grad(xi, theta, retain_graph=True)[0] for xi in x])
    (batched,) = torch.autograd.grad(x, theta, torch.eye(2, dtype=torch.float64), is_grads_batched=True)
    torch.testing.assert_close(batched, each)
    scores = torch.randn(5, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: dcem.lml(s, 2), scores, check_batched_grad=True)


def test_large_batches_are_divided_among_threads_without_a_trace():
    values, samples = torch.randn(700, 300), torch.randn(700, 300, 1)
    solver, distribution = dcem.CEM(300, 30), dcem.Gaussian(torch.zeros(700, 1), 1.0)
    before = torch.get_num_threads()
    results = []
    try:
        for num_threads in (1, 3):
            torch.set_num_threads(num_threads)
            results.append(solver.refit(distribution, samples, values)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0].mean, results[1].mean)
    assert torch.equal(results[0].std, results[1].std)


def test_the_library_can_be_turned_off(monkeypatch):
    monkeypatch.setenv("DCEM_NATIVE", "0")
    assert _native.library.__wrapped__() is None
    assert not math.isnan(dcem.minimize(lambda x: x.square().sum(-1), torch.ones(2)).best_value)
