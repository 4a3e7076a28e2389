"""The Triton kernels in Triton's interpreter, against the reference. Run by `test_gpu_kernels.py` with TRITON_INTERPRET=1."""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from test_projection import levels, rows

from dcem._tree import map_tensors
from dcem.kernels import gpu, gpu_recurrent, gpu_refit
from dcem.projections.autograd import _pull, _reference
from dcem.solvers import refit
from dcem.world import RSSM, RSSMBelief, fused
from dcem.world.rssm import _imagine_at_once

NAMES = ("normal", "ties", "cauchy cubed", "equal with an offset", "huge", "masked")
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


@pytest.mark.filterwarnings("ignore")  # NumPy's, of infinities that are not selected
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("link", "n", "k", "tau"), [("sigmoid", 10, 3.0, 1.0), ("capped_exponential", 13, 4.4, 0.1), ("clip", 8, 7.0, 1e-3)]
)
def test_weights_and_gradients(link: str, dtype: torch.dtype, n: int, k: float, tau: float) -> None:
    """Ties, huge scores, masks, heavy tails; no power of two."""
    chosen = {name: row for name, row in rows(n, dtype).items() if name in NAMES and row.isfinite().sum() >= k}
    names, x = list(chosen), torch.stack(list(chosen.values()))
    taus = torch.full_like(x[:, :1], tau)
    w, nu, c = gpu.project(x, taus, 1.0, k, link)
    assert torch.equal(w[:1], gpu.project(x[:1], None, tau, k, link)[0])
    error = (w.double().sum(-1) - k).abs() / k
    assert (error <= TOLERANCE[dtype]).all(), dict(zip(names, error.tolist(), strict=True))
    expected = _reference(x, taus, 1.0, k, link)[0]
    torch.testing.assert_close(w, expected, rtol=0, atol=1e3 * torch.finfo(dtype).eps)
    g_w = torch.randn(x.shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    g_nu = torch.randn(nu.shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    for given in ((g_w, None), (g_w, g_nu), (None, g_nu)):
        found = gpu.project_backward(x, taus, 1.0, nu, c, *given, link)
        for one, other in zip(found, _pull(x, taus, 1.0, nu, c, *given, link), strict=True):
            size = other.abs().amax(-1, keepdim=True).clamp(min=1e-30)
            torch.testing.assert_close(one / size, other / size, rtol=0, atol=2e3 * torch.finfo(dtype).eps)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("block", [256, 16384])
def test_many_small_weights_sum_to_k(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(gpu, "LARGEST_BLOCK", block)
    x = levels(1000)
    for k in (0.05, 1.0):
        w, nu, c = gpu.project(x, None, 1.0, k, "clip")
        assert ((w.double().sum(-1) - k).abs() <= 4e-6 * k).all()
        torch.testing.assert_close(w, _reference(x, None, 1.0, k, "clip")[0], rtol=1e-5, atol=1e-8)
        g = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        found = gpu.project_backward(x, None, 1.0, nu, c, g, None, "clip")[0]
        torch.testing.assert_close(found, _pull(x, None, 1.0, nu, c, g, None, "clip")[0], rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_rows_longer_than_a_block_and_rows_without_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "LARGEST_BLOCK", 16)
    x = torch.randn(2, 45, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[1] *= 1e4
    w, nu, c = gpu.project(x, None, 0.5, 7, "sigmoid")
    torch.testing.assert_close(w, _reference(x, None, 0.5, 7, "sigmoid")[0])
    g = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        gpu.project_backward(x, None, 0.5, nu, c, g, None, "sigmoid")[0],
        _pull(x, None, 0.5, nu, c, g, None, "sigmoid")[0],
    )
    bad = torch.tensor([[1.0, math.nan, 2.0], [1.0, math.inf, 2.0], [1.0, -math.inf, -math.inf], [3.0, 1.0, -math.inf]])
    w, nu, c = gpu.project(bad, None, 1.0, 2, "sigmoid")
    assert w[:3].isnan().all()
    for grad in gpu.project_backward(bad, None, 1.0, nu, c, w, nu, "sigmoid"):
        assert (grad[:3] == 0).all()
    torch.testing.assert_close(w[3], torch.tensor([1.0, 1.0, 0.0]))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("standardize", "event", "limits"), [(True, (3,), (1e-6, math.inf)), (False, (2, 2), (0.2, 0.9))]
)
def test_the_refit(monkeypatch, dtype, standardize: bool, event: tuple[int, ...], limits: tuple[float, float]) -> None:
    """Failed samples, a row without enough of them, equal values, huge ones, subnormal ones; samples of more than one tile."""
    monkeypatch.setattr(gpu_refit, "TILE", 16)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(7, 13, generator=generator, dtype=dtype)
    values[1, ::4], values[2, 2:] = math.nan, math.inf
    values[3], values[4] = 2.0, 1e30 * values[4] if standardize else values[4] + 1e3
    values[6] *= torch.finfo(dtype).tiny / 8
    samples = 3 + 0.1 * torch.randn(7, 13, *event, generator=generator, dtype=dtype)
    options = (4.5, 0.3, standardize, *limits)
    weights, mean, std, valid, kept = gpu_refit.refit(values, samples, *options)
    expected = refit._composite(values, samples, *options)
    assert torch.equal(valid, expected[3])
    eps = torch.finfo(dtype).eps
    for one, other in zip((weights, mean, std), expected[:3], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e3 * eps)
    grads = [torch.randn(x.shape, generator=generator, dtype=dtype) for x in (weights, mean, std)]
    for chosen in ((0, 1, 2), (1,), (2,)):
        given = [g if i in chosen else None for i, g in enumerate(grads)]
        found = gpu_refit.refit_backward(values, samples, *options, weights, std, kept, *given)
        for one, other in zip(found, refit._pull(values, samples, *options, weights, std, kept, *given), strict=True):
            size = other.flatten(1).abs().amax(-1).clamp(min=1e-30).reshape(-1, *(1,) * (other.dim() - 1))
            torch.testing.assert_close(one / size, other / size, rtol=0, atol=5e4 * eps)


@pytest.mark.parametrize("shapes", ["FEW", "MANY"])
@pytest.mark.parametrize(("h", "s", "widths"), [(16, 4, (16, 16)), (40, 9, (24, 24)), (200, 30, (130, 70))])
def test_what_an_rssm_imagines(
    h: int, s: int, widths: tuple[int, int], shapes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes below, at and beyond a block, rows that fill no block, more than one batch axis, more than one step."""
    torch.manual_seed(0)
    model = RSSM(5, 3, deterministic_size=h, stochastic_size=s, hidden_sizes=widths).requires_grad_(False)
    belief, actions = RSSMBelief(torch.randn(3, 13, h).tanh(), torch.randn(3, 13, s)), torch.rand(2, 3, 13, 3) * 2 - 1
    expected = list(itertools.accumulate(actions, model.imagine, initial=belief))
    monkeypatch.setattr(gpu_recurrent, "LARGEST_FEW", 1000 if shapes == "FEW" else 0)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float16, 5e-3)):
        with kernels(monkeypatch, dtype) as asked:
            found = _imagine_at_once(model, *converted(dtype, (belief, actions)))
            assert found is not None
        assert asked == ["recurrent_rollout"]
        for one, other in zip(found, map(torch.stack, zip(*expected, strict=True)), strict=True):
            assert one.dtype == dtype
            torch.testing.assert_close(one.float(), other, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("h", "s", "widths"), [(16, 4, (16, 16)), (40, 9, (24, 30)), (200, 30, (130, 300))])
def test_the_number_that_a_network_makes_of_a_belief(
    h: int, s: int, widths: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a reward, and of the end of an episode, which knows no action."""
    torch.manual_seed(0)
    model = RSSM(5, 3, deterministic_size=h, stochastic_size=s, hidden_sizes=widths).requires_grad_(False)
    belief, action = RSSMBelief(torch.randn(3, 13, h).tanh(), torch.randn(3, 13, s)), torch.rand(3, 13, 3) * 2 - 1
    expected = model.cost(belief, action), model.continues(belief)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float16, 5e-3)):
        with kernels(monkeypatch, dtype) as asked:
            belief_of, action_of = converted(dtype, (belief, action))
            found = model.cost(belief_of, action_of), model.continues(belief_of)
        assert asked == ["perceptron"] * 2
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == dtype
            torch.testing.assert_close(one.float(), other, rtol=0, atol=tolerance)


@contextlib.contextmanager
def kernels(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> Iterator[list[str]]:
    """The kernels of an RSSM, in the interpreter, where products may be of this dtype; which were asked for."""
    asked: list[str] = []

    def noted(name: str) -> Callable[..., Any]:
        def kernel(*given: Any) -> Any:
            asked.append(name)
            return getattr(gpu_recurrent, name)(*given)

        return kernel

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(fused, "_has_room", lambda device: True)
        patch.setattr(fused, "_allows_tf32", lambda: True)
        patch.setattr(fused.operators, "has_kernel", lambda name, device_type: True)
        for name in ("recurrent_rollout", "perceptron"):
            patch.setattr(fused.operators, name, noted(name))
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            yield asked


def converted(dtype: torch.dtype, tree: Any) -> Any:
    return map_tensors(lambda x: x.to(dtype), tree)


@pytest.mark.parametrize("where", ["deterministic", "stochastic", "action", "weight"])
def test_what_is_not_a_number_stays_so(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind an activation, too: a model that diverged, or a candidate that failed, is to be seen."""
    torch.manual_seed(0)
    model = RSSM(5, 3, deterministic_size=16, stochastic_size=4, hidden_sizes=(16, 16)).requires_grad_(False)
    states = {"deterministic": torch.zeros(2, 16), "stochastic": torch.zeros(2, 4), "action": torch.zeros(2, 3)}
    for bad in (model.prior_net[0].weight, model.reward_net[0].weight) if where == "weight" else (states[where],):
        bad[1] = math.nan
    *states_of, action = states.values()
    belief = RSSMBelief(*states_of)
    expected = (*model.imagine(belief, action), model.cost(belief, action))
    with kernels(monkeypatch, torch.float32) as asked:
        found = (*model.imagine(belief, action), model.cost(belief, action))
    assert asked == ["recurrent_rollout", "perceptron"]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.isnan(), other.isnan())
