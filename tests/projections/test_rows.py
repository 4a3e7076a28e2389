"""A `k` a row, and the temperature that makes a wanted number of scores share the weight."""

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import dcem
from dcem import projections as p

SOFT = [
    (p.lml, p.LML),
    (p.constrained_softmax, p.ConstrainedSoftmax),
    (p.constrained_sparsemax, p.ConstrainedSparsemax),
]
soft = pytest.mark.parametrize(("projection", "module"), SOFT)


def scores(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def cases(n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows of every kind, each with several ``k``."""
    easy = scores(6, n, dtype=dtype)
    rows = torch.stack([easy[0], easy[1] * 1e4, easy[2] * 1e-3 + 100, easy[3].round(), easy[4] * 1e20, 0 * easy[5]])
    masked = easy[0].clone()
    masked[n - n // 3 :] = -math.inf
    rows = torch.cat([rows, masked[None]])
    ks = torch.tensor([1, 0.3, n // 3 + 0.5, n - n // 3, n - 0.25, n], dtype=dtype)
    x = rows.repeat_interleave(len(ks), 0)
    k = ks.repeat(len(rows))
    fits = k <= x.isfinite().sum(-1)
    return x[fits], k[fits]


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@soft
def test_a_k_a_row_is_each_row_by_itself(projection, module, dtype):
    """A loop over rows with numbers (the kernel), all rows at once, and by the passes of a device that may not ask."""
    for n in (2, 25):
        x, k = cases(n, dtype)
        for tau in (1.0, 0.05):
            taus = torch.full_like(k, tau)
            target = scores(len(x), n, dtype=dtype, seed=1)
            leaf, each = x.clone().requires_grad_(), taus.clone().requires_grad_()
            together = projection(leaf, k, temperature=each)
            slopes = torch.autograd.grad((together * target).sum(), (leaf, each))
            alone, grads = [], []
            for row, number, t in zip(x, k.tolist(), target, strict=True):
                row, temperature = row.clone().requires_grad_(), torch.tensor(tau, dtype=dtype, requires_grad=True)
                w = projection(row, number, temperature=temperature)
                grads.append(torch.autograd.grad((w * t).sum(), (row, temperature)))
                alone.append(w.detach())
            tolerance = 2e-5 if dtype == torch.float32 else 1e-11
            torch.testing.assert_close(together.detach(), torch.stack(alone), rtol=0, atol=tolerance)
            # Where rounding decides whether a weight is held at 0, the derivative, which jumps there, may be either one.
            same = (_free(together) == _free(torch.stack(alone))).all(-1) | torch.tensor(
                projection is not p.constrained_sparsemax
            )
            assert same.double().mean() > 0.9
            for got, expected in zip(slopes, zip(*grads, strict=True), strict=True):
                wanted = torch.stack(expected)
                allowed = 20 * tolerance * float(wanted.abs().max() + 1)
                torch.testing.assert_close(got[same], wanted[same].view_as(got[same]), rtol=0, atol=allowed)
            assert ((together.double().sum(-1) - k).abs() <= (1e-5 if dtype == torch.float32 else 1e-10) * k).all()
            mapped = torch.func.vmap(lambda row, k: projection(row, k, temperature=tau))(x, k)  # noqa: B023
            torch.testing.assert_close(mapped, together.detach(), rtol=0, atol=5 * tolerance)
            keep = torch.arange(len(x)) % 3 == 0
            others, other_k = torch.where(keep[:, None], x, 1e3 * x[:1].sin()), torch.where(keep, k, 1.0)
            assert torch.equal(projection(others, other_k, temperature=tau)[keep], together[keep])


def _free(weights):
    return (weights > 0) & (weights < 1)


@soft
def test_derivatives_of_a_k_a_row(projection, module):
    x = scores(2, 4, seed=3).requires_grad_()
    tau = torch.tensor([0.4, 1.5], dtype=x.dtype, requires_grad=True)
    k = torch.tensor([1.3, 2.6], dtype=x.dtype, requires_grad=True)

    def f(x: Tensor, tau: Tensor, k: Tensor) -> Tensor:
        return projection(x, k, temperature=tau)

    assert gradcheck(f, (x, tau, k), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(f, (x, tau, k), fast_mode=True)
    assert torch.autograd.grad(projection(x, k).sum(), k)[0].sub(1).abs().max() < 1e-12  # the weights sum to k


@soft
def test_shapes_and_dtypes_of_k(projection, module):
    x = scores(2, 3, 7)
    k = torch.tensor([1, 3, 7])
    expected = torch.stack([projection(x[:, i], int(k[i])) for i in range(3)], 1)
    for given in (k, k.expand(2, 3), k.double().reshape(1, 3, 1)):
        torch.testing.assert_close(projection(x, given), expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(module()(x, given), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(projection(x.mT, k, dim=1), expected.mT, rtol=0, atol=1e-12)
    torch.testing.assert_close(projection(x, torch.tensor(2.5)), projection(x, 2.5), rtol=0, atol=1e-12)
    half = projection(x.bfloat16(), k)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half, projection(x.bfloat16().float(), k).bfloat16())


@pytest.mark.cpu
def test_hard_selections_of_a_k_a_row():
    x = scores(5, 9).round()
    k = torch.tensor([1, 4, 9, 2, 5])
    expected = torch.stack([p.hard_topk(row, int(number)) for row, number in zip(x, k, strict=True)])
    assert torch.equal(p.hard_topk(x, k), expected)
    assert torch.equal(p.HardTopK()(x.mT, k, dim=0), expected.mT)
    assert torch.equal(p.hard_topk(x, torch.tensor(3)), p.hard_topk(x, 3))
    x[0, 0], x[1] = math.nan, -math.inf
    assert p.hard_topk(x, k).isnan().all(-1).tolist() == [True, True, False, False, False]
    with pytest.raises(TypeError, match=r"k: expected an int, or a Tensor of such, got dtype torch\.float32"):
        p.hard_topk(x, torch.ones(5))
    with pytest.raises(ValueError, match="k: expected numbers with 0 < k <= 9"):
        p.hard_topk(x, k + 1)


def effective_of(w: Tensor) -> Tensor:
    return w.sum(-1).square() / w.square().sum(-1)


@soft
def test_effective_is_the_temperature_that_a_bisection_finds(projection, module):
    x = torch.cat([scores(4, 30), 1e4 * scores(2, 30, seed=1) - 7e4, 1e-6 * scores(1, 30, seed=2)])
    for k, wanted in ((3, 3.5), (3, 20.0), (7.5, 8.5), (1, 29.9)):
        low, high = x.std(-1) * 1e-4, x.std(-1) * 1e4
        for _ in range(60):  # 1e8 / 2 ** 60 is below the rounding of float64
            middle = (low * high).sqrt()
            below = effective_of(projection(x, k, temperature=middle)) < wanted
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        w = module(effective=wanted)(x, k)
        torch.testing.assert_close(effective_of(w), torch.full_like(w[:, 0], wanted), rtol=1e-9, atol=0)
        torch.testing.assert_close(w, projection(x, k, temperature=low), rtol=0, atol=1e-6)
        single = module(effective=wanted)(x.float(), k)
        torch.testing.assert_close(effective_of(single), torch.full_like(single[:, 0], wanted), rtol=1e-3, atol=0)
        alone = torch.cat([module(effective=wanted)(row[None], k) for row in x])
        torch.testing.assert_close(alone, w, rtol=1e-10, atol=1e-14)


@soft
def test_effective_that_is_no_number_has_no_answer_and_one_without_bound_is_uniform(projection, module):
    x = scores(3, 9)
    w = module(effective=torch.tensor([math.nan, -1.0, math.inf]))(x, 2)
    assert w[:2].isnan().all()
    torch.testing.assert_close(w[2], torch.full_like(x[2], 2 / 9), rtol=1e-4, atol=0)


@pytest.mark.parametrize(("n", "k", "wanted"), [(11, 2.5, 4.5), (13, 3.0, 4.0), (20, 3.0, 5.0), (8, 3.0, 3.05)])
def test_effective_is_reached_by_every_row_in_batches_and_transforms(n, k, wanted):
    """Of a few rows in a thousand Newton's steps creep along one side of the bracket."""
    x = torch.randn(2000, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n - 11))
    for module in (dcem.LML, dcem.ConstrainedSoftmax):
        selection = module(effective=wanted)
        for w in (selection(x, k), torch.func.vmap(lambda row, of=selection: of(row, k))(x)):
            torch.testing.assert_close(effective_of(w), torch.full_like(w[:, 0], wanted), rtol=1e-6, atol=0)


@soft
def test_effective_near_all_scores_is_as_exact_in_single_precision(projection, module):
    """Where all weigh nearly the same, `sum w^2` has lost the digits in which they differ; also of those not masked."""
    scale = torch.tensor([[1.0], [1e-20], [1e25]])
    x = (scores(3, 10, seed=1).float() - 5.0) * scale
    x = torch.cat([x, x.new_full((3, 2), -math.inf)], -1)
    for short in (1e-1, 1e-3, 1e-4, 1e-5, 0.0):
        wanted = torch.tensor([10.0 - short])
        gradients, weights = [], []
        for dtype in (torch.float32, torch.float64):
            leaf = x.to(dtype).requires_grad_()
            w = module(effective=wanted)(leaf, 4)
            weights.append(w.detach().double())
            (gradient,) = torch.autograd.grad((w * torch.arange(12)).sum(), leaf)
            gradients.append(gradient.double() * scale)
        away = (weights[1] - 0.4)[:, :10].abs().max()
        torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=1e-3 * away.item() + 1e-6)
        slopes = gradients[1][:, :10].abs().max().item()
        torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=2e-3 * slopes)
    assert away < 1e-5


