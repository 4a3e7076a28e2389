"""The projections' operators: the compiled kernels, the reference and the search with few passes, on hard rows."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from dcem.kernels import operators
from dcem.projections import dual
from dcem.projections.autograd import _pull, _reference
from dcem.projections.links import LINKS

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def rows(n: int, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, generator=generator, dtype=torch.float64)
    y = torch.randn(n, generator=generator, dtype=torch.float64)
    v_shaped = (torch.arange(n, dtype=torch.float64) - n / 2).abs()
    step = torch.full((n,), 100.0, dtype=torch.float64)
    step[n - n // 5 :] = torch.linspace(0, -6, n // 5, dtype=torch.float64)
    cases = {
        "normal": x, "offset": x + 1e6 + 0.3, "equal with an offset": 0 * x + 1e6 + 0.3, "ties": (2 * x).round(),
        "nearly tied": 1e5 + 1e-2 * x.round(), "cauchy": x / y, "cauchy cubed": (x / y) ** 3, "signed": x.sign() * y.exp() ** 4,
        "tail below": -(x**4), "tail above": (3 * x).exp(), "clusters": (3 * x).round() * 5 + 1e-2 * y, "huge": x * 1e30,
        "small": x * 1e-30, "v": -v_shaped, "v upside down": v_shaped, "sorted": x.sort(-1).values, "a step": step,
        "masked": torch.where(torch.arange(n) % 3 == 1, -math.inf, x),
    }  # fmt: skip
    return {name: row.to(dtype) for name, row in cases.items()}


def batch(n: int, k: float, dtype: torch.dtype) -> tuple[list[str], Tensor]:
    """All rows that hold at least ``k`` finite scores."""
    cases = {name: row for name, row in rows(n, dtype).items() if k <= int(row.isfinite().sum())}
    return list(cases), torch.stack(list(cases.values()))


def shares(n: int) -> list[float]:
    return [k for k in (1e-6, 0.5, 1.0, 0.1 * n, 0.3 * n + 0.37, n - 1.0, n - 1e-3) if 0 < k < n]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("link", LINKS)
def test_weights_sum_to_k_by_every_way_there_is(link: str, dtype: torch.dtype) -> None:
    """The kernel where there is one, the reference, and the search that may not ask whether it has arrived."""
    temperatures = (1e-4, 0.1, 1.0, 1e3)
    for n in (3, 101):
        for k in shares(n):
            names, x = batch(n, k, dtype)
            taus = torch.tensor(temperatures, dtype=dtype)[:, None, None].expand(-1, len(names), 1)
            every = x.expand(len(temperatures), -1, -1)
            center, nu = dual.thorough(every, taus, k, LINKS[link], passes=dual.DEVICE_PASSES)
            found = {
                "operator": torch.stack([operators.project(x, None, tau, k, link)[0] for tau in temperatures]),
                "operator, tensor": operators.project(every, taus, 1.0, k, link)[0],
                "reference": torch.stack([_reference(x, None, tau, k, link)[0] for tau in temperatures]),
                "reference, tensor": _reference(every, taus, 1.0, k, link)[0],
                "few passes": LINKS[link].value(dual.scale(every, center, taus) + nu),
            }
            for way, w in found.items():
                wrong = (((w.double().sum(-1) - k).abs() / k) <= TOLERANCE[dtype]).logical_not().nonzero().tolist()
                assert not wrong, (way, [(temperatures[i], names[j]) for i, j in wrong], n, k)
                assert ((w >= 0) & (w <= 1)).all()
                assert (w[every == -math.inf] == 0).all()


def levels(n: int) -> Tensor:
    """Rows in which most weights are equal and small, so that what they are rounded by adds up."""
    x = torch.zeros(5, n)
    x[0, : n // 2], x[1, : n // 2], x[2, 0], x[3] = 2.0, 3.3, 0.37, torch.linspace(0, 1, n)
    x[4] = 1e3 + torch.arange(n) % 3
    return x


@pytest.mark.parametrize("link", LINKS)
def test_many_small_weights_sum_to_k(link: str) -> None:
    """In single precision 50,000 weights of 2e-5 summed to 1.001, where the centre was the mean of the scores."""
    for n, k in itertools.product((1000, 100_000), (0.5, 1.0, 3.0, 100.0)):
        x = levels(n)
        ks, tau = torch.full_like(x[:, :1], k), torch.ones_like(x[:, :1])
        center, nu = dual.thorough(x, 1.0, ks, LINKS[link], passes=dual.DEVICE_PASSES)
        found = {
            "operator": operators.project(x, None, 1.0, k, link)[0],
            "operator, tensor": operators.project(x, tau, 1.0, k, link)[0],
            "reference": _reference(x, None, 1.0, k, link)[0],
            "tensor k, few passes": LINKS[link].value(dual.scale(x, center, 1.0) + nu),
        }
        for way, w in found.items():
            error = (w.double().sum(-1) - k).abs() / k
            assert (error <= 4e-6).all(), (way, n, k, error)
            assert not (w > 0)[x < x.amax(-1, keepdim=True) - 1].any() or link != "clip"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("link", LINKS)
def test_kernel_and_reference_agree(link: str, dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    for n, tau in itertools.product((2, 37, 300), (1e-2, 1.0, 30.0)):
        for k in shares(n):
            names, x = batch(n, k, dtype)
            w, nu, center = operators.project(x, None, tau, k, link)
            other = _reference(x, None, tau, k, link)[0]
            # the sum is known up to its rounding, and z up to that of scores far from the centre
            error = (w - other).abs().amax(-1) / (eps * (200 + 8 * k))
            assert not [name for name, e in zip(names, error.tolist(), strict=True) if not e <= 1], (n, k, tau)
            upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
            ours = operators.project_backward(x, None, tau, nu, center, upstream, nu, link)
            theirs = _pull(x, None, tau, nu, center, upstream, nu, link)  # the formula at the same point
            z = (x - center) / tau + nu
            smooth = torch.minimum(z.abs(), (z - 1).abs()).amin(-1) > 1e-4  # at a kink, rounding decides
            if link == "sigmoid":
                smooth = torch.ones_like(smooth)
            for our, their in zip(ours, theirs, strict=True):
                assert our.isfinite().all()
                our, their = torch.where(smooth[:, None], our, 0.0), torch.where(smooth[:, None], their, 0.0)
                error = (our - their).abs().amax(-1) / (1e3 * eps * their.abs().amax(-1).clamp(min=1))
                assert not [name for name, e in zip(names, error.tolist(), strict=True) if not e <= 1], (n, k, tau)


@pytest.mark.parametrize("link", LINKS)
def test_a_hundred_thousand_scores(link: str) -> None:
    for k in (0.5, 10_000.37):
        names, x = batch(100_000, k, torch.float32)
        w, nu, center = operators.project(x, None, 0.1, k, link)
        error = ((w.double().sum(-1) - k).abs() / k).tolist()
        assert not [name for name, e in zip(names, error, strict=True) if not e <= 1e-5], k
        assert operators.project_backward(x, None, 0.1, nu, center, w, None, link)[0].isfinite().all(), k


def test_rows_without_an_answer_are_nan_alone() -> None:
    inf, nan = math.inf, math.nan
    x = torch.tensor([[1.0, -inf, 2.0], [1.0, -inf, -inf], [1.0, nan, 2.0], [inf, 0.0, 0.0], [3.0, 2.0, 1.0]])
    for link in LINKS:
        tau = torch.tensor([[1.0], [1.0], [1.0], [1.0], [nan]])
        for w in (operators.project(x, tau, 1.0, 2.0, link)[0], _reference(x, tau, 1.0, 2.0, link)[0]):
            torch.testing.assert_close(w[0], torch.tensor([1.0, 0.0, 1.0]))
            assert w[1:].isnan().all()
        w, nu, c = operators.project(x, tau, 1.0, 2.0, link)
        for pull in (operators.project_backward, _pull):
            grad_x, grad_tau = pull(x, tau, 1.0, nu, c, w, nu, link)
            assert (grad_x[1:] == 0).all()
            assert (grad_tau[1:] == 0).all()


def test_devices_without_a_kernel_are_traced_into_single_operations() -> None:
    """A compiler may fuse them there; and nothing in them looks at a value, which the meta device has not."""
    from torch.fx.experimental.proxy_tensor import make_fx

    def gradient(x: Tensor) -> Tensor:
        return torch.func.grad(lambda x: operators.project(x, None, 1.0, 2.0, "sigmoid")[0].square().sum())(x)

    for device, single in (("meta", True), ("cpu", False)):
        x = torch.empty(3, 7, device=device)
        for function in (lambda x: operators.project(x, None, 1.0, 2.0, "sigmoid")[0], gradient):
            nodes = [str(node.target) for node in make_fx(function)(x).graph.nodes]
            assert single != any("dcem" in node for node in nodes)


@pytest.mark.cpu
def test_operators_read_no_more_than_there_is() -> None:
    x = torch.randn(3, 7)
    if not operators.compiled_kernels(operators.project):
        pytest.skip("no compiled kernels")
    for wrong in (torch.ones(2, 1), torch.ones(3, 1, dtype=torch.float64)):
        with pytest.raises(ValueError, match="expected 3 numbers of torch.float32"):
            operators.project(x, wrong, 1.0, 2.0, "sigmoid")
    with pytest.raises(TypeError, match="expected float32 or float64, got torch.float16"):
        operators.project(x.half(), None, 1.0, 2.0, "sigmoid")
