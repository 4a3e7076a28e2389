"""The operators behind the dispatcher: registered as PyTorch asks, the same as what they stand for, safe to interrupt."""

import dataclasses
import itertools
import math
import os
import shutil
import signal

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import dcem
from dcem.kernels import cpu, operators
from dcem.solvers import SamplingSolver

# Where there is a compiler they have to be there: a kernel that does not compile must not go unseen.
expected = os.environ.get("DCEM_NATIVE") != "0" and shutil.which("cc") is not None
compiled = pytest.mark.skipif(cpu.library is None and not expected, reason="no C compiler, or turned off")


class Called(TorchDispatchMode):
    """Which of our operators a block calls."""

    def __enter__(self):
        self.names = []
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "dcem":
            self.names.append(func._schema.name.split("::")[1])
        return func(*args, **(kwargs or {}))


@pytest.mark.cpu
@compiled
def test_the_kernels_are_built_where_they_can_be() -> None:
    assert cpu.library is not None


def test_the_kernels_can_be_turned_off() -> None:
    assert cpu.load("0") is None
    assert cpu.load("no/such/file.so") is None


# registration


def arguments(name: str) -> list[tuple]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    masked = draw(2, 7).detach()
    masked[:, 3] = -math.inf
    x, tau = draw(2, 7), (draw(2, 1).detach().abs() + 0.5).requires_grad_()
    if name == "without_gradient":
        return [(x.detach(), x.detach(), "name"), (x, x.detach(), "name")]
    if name == "project":
        return [
            (x, None, 0.7, 2.5, "sigmoid"),
            (x, tau, 1.0, 2, "clip"),
            (masked, None, 1.0, 3.0, "capped_exponential"),
        ]
    if name == "project_backward":
        _, nu, center = operators.project(x.detach(), None, 0.7, 2.5, "sigmoid")
        return [
            (x, None, 0.7, nu, center, draw(2, 7), None, "sigmoid"),
            (x, tau, 1.0, nu, center, None, draw(2, 1), "clip"),
        ]
    options, values, samples = (3.0, 0.5, True, 1e-6, math.inf), draw(2, 7), draw(2, 7, 3)
    if name == "refit":
        return [(values, samples, *options), (values.detach(), draw(2, 7), *options)]
    weights, _, std, _, kept = operators.refit(values.detach(), samples.detach(), *options)
    given = (values, samples, *options, weights, std, kept, draw(2, 7), None, draw(2, 3))
    return [tuple(g.detach() if isinstance(g, Tensor) else g for g in given)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch 2.14's own
@pytest.mark.parametrize("name", ["project", "project_backward", "refit", "refit_backward", "without_gradient"])
def test_registered_as_pytorch_asks(name: str) -> None:
    operator = getattr(torch.ops.dcem, name).default
    for given in arguments(name):
        torch.library.opcheck(operator, given)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace.*` is deprecated")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # shapes become numbers
def test_traces_hold_the_operator_and_not_its_result() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    x, other = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(0))

    class Module(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return dcem.lml(x, 3, temperature=0.5) + dcem.constrained_sparsemax(x, 2)

    module = Module()
    expected = module(other)
    for traced in (
        make_fx(lambda x: module(x))(x),
        torch.jit.trace(module, (x,)),
        torch.export.export(module, (x,)).module(),
    ):
        assert torch.equal(traced(other), expected)
    gradient = make_fx(lambda x: torch.func.grad(lambda x: module(x).square().sum())(x))(x)(other)
    torch.testing.assert_close(gradient, torch.func.grad(lambda x: module(x).square().sum())(other))


# the refit against the two steps that it stands for


def fitted(solver: dcem.CEM, values: Tensor, samples: Tensor, both_steps: bool, distribution=None):
    """Outputs and gradients of one refit; where a row is not valid its distribution is not used."""
    values, samples = values.clone().requires_grad_(), samples.clone().requires_grad_()
    distribution = distribution or dcem.Gaussian(samples.detach()[..., 0, :], 1.0)
    refit = SamplingSolver.refit if both_steps else type(solver).refit
    new, weights, valid = refit(solver, distribution, samples, values)
    valid = torch.ones(values.shape[:-1], dtype=torch.bool) if valid is None else valid
    generator = torch.Generator().manual_seed(1)
    seeds = [torch.randn(out.shape, generator=generator, dtype=out.dtype) for out in (weights, new.mean, new.std)]
    total = sum((out * seed)[valid].sum() for out, seed in zip((weights, new.mean, new.std), seeds, strict=True))
    gradients = torch.autograd.grad(total, (values, samples))
    return valid, [out.detach()[valid] for out in (weights, new.mean, new.std)], gradients


def hard_values(dtype: torch.dtype) -> Tensor:
    """Rows of 37 values of every kind."""
    x = torch.randn(37, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    eps = torch.finfo(dtype).eps
    failed, few, outlier = x.clone(), x.clone(), torch.linspace(0, 5, 37, dtype=torch.float64)
    failed[3], failed[8], failed[20:25] = math.nan, -math.inf, math.inf
    few[2:] = math.nan
    outlier[-1] = 1e9
    rows = [
        x, x.round(), 0 * x + 0.3, 0 * x, x * 1e20, x * 1e-20, x + 1e4 * (x > 0.5), x + 1e3, failed, few, few * math.nan, outlier,
        1e3 * (1 + 20 * eps * torch.linspace(0, 1, 37)), 1e3 * (1 + 200 * eps * torch.linspace(0, 1, 37)), -1e3 + x * eps,
        x * torch.finfo(dtype).tiny / 8,
    ]  # fmt: skip
    return torch.stack(rows).to(dtype)


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_the_refit_is_the_two_steps(dtype: torch.dtype, standardize: bool, offset: float) -> None:
    values = hard_values(dtype)
    samples = torch.randn(*values.shape, 2, generator=torch.Generator().manual_seed(2), dtype=dtype) + offset
    single = dtype == torch.float32
    for k, temperature in itertools.product((1, 7, 6.5, 29, 36, 37), (1e-2, 0.3, 30.0)):
        solver = dcem.CEM(37, k, dcem.LML(temperature), standardize=standardize)
        with Called() as called:
            ours = fitted(solver, values, samples, both_steps=False)
        assert called.names == ["refit", "refit_backward"]
        theirs = fitted(solver, values, samples, both_steps=True)
        assert torch.equal(ours[0], theirs[0]), (k, temperature)
        for our, their in zip(ours[1], theirs[1], strict=True):
            torch.testing.assert_close(our, their, rtol=1e-3 if single else 1e-10, atol=2e-4 if single else 1e-11)
        for our, their in zip(ours[2], theirs[2], strict=True):
            assert our.isfinite().all(), (k, temperature)
            size = their.abs().flatten(1).amax(-1).clamp(min=1 / temperature if single else 1)
            if our.dim() == 2 and not single:  # by the values, which may all be tiny
                largest = values.nan_to_num(0, 0, 0).abs().amax(-1)
                size = size.maximum(torch.where(largest > 0, 1 / largest, 1))
            error = (our - their).abs().flatten(1).amax(-1) / size
            assert (error <= (5e-3 if single else 1e-10)).all(), (k, temperature, error)


def test_derivative_of_a_small_std_far_from_zero() -> None:
    """``X - mean`` has the rounding of the mean in it, which does not cancel; ``d std`` was wrong by 3 %."""
    noise = torch.randn(1, 50, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = torch.randn(1, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    solver = dcem.CEM(50, 10, dcem.LML(0.5), min_std=0.0)

    def gradients(dtype: torch.dtype, both_steps: bool) -> tuple[Tensor, Tensor]:
        samples = (1 + 1e-5 * noise).float().to(dtype).requires_grad_()
        given = values.float().to(dtype).requires_grad_()
        refit = SamplingSolver.refit if both_steps else dcem.CEM.refit
        std = refit(solver, dcem.Gaussian(samples.detach()[:, 0], 1.0), samples, given)[0].std
        return torch.autograd.grad(std.sum(), (given, samples))

    exact = gradients(torch.float64, True)
    for both_steps in (False, True):
        for found, truth in zip(gradients(torch.float32, both_steps), exact, strict=True):
            assert (found - truth).abs().max() <= 1e-5 * truth.abs().max()


def test_a_large_value_does_not_erase_a_selection_that_nothing_standardises() -> None:
    values = torch.cat([torch.linspace(0, 5, 99), torch.tensor([1e9])])[None]
    samples = torch.randn(1, 100, 1, generator=torch.Generator().manual_seed(0))
    solver = dcem.CEM(100, 10, dcem.LML(0.1), standardize=False)
    weights = solver.refit(dcem.Gaussian(torch.zeros(1, 1), 1.0), samples, values)[1]
    torch.testing.assert_close(weights, dcem.lml(-values, 10, temperature=0.1))
    assert weights[0, 0] > 0.99


# what says by itself what it does


class Worst(dcem.CEM):
    def weigh(self, values):
        weights, valid = super().weigh(values)
        return 1 - weights, valid


class Wide(dcem.CEM):
    def fit(self, distribution, samples, weights):
        fit = super().fit(distribution, samples, weights)
        return dataclasses.replace(fit, std=2 * fit.std)


class Slow(dcem.CEM):
    def _smooth(self, old, fitted):
        return old.interpolate(fitted, 0.5)


class Far(dcem.CEM):
    def sample(self, state, noise):
        return super().sample(state, 3 * noise)


class Flipped(dcem.LML):
    def forward(self, scores, k, dim=-1):
        return super().forward(-scores, k, dim)


class Called_(dcem.LML):
    def __call__(self, scores, k):
        return super().__call__(-scores, k)


class Round(dcem.Gaussian):
    def fit(self, samples, weights):
        fit = super().fit(samples, weights)
        return dataclasses.replace(fit, std=fit.std.mean(-1, keepdim=True).expand_as(fit.std))


class Plain(dcem.CEM):
    """No dataclass: Python lets its instances be changed."""


def changed(name: str, method) -> dcem.CEM:
    solver = Plain(40, 5)
    setattr(solver, name, method.__get__(solver))
    return solver


def hooked() -> dcem.LML:
    selection = dcem.LML()
    selection.register_forward_hook(lambda module, inputs, output: output.flip(-1))
    return selection


def patched() -> dcem.LML:
    selection = dcem.LML()
    selection.forward = lambda scores, k: dcem.lml(-scores, k)
    return selection


UNUSUAL = {
    "weigh": (Worst(40, 5), None), "fit": (Wide(40, 5), None), "smooth": (Slow(40, 5), None), "hook": (dcem.CEM(40, 5, hooked()), None),
    "selection": (dcem.CEM(40, 5, Flipped()), None), "call": (dcem.CEM(40, 5, Called_()), None),
    "own weigh": (changed("weigh", lambda self, v: (dcem.lml(v, 5), None)), None),
    "own fit": (changed("fit", lambda self, d, x, w: d.fit(x.flip(-1), w / w.sum(-1, keepdim=True))), None),
    "patch": (dcem.CEM(40, 5, patched()), None), "distribution": (dcem.CEM(40, 5), Round(torch.zeros(3, 2), 1.0)),
    "smoothing": (dcem.CEM(40, 5, smoothing=0.5), None), "function": (dcem.CEM(40, 5, lambda s, k: dcem.lml(-s, k)), None),
    "tensor": (dcem.CEM(40, 5, dcem.LML(torch.tensor(0.3))), None), "softmax": (dcem.CEM(40, 5, dcem.ConstrainedSoftmax()), None),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNUSUAL)
def test_what_overrides_a_step_is_asked(kind: str) -> None:
    solver, distribution = UNUSUAL[kind]
    generator = torch.Generator().manual_seed(0)
    values, samples = torch.randn(3, 40, generator=generator), torch.randn(3, 40, 2, generator=generator)
    with Called() as called:
        ours = fitted(solver, values, samples, both_steps=False, distribution=distribution)
    assert "refit" not in called.names
    theirs = fitted(solver, values, samples, both_steps=True, distribution=distribution)
    plain = fitted(dcem.CEM(40, 5), values, samples, both_steps=True)
    assert all(
        torch.equal(our, their) for our, their in zip(ours[1] + list(ours[2]), theirs[1] + list(theirs[2]), strict=True)
    )
    assert any(not torch.allclose(our, other) for our, other in zip(ours[1], plain[1], strict=True))


def test_a_hook_on_all_modules_is_asked() -> None:
    values, samples = torch.randn(3, 40), torch.randn(3, 40, 2)
    seen = []
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module)))
    try:
        dcem.CEM(40, 5).refit(dcem.Gaussian(torch.zeros(3, 2), 1.0), samples, values)
    finally:
        handle.remove()
    assert seen == [dcem.LML]


@compiled
def test_a_subclass_that_changes_neither_step_keeps_the_kernel() -> None:
    values, samples = torch.randn(3, 40), torch.randn(3, 40, 2)
    with Called() as called:
        Far(40, 5).refit(dcem.Gaussian(torch.zeros(3, 2), 1.0), samples, values)
    assert called.names == ["refit"]


def test_a_replaced_method_is_asked(monkeypatch) -> None:
    values, samples = torch.randn(3, 40), torch.randn(3, 40, 2)
    distribution, weigh = dcem.Gaussian(torch.zeros(3, 2), 1.0), dcem.CEM.weigh
    monkeypatch.setattr(dcem.CEM, "weigh", lambda self, values: (1 - weigh(self, values)[0], None))
    weights = dcem.CEM(40, 5).refit(distribution, samples, values)[1]
    assert torch.equal(weights, 1 - weigh(dcem.CEM(40, 5), values)[0])


# derivatives


def test_derivatives_of_a_solve_by_finite_differences(generator) -> None:
    noise = torch.randn(2, 30, 2, dtype=torch.float64, generator=generator)

    def answer(theta: Tensor) -> Tensor:
        return dcem.minimize(
            lambda x: (x - theta).square().sum(-1) + (3 * x[..., 0]).sin(), torch.zeros(2, dtype=torch.float64),
            dcem.CEM(30, 4, dcem.LML(0.4)), num_iterations=2, noise=noise,
        ).x  # fmt: skip

    theta = torch.tensor([0.3, -0.7], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(answer, theta, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(answer, theta, check_fwd_over_rev=True)
    jacobian = torch.autograd.functional.jacobian(answer, theta)
    for create_graph in (False, True):
        (gradient,) = torch.autograd.grad(answer(theta).sum(), theta, create_graph=create_graph)
        torch.testing.assert_close(gradient.detach(), jacobian.sum(0))
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(transform(answer)(theta.detach()), jacobian)
    hessians = [
        outer(inner(answer))(theta.detach())
        for outer, inner in itertools.product((torch.func.jacrev, torch.func.jacfwd), repeat=2)
    ]
    for hessian in hessians[1:]:
        torch.testing.assert_close(hessian, hessians[0])


def test_many_gradients_at_once(generator) -> None:
    """`is_grads_batched` hands over tensors without storage, which a kernel cannot read."""
    noise = torch.randn(2, 30, 2, dtype=torch.float64, generator=generator)
    theta = torch.tensor([0.3, -0.7], dtype=torch.float64, requires_grad=True)
    x = dcem.minimize(lambda x: (x - theta).pow(4).sum(-1), torch.zeros_like(theta), num_iterations=2,
                      solver=dcem.CEM(30, 4), noise=noise).x  # fmt: skip
    each = torch.stack([torch.autograd.grad(xi, theta, retain_graph=True)[0] for xi in x])
    (batched,) = torch.autograd.grad(x, theta, torch.eye(2, dtype=torch.float64), is_grads_batched=True)
    torch.testing.assert_close(batched, each)
    scores = torch.randn(5, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: dcem.lml(s, 2), scores, check_batched_grad=True)


def test_a_mapped_solve_is_the_batched_one(generator) -> None:
    noise = torch.randn(3, 4, 30, 2, generator=generator)
    theta = torch.randn(4, 2, generator=generator)

    def answer(theta: Tensor, noise: Tensor) -> Tensor:
        return dcem.minimize(lambda x: (x - theta.unsqueeze(-2)).square().sum(-1), torch.zeros_like(theta),
                             dcem.CEM(30, 4), num_iterations=3, noise=noise).x  # fmt: skip

    torch.testing.assert_close(torch.func.vmap(answer, in_dims=(0, 1))(theta, noise), answer(theta, noise))


# threads


@compiled
def test_any_number_of_threads_gives_the_same_bits() -> None:
    values, samples = torch.randn(700, 300), torch.randn(700, 300, 1)
    solver, distribution = dcem.CEM(300, 30), dcem.Gaussian(torch.zeros(700, 1), 1.0)
    before = torch.get_num_threads()
    results = []
    try:
        for num_threads in (1, 3, 100):
            torch.set_num_threads(num_threads)
            results.append((solver.refit(distribution, samples, values)[0], dcem.lml(values, 30)))
    finally:
        torch.set_num_threads(before)
    for fit, weights in results[1:]:
        assert torch.equal(fit.mean, results[0][0].mean)
        assert torch.equal(fit.std, results[0][0].std)
        assert torch.equal(weights, results[0][1])


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
def test_an_interrupt_leaves_nothing_running() -> None:
    """Outputs are freed when a signal raises: a thread that still wrote to them would end the process."""

    class Interrupt(Exception):
        pass

    def interrupt(*_):
        raise Interrupt

    def forever(delay: float):
        signal.setitimer(signal.ITIMER_REAL, delay)
        while True:
            dcem.lml(x, 30)

    x = torch.randn(2000, 300)
    before, threads = signal.signal(signal.SIGALRM, interrupt), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for count in range(20):
            with pytest.raises(Interrupt):
                forever(1e-4 * (1 + count))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        torch.set_num_threads(threads)
    torch.testing.assert_close(dcem.lml(x, 30).sum(-1), torch.full((2000,), 30.0))