@soft
def test_effective_is_differentiable(projection, module):
    x = scores(1, 4, seed=5).requires_grad_()
    wanted = torch.tensor([3.1], dtype=x.dtype, requires_grad=True)
    k = torch.tensor([1.7], dtype=x.dtype, requires_grad=True)

    def f(x: Tensor, wanted: Tensor, k: Tensor) -> Tensor:
        return module(effective=wanted)(x, k)

    assert gradcheck(f, (x, wanted, k), check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(lambda x: f(x, wanted.detach(), k.detach()), x, atol=1e-4, fast_mode=True)
    assert gradcheck(lambda x: module(effective=3)(x, 2), x, fast_mode=True)
    torch.testing.assert_close(
        torch.func.vmap(lambda x, m: module(effective=m)(x, 2.0))(x.detach(), wanted.detach()),
        module(effective=wanted)(x, 2.0),
    )


@soft
def test_effective_comes_as_close_as_ties_and_masks_let_it(projection, module):
    x = torch.stack([scores(8), torch.zeros(8, dtype=torch.float64), scores(8).round(), scores(8, seed=4)])
    x[2, :5] = 3.0
    x[3, 4:] = -math.inf
    leaf = x.clone().requires_grad_()
    w = module(effective=6)(leaf, 2)
    assert effective_of(w)[0].item() == pytest.approx(6)
    torch.testing.assert_close(w[1], torch.full_like(w[1], 0.25))
    assert effective_of(w)[3] <= 4 + 1e-6
    assert module(effective=2.5)(x, 2)[2, :5].unique().numel() == 1
    torch.testing.assert_close(w.sum(-1), torch.full_like(w[:, 0], 2.0))
    (gradient,) = torch.autograd.grad((w * scores(4, 8, seed=1)).sum(), leaf)
    assert gradient.isfinite().all()
    invalid = torch.where(torch.arange(4)[:, None] == 0, math.nan, x)
    assert module(effective=6)(invalid, 2).isnan().all(-1).tolist() == [True, False, False, False]
    assert torch.equal(module(effective=6)(invalid, 2)[1:], w[1:].detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@soft
def test_effective_of_ties_does_not_amplify_rounding(projection, module, dtype):
    """What ties leave out of reach, or just within: the temperature is of the size of the next gap, for it divides."""
    x = torch.tensor([1.0, 1.0, 1.0, 0.5, 0.2, 0.1], dtype=dtype)
    eps = torch.finfo(dtype).eps
    for wanted in (2.5, 2.999, 3.0, 3 + eps, 3.001):  # of three ties; 2.999 is closer to 3 than Newton's steps begin
        for tail in (x[3:], x[3:] - math.inf):
            leaf = torch.cat([x[:3], tail]).requires_grad_()
            effective = torch.tensor(wanted, dtype=dtype, requires_grad=True)
            w = module(effective=effective)(leaf, 2)
            assert effective_of(w).item() == pytest.approx(
                3.001 if wanted > 3 + eps and tail.isfinite().all() else 3, rel=3e-5
            )
            slopes = torch.autograd.grad((w * scores(6, dtype=dtype, seed=2)).sum(), (leaf, effective))
            assert all(slope.abs().max() < 30 for slope in slopes)


@soft
def test_effective_of_scores_that_say_nothing_has_no_gradient(projection, module):
    """All tied, or closer than any temperature that there is."""
    for x in (torch.zeros(4), torch.full((4,), 3e8), torch.tensor([1e-40, 0, 0, -1e-40])):
        leaf = x.requires_grad_()
        w = module(effective=3)(leaf, 2)
        torch.testing.assert_close(w, torch.full((4,), 0.5))
        assert torch.autograd.grad((w * scores(4, dtype=torch.float32)).sum(), leaf)[0].abs().max() < 1e-15


@soft
def test_solvers_select_as_many_as_wanted(projection, module, generator):
    solution = dcem.minimize(
        lambda x: 100 * (x - 1).square().sum(-1) + x.sin().sum(-1), torch.zeros(2, 3),
        dcem.CEM(60, 6, module(effective=15)), num_iterations=5, generator=generator, record=True,
    )  # fmt: skip
    for iteration in solution.history:
        torch.testing.assert_close(iteration.effective_elites, torch.full((2,), 15.0), rtol=1e-3, atol=0)


def test_mistakes_of_effective():
    with pytest.raises(ValueError, match="effective: expected None where a temperature is given"):
        p.LML(0.5, effective=4)
    for wrong in (0, -1.0, math.inf):
        with pytest.raises(ValueError, match="effective: expected"):
            p.LML(effective=wrong)
    with pytest.raises(TypeError, match="effective: expected a number"):
        p.LML(effective="4")
    for wrong in (2, 9):
        with pytest.raises(ValueError, match="effective: expected a number with k < effective <= 8, for k = 2"):
            p.LML(effective=wrong)(scores(8), 2)
    assert repr(p.LML(effective=4)) == "LML(effective=4)"
    learned = p.LML(effective=torch.nn.Parameter(torch.tensor(4.0)))
    assert [name for name, _ in learned.named_parameters()] == ["effective"]
    assert repr(learned) == "LML(effective=4 (learned))"
    learned(scores(3, 8), 2).square().sum().backward()
    assert learned.effective.grad.abs() > 0
