"""Contract of every sampling distribution: a new family inherits all of these checks."""

import dataclasses
import os

import pytest
import torch
from torch import Tensor

import dcem
from dcem._tree import leaves, map_tensors
from dcem.bounds import Bounds

FLOATS = [torch.float32, torch.float64]
# On a GPU, whose threads add in any order where several samples come from one component, not twice the same.
NONDETERMINISM = 0.0 if os.environ.get("DCEM_TEST_DEVICE", "cpu") == "cpu" else 1e-10


class DistributionContract:
    """Subclasses define `make`, `target` (of the shape of an event, which a solve can answer with) and what is False."""

    target: Tensor
    is_continuous = True  # samples are differentiable in the parameters
    is_maximum_likelihood = True  # `fit` is
    has_density = True
    moves = True  # `with_mean` translates samples
    precision = 0.02  # of the minimum that CEM finds

    def make(self, batch: tuple[int, ...] = (), dtype: torch.dtype = torch.float64, seed: int = 0) -> dcem.Distribution:
        """A member with parameters of its own for each problem; members of two seeds are close to each other."""
        raise NotImplementedError

    def expectation(self, g: dcem.Distribution) -> Tensor:
        return g.mean

    def variance(self, g: dcem.Distribution) -> Tensor:
        return g.std.square()

    def draw(self, g: dcem.Distribution, num_samples: int, seed: int = 0) -> Tensor:
        shape = (*g.batch_shape, num_samples, *g.event_shape)
        generator = torch.Generator().manual_seed(seed)
        return g.rsample(torch.randn(shape, dtype=g.mean.dtype, generator=generator))

    def objective(self, target: Tensor):
        dims = self.target.dim()
        return lambda x: (x - target.to(x)).square().flatten(-dims).sum(-1)

    @pytest.mark.parametrize("batch", [(), (2, 3)])
    @pytest.mark.parametrize("dtype", FLOATS)
    def test_shapes(self, batch, dtype):
        g = self.make(batch, dtype)
        event = tuple(self.target.shape)
        assert g.batch_shape == batch
        assert g.event_shape == event
        assert g.sample_dim == -1 - len(event)
        x = self.draw(g, 7)
        for value, shape in ((g.mean, event), (g.std, event), (x, (7, *event)), (g.is_collapsed(1e-6), ())):
            assert value.shape == (*batch, *shape)
        assert g.mean.dtype == x.dtype == dtype
        assert not g.is_collapsed(1e-6).any()
        fitted = g.fit(x, torch.full(x.shape[: len(batch) + 1], 1 / 7, dtype=dtype))
        for other in (fitted, g.interpolate(fitted, 0.5), g.clamp_std(1e-3, 2.0), g.with_mean(g.mean)):
            assert other.mean.shape == g.mean.shape
            assert other.mean.dtype == dtype

    def test_samples_have_the_moments_that_it_says(self):
        g = self.make((2,))
        x = self.draw(g, 10_000)
        mean, variance = x.mean(1), x.var(1)
        assert ((mean - self.expectation(g)).abs() <= 5 * (variance / 10_000).sqrt() + 1e-3).all()
        torch.testing.assert_close(variance, self.variance(g), rtol=0.1, atol=2e-3)

    def test_fit_finds_where_samples_came_from(self):
        g, start = self.make((2,)), self.make((2,), seed=1)
        x = self.draw(g, 10_000)
        fitted = start.fit(x, torch.full(x.shape[:2], 1 / 10_000, dtype=x.dtype))
        assert type(fitted) is type(start)
        torch.testing.assert_close(self.expectation(fitted), self.expectation(g), rtol=0, atol=0.03)
        torch.testing.assert_close(self.variance(fitted), self.variance(g), rtol=0.1, atol=1e-2)

    def test_fit_has_the_largest_likelihood(self):
        if not self.is_maximum_likelihood:
            pytest.skip("by another principle")
        g, other = self.make(), self.make(seed=1)
        x = self.draw(g, 200)
        weights = torch.rand(200, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        weights = weights / weights.sum()
        best = other.fit(x, weights)
        likelihood = (weights * best.log_prob(x)).sum()
        for amount in (0.05, -0.05, 0.01):
            assert (weights * best.interpolate(other, amount).log_prob(x)).sum() < likelihood

    def test_the_density_is_normalised(self):
        """`E_g[h(X) / g(X)] = 1` for two members."""
        if not self.has_density:
            with pytest.raises(NotImplementedError, match="^log_prob"):
                self.make().log_prob(self.draw(self.make(), 2))
            return
        g, h = self.make((2,)), self.make((2,), seed=1)
        x = self.draw(g, 10_000)
        assert g.log_prob(x).shape == (2, 10_000)
        ratio = (h.log_prob(x) - g.log_prob(x)).exp()
        assert ((ratio.mean(-1) - 1).abs() < 5 * ratio.std(-1) / 10_000**0.5 + 1e-3).all()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_the_density_is_that_of_double_precision(self, dtype):
        """Of the same numbers, which are coarse."""
        if not self.has_density:
            return
        coarse = map_tensors(lambda leaf: leaf.to(dtype), self.make((2,)))
        exact = map_tensors(Tensor.double, coarse)
        x = self.draw(exact, 20).to(dtype)
        log_prob, expected = coarse.log_prob(x), exact.log_prob(x.double())
        assert log_prob.dtype == dtype
        error = (log_prob.double() - expected).abs()
        assert (error <= 40 * torch.finfo(dtype).eps * (1 + expected.abs())).all()

    def with_leaves(self, g: dcem.Distribution, values) -> dcem.Distribution:
        values = iter(values)
        return map_tensors(lambda leaf: next(values), g)

    def test_samples_are_differentiable_in_the_parameters(self):
        g = self.make()
        parameters = [leaf.clone().requires_grad_() for leaf in leaves(g)]
        x = self.draw(self.with_leaves(g, parameters), 5)
        if not self.is_continuous:
            assert not x.requires_grad
            return
        assert torch.autograd.gradcheck(
            lambda *values: self.draw(self.with_leaves(g, values), 5), parameters, check_forward_ad=True
        )

    def test_fit_is_differentiable_in_samples_and_weights(self):
        g = self.make()
        weights = torch.rand(9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

        def moments(x: Tensor, weights: Tensor):
            fitted = g.fit(x, weights / weights.sum())
            return fitted.mean, fitted.std

        x = self.draw(g, 9).detach()
        inputs = (x.requires_grad_(), weights.requires_grad_()) if self.is_continuous else (x, weights.requires_grad_())
        assert torch.autograd.gradcheck(moments, inputs, check_forward_ad=True)

    def test_the_mean_can_be_replaced(self):
        g = self.make((2,))
        mean = self.make((2,), seed=1).mean
        moved = g.with_mean(mean)
        torch.testing.assert_close(moved.mean, mean)
        torch.testing.assert_close(moved.with_mean(g.mean).mean, g.mean)
        if self.moves:
            difference = self.draw(moved, 5) - self.draw(g, 5)
            torch.testing.assert_close(difference, (mean - g.mean).unsqueeze(1).expand_as(difference))

    def test_interpolation_goes_from_one_member_to_the_other(self):
        g, h = self.make((2,)), self.make((2,), seed=1)
        torch.testing.assert_close(g.interpolate(h, 0.0).mean, g.mean)
        torch.testing.assert_close(g.interpolate(h, 1.0).mean, h.mean)
        torch.testing.assert_close(g.interpolate(h, 1.0).std, h.std)
        torch.testing.assert_close(g.interpolate(h, 0.25).mean, 0.75 * g.mean + 0.25 * h.mean)

    def bounds(self) -> tuple[Tensor, Tensor]:
        """A box that the start is not in."""
        return self.target - 0.01, self.target + 0.01

    def test_bounds_hold_for_the_mean(self):
        g, (low, high) = self.make((2,)), self.bounds()
        for x in (
            g.clip(Bounds.check((low, high), g.event_shape, g.mean)).mean,
            dcem.minimize(self.objective(self.target), g, dcem.CEM(20, 5), bounds=(low, high), num_iterations=2).x,
        ):
            assert ((x >= low) & (x <= high)).all()

    @pytest.mark.cpu
    @pytest.mark.parametrize("bad", [torch.nan, torch.inf])
    def test_parameters_that_make_no_distribution_are_named(self, bad):
        self.make().check()
        g = self.make()
        values = [leaf.clone() for leaf in leaves(g)]
        values[0].view(-1)[0] = bad
        with pytest.raises(ValueError, match="^init: expected"):
            dcem.minimize(self.objective(self.target), self.with_leaves(g, values))

    @pytest.mark.parametrize(
        ("selection", "dtype", "batch"), [(dcem.HardTopK(), torch.float32, (3,)), (dcem.LML(0.1), torch.float64, ())]
    )
    def test_cem_finds_a_minimum(self, selection, dtype, batch):
        solution = dcem.minimize(
            self.objective(self.target), self.make(batch, dtype), dcem.CEM(200, 40, selection, smoothing=0.2),
            num_iterations=30, generator=torch.Generator().manual_seed(0), gradient=dcem.Detach(),
        )  # fmt: skip
        assert solution.x.dtype == dtype
        assert type(solution.distribution) is type(self.make())
        assert (solution.status <= dcem.Status.COLLAPSED).all()
        assert (solution.x - self.target.to(dtype)).abs().max() < self.precision
        assert (self.objective(self.target)(solution.best_x) - solution.best_value).abs().max() < 1e-5

    def test_mppi_and_gradient_descent_move_its_mean(self):
        for solver, precision in ((dcem.MPPI(300, 0.05, smoothing=0.1), 0.3), (dcem.GradientDescent(0.2), 1e-3)):
            solution = dcem.minimize(
                self.objective(self.target), self.make((2,)), solver, num_iterations=40,
                generator=torch.Generator().manual_seed(0),
            )  # fmt: skip
            assert (solution.x - self.target).abs().max() < precision

    @pytest.mark.parametrize("solver", [dcem.CEM(60, 10, dcem.LML(0.3)), dcem.MPPI(60), dcem.GradientDescent()])
    def test_a_failing_problem_keeps_its_distribution_and_leaves_the_others_alone(self, solver):
        target = self.target.clone().requires_grad_()
        noise = torch.randn(
            4,
            3,
            solver.num_samples,
            *self.target.shape,
            dtype=torch.float64,
            generator=torch.Generator().manual_seed(0),
        )
        init, objective = self.make((3,)), self.objective(target)
        bad = torch.tensor([0.0, torch.nan, 0.0], dtype=torch.float64).unsqueeze(-1)
        healthy = dcem.minimize(objective, init, solver, noise=noise, num_iterations=4)
        broken = dcem.minimize(lambda x: objective(x) + bad, init, solver, noise=noise, num_iterations=4)
        assert broken.status.tolist() == [dcem.Status.OK, dcem.Status.NONFINITE, dcem.Status.OK]
        torch.testing.assert_close(broken.x[1], init.mean[1])
        assert torch.equal(broken.x[::2], healthy.x[::2])
        gradients = [torch.autograd.grad(s.x[::2].sum(), target)[0] for s in (broken, healthy)]
        if target.is_cpu:
            assert torch.equal(*gradients)
        torch.testing.assert_close(*gradients)  # on a GPU the order of a sum is not always the same

    def test_one_problem_does_not_depend_on_what_the_others_hold(self):
        init, solver = self.make((3,)), dcem.CEM(60, 10, dcem.LML(0.3))
        noise = torch.randn(
            3, 3, 60, *self.target.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        )
        answers = []
        for scale in (1.0, 1e4):
            factor = torch.tensor([scale, 1.0, 1.0], dtype=torch.float64)
            factor = factor.reshape(3, 1, *(1,) * self.target.dim())
            answers.append(
                dcem.minimize(
                    lambda x, factor=factor: self.objective(self.target)(x * factor),
                    init,
                    solver,
                    noise=noise,
                    num_iterations=3,
                ).x
            )
        assert torch.equal(answers[0][1:], answers[1][1:])

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_in_single_inside(self, dtype):
        solution = dcem.minimize(
            self.objective(self.target), map_tensors(lambda leaf: leaf.to(dtype), self.make()), dcem.CEM(100, 20)
        )
        assert solution.x.dtype == dtype
        assert solution.distribution.mean.dtype == torch.float32
        assert solution.x.isfinite().all()

    def test_a_gradient_is_that_of_finite_differences_and_of_transforms(self):
        noise = torch.randn(2, 30, *self.target.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        g = self.make()

        def answer(target: Tensor) -> Tensor:
            objective = lambda x: (x - target).pow(4).flatten(-target.dim()).sum(-1)  # noqa: E731
            solver = dcem.CEM(30, 8, dcem.LML(0.5), smoothing=0.2)
            return dcem.minimize(objective, g, solver, num_iterations=2, noise=noise).x

        target = (self.target + 0.1).requires_grad_()
        assert torch.autograd.gradcheck(answer, target, nondet_tol=NONDETERMINISM)
        jacobian = torch.autograd.functional.jacobian(answer, target)
        torch.testing.assert_close(torch.func.jacrev(answer)(target), jacobian)
        torch.testing.assert_close(torch.func.jacfwd(answer)(target), jacobian)
        targets = torch.stack([target.detach(), target.detach() - 0.2])
        torch.testing.assert_close(torch.func.vmap(answer)(targets), torch.stack([answer(t) for t in targets]))
        each = torch.stack([torch.autograd.functional.jacobian(answer, t) for t in targets])
        torch.testing.assert_close(torch.func.vmap(torch.func.jacrev(answer))(targets), each)
        torch.testing.assert_close(torch.func.vmap(torch.func.jacfwd(answer))(targets), each)

    def test_the_gradient_of_the_parameters_is_that_of_finite_differences(self):
        """Where samples move with them; a hard sample does not, and its probabilities have no gradient on this way."""
        if not self.is_continuous:
            return
        noise = torch.randn(2, 30, *self.target.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        g = self.make()
        parameters = [leaf.clone().requires_grad_() for leaf in leaves(g)]

        def answer(*values: Tensor) -> Tensor:
            return dcem.minimize(
                self.objective(self.target), self.with_leaves(g, values), dcem.CEM(30, 8, dcem.LML(0.5)),
                num_iterations=2, noise=noise,
            ).x  # fmt: skip

        assert torch.autograd.gradcheck(answer, parameters, nondet_tol=NONDETERMINISM)

    def test_a_subclass_stays_itself(self):
        g = self.make()
        kind = type("Mine", (type(g),), {})
        mine = object.__new__(kind)
        for field in dataclasses.fields(g):
            object.__setattr__(mine, field.name, getattr(g, field.name))
        noise = torch.randn(3, 40, *self.target.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        solver = dcem.CEM(40, 10, dcem.LML(0.2), smoothing=0.1)
        own, base = (
            dcem.minimize(self.objective(self.target), init, solver, noise=noise, num_iterations=3)
            for init in (mine, g)
        )
        assert type(own.distribution) is kind
        torch.testing.assert_close(own.x, base.x)
