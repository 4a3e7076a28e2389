"""What every soft projection has to do: inherit `SoftProjectionContract`, set `projection` and `module`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
SIZES = [(1, 0.5), (2, 1), (10, 0.3), (10, 3), (10, 9.9999999), (100, 50.5), (1000, 100), (3000, 2999)]
TEMPERATURES = [1e-6, 1e-2, 0.1, 1.0, 1e2, 1e6]


def hard_scores(n: int, k: float, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    base = torch.randn(3, n, generator=torch.Generator().manual_seed(n)).to(dtype)
    masked = base.clone()
    masked[:, math.ceil(k) :] = -math.inf
    yield "normal", base
    yield "ties", base.round()
    yield "equal", torch.zeros_like(base)
    yield "wide", base * 1e4
    yield "huge", base * 1e30
    yield "gap", base + 1e4 * base.sign()
    yield "tail below", -(base**4)
    yield "tail above", base.exp() * 50
    yield "clusters", base.round() * 20 + base * 1e-3
    yield "far from zero", base + 1e5
    yield "only ceil(k) finite", masked


class SoftProjectionContract:
    projection: staticmethod[..., Tensor]
    module: type[torch.nn.Module]
    backend: str | None = None  # that `test_compile` insists on

    def scores(self, *shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)

    # values

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize(("n", "k"), SIZES)
    def test_sum_range_and_finite_gradients(self, n: int, k: float, dtype: torch.dtype) -> None:
        names, rows = zip(*hard_scores(n, k, dtype), strict=True)
        x = torch.stack(rows).requires_grad_()
        upstream = self.scores(3, n, dtype=dtype)
        for temperature in TEMPERATURES:
            tau = torch.tensor(temperature, dtype=dtype, requires_grad=True)
            w = self.projection(x, k, temperature=tau)
            gradients = torch.autograd.grad((w * upstream).sum(), (x, tau))
            masked = x == -math.inf
            right = (
                ((w.double().sum(-1) - k).abs() <= TOLERANCE[dtype] * k).all(-1)
                & ((w >= 0) & (w <= 1)).all((-2, -1))
                & ((w == 0) | ~masked).all((-2, -1))
                & gradients[0].isfinite().all((-2, -1))
                & ((gradients[0] == 0) | ~masked).all((-2, -1))
            )
            wrong = [name for name, is_right in zip(names, right.tolist(), strict=True) if not is_right]
            assert not wrong, (temperature, wrong)
            assert gradients[1].isfinite(), temperature

    @pytest.mark.parametrize("temperature", [0.01, 0.3, 1.0, 10.0])
    def test_a_number_and_a_tensor_temperature_agree(self, temperature: float) -> None:
        x = self.scores(4, 50)
        x[0, :3] = -math.inf
        number = self.projection(x, 7, temperature=temperature)
        tensor = self.projection(x, 7, temperature=torch.tensor(temperature))
        torch.testing.assert_close(number, tensor, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(number, self.projection(x / temperature, 7), rtol=1e-9, atol=1e-12)

    def test_monotone_in_the_scores(self) -> None:
        for temperature in (0.01, 1.0, 100.0):
            x = self.scores(5, 200, dtype=torch.float32).sort(-1).values
            assert (self.projection(x, 20, temperature=temperature).diff(dim=-1) >= 0).all()

    def test_equal_scores_get_equal_weights(self) -> None:
        x = self.scores(1, 40).round()
        w = self.projection(x, 7.5, temperature=0.2)
        for value in x.unique():
            assert w[x == value].unique().numel() == 1
        torch.testing.assert_close(self.projection(x * 0, 8), torch.full_like(x, 0.2))

    def test_shift_invariance(self) -> None:
        x = self.scores(4, 30)
        torch.testing.assert_close(self.projection(x + 1000, 5), self.projection(x, 5), rtol=1e-9, atol=1e-12)

    def test_permutation_equivariance(self) -> None:
        x = self.scores(4, 30)
        order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(self.projection(x[:, order], 5), self.projection(x, 5)[:, order])

    def test_k_equal_n_is_all_ones_without_gradient(self) -> None:
        x = self.scores(2, 4).requires_grad_()
        tau = torch.ones((), dtype=x.dtype, requires_grad=True)
        w = self.projection(x, 4, temperature=tau)
        assert (w == 1).all()
        assert all((g == 0).all() for g in torch.autograd.grad(w.square().sum(), (x, tau)))
        assert self.projection(x[:, :1], 1).eq(1).all()

    def test_low_temperature_is_the_hard_selection(self) -> None:
        from dcem.projections import hard_topk

        x = self.scores(20, 50)
        for k in (1, 7, 49, 50):
            w = self.projection(x, k, temperature=1e-9)
            torch.testing.assert_close(w, hard_topk(x, k), rtol=0, atol=1e-12)

    # rows and shapes

    def test_a_row_does_not_depend_on_its_batch_mates(self) -> None:
        easy = self.scores(40, 1000, dtype=torch.float32)
        mates = [
            easy.flip(0),
            easy * 1e4,
            easy * 1e30,
            torch.full_like(easy, math.nan),
            torch.full_like(easy, -math.inf),
            easy.round(),
        ]
        keep = torch.arange(40) % 3 == 0
        for row in (easy, easy * 300, easy.round()):
            expected = self.gradient_and_weights(row)
            for mate in mates:
                got = self.gradient_and_weights(torch.where(keep[:, None], row, mate))
                assert all(torch.equal(g[keep], e[keep]) for g, e in zip(got, expected, strict=True))

    @pytest.mark.parametrize(("n", "k"), [(10, 3), (100, 50.5), (1000, 100)])
    def test_a_hard_row_does_not_depend_on_its_batch_mates(self, n: int, k: float) -> None:
        rows = torch.cat([x[:1] for _, x in hard_scores(n, k, torch.float32)])
        order = torch.arange(len(rows))
        for temperature in (0.01, 1.0):
            together = self.projection(rows, k, temperature=temperature)
            for i in order:
                alone = torch.where((order == i)[:, None], rows, 0.0)
                assert torch.equal(self.projection(alone, k, temperature=temperature)[i], together[i])

    def gradient_and_weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.clone().requires_grad_()
        w = self.projection(x, 100)
        target = self.scores(*x.shape, seed=5, dtype=x.dtype)
        return torch.autograd.grad((w * target).sum(), x)[0], w.detach()

    def test_blocks_of_rows_agree_with_rows(self) -> None:
        x = self.scores(2, 300, 1000)
        torch.testing.assert_close(self.projection(x, 100)[1, 250:252], self.projection(x[1, 250:252], 100))
        got = self.gradient_and_weights(x)[0]
        x.requires_grad_()
        w = self.projection(x, 100)
        target = self.scores(*x.shape, seed=5)
        whole = torch.autograd.grad((w * target).sum(), x, create_graph=True)[0]
        torch.testing.assert_close(got, whole.detach())

    def test_rows_without_a_projection_are_nan_alone(self) -> None:
        for k in (3, 2.5, 8):
            x = self.scores(6, 8)
            x[1, 2] = math.nan
            x[2, 3] = math.inf
            x[3, :6] = -math.inf
            x[4] = -math.inf
            w = self.projection(x, k)
            assert w[1:5].isnan().all()
            assert w[[0, 5]].isfinite().all()

    def test_rows_without_a_projection_have_no_gradient(self) -> None:
        """Of the first and the second order and in forward mode: a temperature of all has the slope of the others."""
        inf, nan = math.inf, math.nan
        bad = self.scores(5, 3)
        bad[0, 1], bad[1, 0], bad[2, 1:], bad[3], bad[4] = nan, inf, -inf, -inf, nan
        x = torch.cat([bad, self.scores(2, 3)])
        for k, tensors in itertools.product((2, 3), ("", "tau", "tau, k")):
            tau, number = (torch.tensor(value, dtype=x.dtype, requires_grad=True) for value in (0.7, float(k)))

            def f(x: Tensor, k: Any = number if "k" in tensors else k, tau: Any = tau if tensors else 0.7) -> Tensor:
                return self.projection(x, k, temperature=tau)

            def slopes(x: Tensor, f: Any = f, given: Any = (tau, number)) -> list[Tensor]:
                leaves = [x.clone().requires_grad_(), *given]
                loss = f(leaves[0]).square().sum()
                options = {"allow_unused": True, "materialize_grads": True}
                once = torch.autograd.grad(loss, leaves, retain_graph=True, **options)
                first = torch.autograd.grad(loss, leaves, create_graph=True, **options)
                total = sum((slope.square().sum() for slope in first), 0 * leaves[0].nan_to_num(0, 0, 0).sum())
                return [*once, *first, *torch.autograd.grad(total, leaves, **options)]

            for got, expected in zip(slopes(x), slopes(x[5:]), strict=True):
                assert got.ndim == 0 or (got[:5] == 0).all()
                torch.testing.assert_close(got if got.ndim == 0 else got[5:], expected, rtol=1e-9, atol=1e-12)
            w, tangent = torch.func.jvp(f, (x,), (torch.ones_like(x),))
            assert w[:5].isnan().all()
            assert (tangent[:5] == 0).all()

    def test_masked_entries_weigh_nothing_in_forward_mode(self) -> None:
        for dtype in (torch.float32, torch.float64):
            x = torch.tensor([1.0, 0.5, -math.inf, -math.inf], dtype=dtype)
            tau = torch.ones(1, dtype=dtype)
            w, _ = torch.func.jvp(lambda x: self.projection(x, 2, temperature=tau), (x,), (x.nan_to_num(0, 0, 0),))  # noqa: B023
            torch.testing.assert_close(w, torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=dtype))

    def test_dim(self) -> None:
        x = self.scores(3, 7, 4)
        tau = self.scores(3, 4).abs() + 0.5
        for dim in (1, -2):
            w = self.projection(x, 2, dim=dim, temperature=tau)
            assert w.shape == x.shape
            torch.testing.assert_close(w.movedim(1, -1), self.projection(x.movedim(1, -1), 2, temperature=tau))
            torch.testing.assert_close(w, self.projection(x, 2, dim=dim, temperature=tau.unsqueeze(1)))

    def test_empty_batch(self) -> None:
        x = self.scores(0, 5).requires_grad_()
        self.projection(x, 2).sum().backward()
        assert x.grad is not None
        assert x.grad.shape == (0, 5)

    def test_half_precision_is_computed_in_single(self) -> None:
        x = self.scores(3, 20, dtype=torch.float32)
        for dtype in (torch.float16, torch.bfloat16):
            low = x.to(dtype).requires_grad_()
            w = self.projection(low, 4)
            assert w.dtype == dtype
            assert torch.equal(w, self.projection(low.float(), 4).to(dtype))
            assert torch.autograd.grad(w.square().sum(), low)[0].dtype == dtype

    def test_temperature_shapes(self) -> None:
        x = self.scores(2, 3, 6)
        tau = torch.tensor([0.5, 1.0, 2.0], dtype=x.dtype)
        expected = torch.stack([self.projection(x[:, i], 2, temperature=float(tau[i])) for i in range(3)], 1)
        for given in (tau, tau.expand(2, 3), tau[:, None].expand(2, 3, 1)):
            torch.testing.assert_close(self.projection(x, 2, temperature=given), expected, rtol=1e-9, atol=1e-12)

    def test_a_temperature_that_is_not_positive_is_nan(self) -> None:
        w = self.projection(self.scores(2, 5), 2, temperature=torch.tensor([0.0, 1.0]))
        assert w[0].isnan().all()
        assert w[1].isfinite().all()
        one = self.scores(5)  # there, nobody looks
        each = torch.func.vmap(lambda tau: self.projection(one, 2, temperature=tau))(torch.tensor([0.0, 1.0]))
        assert each.isnan().any(-1).tolist() == [True, False]

    # derivatives

    @pytest.mark.parametrize("k", [1, 1.5, 2.999])
    def test_gradcheck(self, k: float) -> None:
        x = self.scores(2, 3, seed=3).requires_grad_()
        tau = torch.tensor([0.4, 1.5], dtype=x.dtype, requires_grad=True)

        def f(x: Tensor, tau: Tensor) -> Tensor:
            return self.projection(x, k, temperature=tau)

        assert gradcheck(
            f,
            (x, tau),
            check_forward_ad=True,
            check_batched_grad=True,
            check_batched_forward_grad=True,
            fast_mode=k != 1.5,
        )
        fast = {"check_fwd_over_rev": True, "fast_mode": True}
        assert gradgradcheck(f, (x, tau), **fast)
        assert gradgradcheck(lambda x: self.projection(x, k, temperature=0.7), x, **fast)

    def test_transforms(self) -> None:
        from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

        x = self.scores(5, 8)
        tau = torch.linspace(0.5, 2, 5, dtype=x.dtype)

        def row(x: Tensor, tau: Tensor) -> Tensor:
            return self.projection(x, 3, temperature=tau)

        def loss(x: Tensor, tau: Tensor) -> Tensor:
            return (row(x, tau) ** 3).sum()

        torch.testing.assert_close(vmap(row)(x, tau), row(x, tau))
        torch.testing.assert_close(vmap(row, in_dims=(1, None), out_dims=1)(x.T, tau[1]), row(x, tau[1]).T)
        torch.testing.assert_close(vmap(row, in_dims=(None, 0))(x[0], tau), row(x[0].expand(5, 8), tau))
        leaf = x.clone().requires_grad_()
        expected = torch.autograd.grad(loss(leaf, tau), leaf)[0]
        torch.testing.assert_close(vmap(grad(loss))(x, tau), expected)
        jacobian = jacrev(row)(x[0], tau[0])
        torch.testing.assert_close(jacfwd(row)(x[0], tau[0]), jacobian)
        torch.testing.assert_close(jvp(lambda v: row(v, tau[0]), (x[0],), (x[1],))[1], jacobian @ x[1])
        second = jacrev(jacrev(loss))(x[0], tau[0])
        for other in (hessian(loss), jacrev(jacfwd(loss)), jacfwd(jacfwd(loss))):
            torch.testing.assert_close(other(x[0], tau[0]), second)
        torch.testing.assert_close(vmap(hessian(loss))(x, tau)[0], second)
        mixed = [
            f(loss, argnums=(0, 1))(x[0], tau[0])
            for f in (hessian, lambda f, argnums: jacrev(jacrev(f, argnums), argnums))
        ]
        torch.testing.assert_close(*mixed)

    def test_any_axis_may_be_mapped(self) -> None:
        from torch.func import vmap

        x = self.scores(8, 5)
        for dim in (0, 1):
            w = vmap(lambda row: self.projection(row, 2), in_dims=dim, out_dims=dim)(x)
            torch.testing.assert_close(w, self.projection(x, 2, dim=1 - dim))

    def test_jacobian_is_symmetric_and_conserves_the_sum(self) -> None:
        x = self.scores(9)
        jacobian = torch.func.jacrev(lambda v: self.projection(v, 3.5, temperature=0.5))(x)
        torch.testing.assert_close(jacobian, jacobian.T)
        torch.testing.assert_close(jacobian.sum(0), torch.zeros_like(x), rtol=0, atol=1e-12)
        assert torch.linalg.eigvalsh(jacobian).min() > -1e-12

    # compiled

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it traces
    def test_compile(self, backend: str) -> None:
        torch._dynamo.reset()

        def f(x: Tensor, tau: Tensor) -> Tensor:
            return self.projection(x, 4, temperature=tau)

        compiled = torch.compile(f, fullgraph=True, backend=self.backend or backend)
        tau = torch.tensor(0.7, requires_grad=True)
        easy = self.scores(6, 20, dtype=torch.float32)
        hard = torch.stack([easy[0], easy[1] * 1e4, easy[2] * 1e30, easy[3].round(), easy[4] * 0, easy[5] + 1e4])
        masked = easy.clone()
        masked[:, 5:] = -math.inf
        masked[1, 3:] = -math.inf
        for x in (easy, hard, masked):
            results = []
            for function in (f, compiled):
                leaf = x.clone().requires_grad_()
                w = function(leaf, tau)
                results.append((w, *torch.autograd.grad((w**2).nansum(), (leaf, tau))))
            for eager, other in zip(*results, strict=True):
                torch.testing.assert_close(other, eager, rtol=2e-4, atol=2e-5, equal_nan=True)

    # mistakes

    @pytest.mark.cpu
    def test_mistakes(self) -> None:
        x = self.scores(4, 6)
        f: Callable[..., Tensor] = self.projection
        for k in (0, -1, 7, 6.5, math.nan, math.inf):
            with pytest.raises(ValueError, match=r"k: expected .* 0 < k <= 6"):
                f(x, k)
        for k in (True, "3", None, torch.tensor(True)):
            with pytest.raises(TypeError, match="k: expected an int or a float"):
                f(x, k)
        for k in (torch.tensor(7), torch.tensor([1.0, 2.0, 0.0, 3.0]), torch.tensor(math.nan)):
            with pytest.raises(ValueError, match=r"k: expected .* 0 < k <= 6"):
                f(x, k)
        for shape in ((6,), (5,), (4, 6), (1, 4, 1), (2, 4)):
            with pytest.raises(ValueError, match=r"k: .*\(4,\).*got shape"):
                f(x, torch.ones(shape))
        for dim in (2, -3):
            with pytest.raises(ValueError, match=r"dim: .*\(4, 6\)"):
                f(x, 2, dim=dim)
        with pytest.raises(TypeError, match="dim: expected an int"):
            f(x, 2, dim=0.0)
        for temperature in (0.0, -1.0, math.nan, math.inf):
            with pytest.raises(ValueError, match="temperature: expected a positive finite number"):
                f(x, 2, temperature=temperature)
            with pytest.raises(ValueError, match="temperature: expected numbers > 0 and finite, got"):
                f(x, 2, temperature=torch.tensor(temperature))
            for given in (torch.tensor(temperature), torch.nn.Parameter(torch.tensor([1.0, temperature]))):
                with pytest.raises(ValueError, match="temperature: expected numbers > 0 and finite, got"):
                    self.module(given)
        for temperature in ("1", True, None, torch.tensor(1)):
            with pytest.raises(TypeError, match="temperature: expected"):
                f(x, 2, temperature=temperature)
        for shape in ((6,), (5,), (4, 6), (1, 4, 1), (2, 4)):
            with pytest.raises(ValueError, match=r"temperature: .*\(4,\).*got shape"):
                f(x, 2, temperature=torch.ones(shape))
        for scores in (x.long(), x.bool(), [1.0, 2.0], x.to(torch.complex64)):
            with pytest.raises(TypeError, match="scores: expected"):
                f(scores, 2)
        with pytest.raises(ValueError, match="scores: expected at least one axis"):
            f(x[0, 0], 1)
        with pytest.raises(ValueError, match="k: expected"):
            f(x[:, :0], 1)

    def test_module(self) -> None:
        x = self.scores(3, 6, dtype=torch.float32)
        module = self.module(temperature=0.5)
        assert torch.equal(module(x, 2), self.projection(x, 2, temperature=0.5))
        assert torch.equal(module(x, 2, dim=0), self.projection(x, 2, temperature=0.5, dim=0))
        assert "temperature=0.5" in repr(module)
        assert not list(module.parameters())
        learned = self.module(torch.nn.Parameter(torch.tensor(0.5)))
        assert [name for name, _ in learned.named_parameters()] == ["temperature"]
        (learned(x, 2) ** 2).sum().backward()
        assert learned.temperature.grad.abs() > 0
        fixed = self.module(torch.tensor(0.5)).to(torch.float64)
        assert "temperature" in dict(fixed.named_buffers())
        assert "temperature=0.5" in repr(fixed)
        with pytest.raises(ValueError, match="temperature"):
            self.module(temperature=0.0)
