"""Decoders, and the training step that learns them through a solve."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dcem
from dcem.embedding import Decoder, MLPDecoder, RecurrentDecoder, SplineDecoder, decoder_step, embed

inf = math.inf
EVENT = (6, 2)
BUILDERS = {
    "mlp": lambda **options: MLPDecoder((3,), EVENT, (8,), **options),
    "recurrent": lambda **options: RecurrentDecoder((3,), EVENT, 8, **options),
    "spline": lambda **options: SplineDecoder(3, EVENT, **options),
}
BOXES = {
    "numbers": (-0.1, 0.3),
    "per dimension": (torch.tensor([-0.1, 1.0]), torch.tensor([0.3, 7.0])),
    "low": (-0.1, None),
    "high": (None, 0.3),
    "mixed": (torch.tensor([-0.1, -inf]), torch.tensor([inf, 0.3])),
    "of the whole event": (-torch.rand(EVENT), 0.5),
}


@pytest.fixture(params=BUILDERS)
def build(request):
    torch.manual_seed(0)
    return BUILDERS[request.param]


def family(target):
    """Problems of one kind: ripples around `target` `(*batch, *event)`."""

    def objective(x):
        away = (x - target.unsqueeze(1)).flatten(2)
        return (away.square() + 0.1 * (1 - torch.cos(8 * away))).mean(-1)

    return objective


class TestDecoders:
    def test_maps_any_leading_axes(self, build):
        decoder = build()
        z = torch.randn(2, 4, *decoder.latent_shape)
        x = decoder(z)
        assert x.shape == (2, 4, *EVENT)
        assert decoder.event_shape == EVENT
        torch.testing.assert_close(decoder(z[1, 2]), x[1, 2])
        assert decoder(z[:0]).shape == (0, 4, *EVENT)

    @pytest.mark.parametrize("box", BOXES)
    def test_stays_in_the_box_even_far_out(self, build, box):
        low, high = BOXES[box]
        decoder = build(bounds=(low, high))
        for scale in (1.0, 1e3, 1e30):
            z = (scale * torch.randn(50, *decoder.latent_shape)).requires_grad_()
            x = decoder(z)
            assert low is None or (x >= low).all()
            assert high is None or (x <= high).all()
            (gradient,) = torch.autograd.grad(x.sum(), z)
            assert x.isfinite().all()
            assert gradient.isfinite().all()

    @pytest.mark.parametrize("box", [*BOXES, "none"])
    @pytest.mark.parametrize("name", ["mlp", "spline"])  # torch has no batching rule for a GRU
    def test_the_same_inside_transforms(self, name, box):
        """Where Python may not look at the bounds."""
        decoder = BUILDERS[name](bounds=BOXES.get(box)).double()
        z = 3 * torch.randn(5, *decoder.latent_shape, dtype=torch.float64)
        torch.testing.assert_close(torch.func.vmap(decoder)(z), decoder(z))
        jacobians = [
            torch.func.vmap(torch.func.jacrev(decoder))(z),
            torch.stack([torch.autograd.functional.jacobian(decoder, row) for row in z]),
        ]
        torch.testing.assert_close(*jacobians)

    def test_bounds_move_with_the_module(self, build):
        decoder = build(bounds=(torch.tensor([-1.0, -2.0]), 0.5)).double()
        assert decoder(torch.randn(*decoder.latent_shape, dtype=torch.float64)).dtype == torch.float64

    def test_refuses_what_does_not_fit(self, build):
        with pytest.raises(ValueError, match=r"z: expected .* latent .* got \(5,\)"):
            build()(torch.zeros(5))
        with pytest.raises(ValueError, match=r"bounds: expected low <= high"):
            build(bounds=(1.0, -1.0))
        with pytest.raises(ValueError, match=r"bounds\[0\]: expected a shape that broadcasts to the event \(6, 2\)"):
            build(bounds=(torch.zeros(3), None))

    def test_refuses_empty_shapes_and_layers(self):
        with pytest.raises(ValueError, match=r"latent_shape: expected positive sizes, got \(0,\)"):
            MLPDecoder(0, 3)
        with pytest.raises(ValueError, match=r"event_shape: expected positive sizes, got \(3, 0\)"):
            RecurrentDecoder(2, (3, 0))
        with pytest.raises(ValueError, match=r"hidden: expected (at least one )?positive width, got \(8, 0\)"):
            MLPDecoder(2, 3, (8, 0))

    def test_a_linear_map_has_no_hidden_layers(self):
        decoder = MLPDecoder(2, 5, ())
        x, y = torch.randn(2, 2)
        zero = decoder(torch.zeros(2))
        torch.testing.assert_close(decoder(x + y) - zero, decoder(x) - zero + decoder(y) - zero)

    def test_recurrent_weights_do_not_grow_with_the_horizon(self):
        short, long = (sum(p.numel() for p in RecurrentDecoder(2, (h, 1)).parameters()) for h in (5, 500))
        assert short == long

    def test_state_is_saved_and_loaded(self, build):
        decoder, other = build(bounds=(-1.0, 1.0)), build(bounds=(-2.0, 2.0))
        other.load_state_dict(decoder.state_dict())
        z = torch.randn(4, *decoder.latent_shape)
        torch.testing.assert_close(decoder(z), other(z))

    @pytest.mark.parametrize("assign", [True, False])
    def test_loads_which_sides_are_open(self, build, assign):
        """Whatever the sides of the decoder that loads: closed, one-sided, open."""
        whole = {
            name: (torch.as_tensor(-inf if low is None else low), torch.as_tensor(inf if high is None else high))
            for name, (low, high) in BOXES.items()
        }
        boxes = [tuple(side.expand(EVENT).clone() for side in box) for box in whole.values()]
        boxes.append((torch.full(EVENT, -inf), torch.full(EVENT, inf)))
        for saved in boxes:
            decoder = build(bounds=saved)
            z = (30 * torch.randn(8, *decoder.latent_shape)).requires_grad_()
            for own in boxes:
                other = build(bounds=own)
                other.load_state_dict(copy.deepcopy(decoder.state_dict()), assign=assign)
                x = other(z)
                assert torch.equal(x, decoder(z))
                assert ((x >= saved[0]) & (x <= saved[1])).all()
                assert torch.autograd.grad(x.sum(), z)[0].isfinite().all()
        called = torch.func.functional_call(decoder, {"low": boxes[0][0], "high": boxes[0][1]}, (z,))
        assert ((called >= boxes[0][0]) & (called <= boxes[0][1])).all()

    def test_bounds_have_the_digits_of_their_dtype(self, build):
        double = torch.full((2,), 0.1, dtype=torch.float64)
        for decoder in (build(bounds=(double, 0.3)), build(bounds=(0.1, 0.3)), build(bounds=(0.1, None))):
            for copied in (copy.deepcopy(decoder).double(), torch.nn.Sequential(decoder).half().to(torch.float64)[0]):
                z = -1e3 * torch.ones(*decoder.latent_shape, dtype=torch.float64)
                z = torch.stack([z, -z])
                assert copied(z).dtype == torch.float64
                assert copied.low.unique().tolist() == [0.1]
                assert (copied(z) >= 0.1).all()
            saved = build(bounds=(0.1, 0.3)).state_dict()  # in single precision
            other = build(bounds=(0.0, 1.0)).double()
            other.load_state_dict(saved)  # as many digits as were saved
            assert torch.equal(other.low, saved["low"].double())
            same = build(bounds=(0.1, 1.0)).double()
            same.load_state_dict(saved)
            assert same.low.item() == 0.1

    @pytest.mark.filterwarnings("ignore:RNN module weights are not part")  # of cuDNN, after `.to(dtype)`
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_stays_inside(self, build, dtype):
        decoder = build(bounds=(0.1, 0.3)).to(dtype)
        z = (
            torch.linspace(-1e3, 1e3, 64)
            .reshape(-1, *[1] * len(decoder.latent_shape))
            .expand(-1, *decoder.latent_shape)
        )
        x = decoder(z.to(dtype))
        assert x.dtype == dtype
        assert (x.double() >= 0.1).all()
        assert (x.double() <= 0.3).all()
        whole = build(bounds=(0.1, 0.3))
        with torch.autocast(z.device.type, dtype):
            assert whole(torch.randn(4, *whole.latent_shape)).dtype == (
                torch.float32 if list(whole.parameters()) else dtype
            )

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_the_largest_numbers_are_bounds_too(self, build, dtype):
        most = torch.finfo(dtype).max
        for low, high in (
            (-most, most),
            (None, most),
            (-most, None),
            (most / 2, most),
            (most / 2, None),
            (-most, -most),
        ):
            decoder = build().to(dtype)
            decoder = build(
                bounds=tuple(None if s is None else torch.tensor(s, dtype=torch.float64) for s in (low, high))
            ).to(dtype)
            for scale in (0.0, 1.0, 1e3, most / 4):
                z = (scale * torch.randn(9, *decoder.latent_shape, dtype=dtype).clamp(-1, 1)).requires_grad_()
                x = decoder(z)
                assert x.isfinite().all()
                assert low is None or (x >= low).all()
                assert high is None or (x <= high).all()

    def test_an_event_without_axes(self):
        for low, high in BOXES["numbers"], BOXES["low"], (None, None):
            decoder = MLPDecoder(2, (), (4,), bounds=(low, high))
            assert decoder(torch.zeros(5, 2)).shape == (5,)
            assert MLPDecoder((), (), (4,), bounds=(low, high))(torch.zeros(5)).shape == (5,)
        for make in (lambda: RecurrentDecoder(2, ()), lambda: SplineDecoder(1, ())):
            with pytest.raises(ValueError, match=r"event_shape: expected \(horizon, \*action\), got \(\)"):
                make()


class TestSpline:
    @pytest.mark.parametrize("degree", [1, 3])
    @given(num_knots=st.integers(1, 12), more=st.integers(0, 30))
    @settings(max_examples=30)
    def test_encode_inverts_decode(self, degree, num_knots, more):
        decoder = SplineDecoder(num_knots, (num_knots + more, 2), degree=degree).double()
        z = torch.randn(4, num_knots, 2, dtype=torch.float64)
        torch.testing.assert_close(decoder.encode(decoder(z)), z, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("degree", [1, 3])
    def test_passes_through_its_knots_and_keeps_lines(self, degree):
        decoder = SplineDecoder(4, 10, degree=degree)
        z = torch.randn(4)
        torch.testing.assert_close(decoder(z)[::3], z)
        torch.testing.assert_close(decoder(torch.linspace(-2, 7, 4)), torch.linspace(-2, 7, 10))
        torch.testing.assert_close(SplineDecoder(1, 3, degree=degree)(z[:1]), z[:1].expand(3))

    @pytest.mark.cpu
    def test_cubic_is_the_natural_spline(self):
        scipy = pytest.importorskip("scipy.interpolate")
        z = torch.randn(5, dtype=torch.float64)
        x = SplineDecoder(5, 33, degree=3).double()(z)
        truth = scipy.CubicSpline(range(5), z, bc_type="natural")(torch.linspace(0, 4, 33))
        torch.testing.assert_close(x, torch.as_tensor(truth), atol=1e-5, rtol=1e-5)

    @pytest.mark.cpu
    @pytest.mark.parametrize("how", ["double", "to", "moved", "latent"])
    def test_matrices_have_the_digits_of_their_dtype(self, how):
        scipy = pytest.importorskip("scipy.interpolate")
        z = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        decoder = SplineDecoder(5, 33, degree=3)
        if how == "moved":
            decoder = torch.nn.Sequential(decoder).half().to("cpu").double()[0]
        elif how != "latent":  # a latent of more digits than the module
            decoder = decoder.double() if how == "double" else decoder.to(torch.float64)
        truth = scipy.CubicSpline(range(5), z, bc_type="natural")(torch.linspace(0, 4, 33, dtype=torch.float64))
        torch.testing.assert_close(decoder(z), torch.from_numpy(truth), rtol=0, atol=1e-14)
        torch.testing.assert_close(decoder.encode(decoder(z)), z, rtol=0, atol=1e-13)
        assert decoder.basis.dtype == decoder.low.dtype

    def test_encodes_the_nearest_spline(self):
        decoder = SplineDecoder(3, 8).double()
        x = torch.randn(8, dtype=torch.float64)
        z = decoder.encode(x)
        best = (decoder(z) - x).square().sum()
        assert all((decoder(z + 1e-3 * torch.randn_like(z)) - x).square().sum() > best for _ in range(20))

    def test_a_sequence_inside_the_box_stays_as_it_is(self):
        z = torch.tensor([0.0, 0.9, -0.5])
        torch.testing.assert_close(SplineDecoder(3, 7, bounds=(-1.0, 1.0))(z), SplineDecoder(3, 7)(z))

    def test_refuses_what_makes_no_sense(self):
        with pytest.raises(ValueError, match="num_knots: expected 1 to the horizon 5, got 6"):
            SplineDecoder(6, 5)
        with pytest.raises(TypeError, match="^num_knots: expected an int, got None"):
            SplineDecoder(None, (5, 1))
        with pytest.raises(ValueError, match="degree: expected 1 or 3, got 2"):
            SplineDecoder(3, 5, degree=2)
        with pytest.raises(ValueError, match=r"x: expected .* event \(5,\), got \(4,\)"):
            SplineDecoder(3, 5).encode(torch.zeros(4))


class Wrong(Decoder):
    """Returns other shapes than it says."""

    def decode(self, z):
        return z


def test_embed_holds_a_decoder_to_its_shapes():
    with pytest.raises(ValueError, match=r"decoder: expected candidates .* = \(100, 7\), got \(100, 2\)"):
        dcem.minimize(embed(lambda x: x.sum(-1), Wrong(2, 7)), torch.zeros(2))
    with pytest.raises(TypeError, match="decoder: expected to return a Tensor, got int"):
        embed(lambda x: x, lambda z: 1)(torch.zeros(3, 2))


def step_of(decoder, objective, optimizer=None, batch=(4,), **options):
    optimizer = torch.optim.SGD(decoder.parameters(), lr=1.0) if optimizer is None else optimizer
    options.setdefault("solver", dcem.CEM(20, 4, dcem.LML(0.5)))
    options.setdefault("num_iterations", 3)
    options.setdefault("generator", torch.Generator().manual_seed(0))
    return decoder_step(objective, decoder, optimizer, torch.zeros(*batch, *decoder.latent_shape), **options)


class TestStep:
    @pytest.mark.parametrize("gradient", [dcem.Unroll(), dcem.Detach()])
    def test_learns_a_family_and_does_better_on_problems_it_has_not_seen(self, generator, gradient):
        torch.manual_seed(0)
        axis = torch.linspace(0, 1, 30)

        def targets(n):
            c = torch.rand(n, 1, generator=generator)
            return 0.5 + 0.4 * torch.sin(4 * axis + 6 * c)

        decoder = MLPDecoder(2, 30, (32, 32), bounds=(0, 1))
        optimizer = torch.optim.Adam(decoder.parameters(), lr=1e-2)
        hard = dcem.CEM(30, 5, dcem.HardTopK())
        solver = dcem.CEM(30, 5) if gradient == dcem.Unroll() else hard
        unseen = family(targets(64))

        def error():
            z = dcem.minimize(embed(unseen, decoder), torch.zeros(64, 2), hard, generator=generator).x
            return unseen(decoder(z).unsqueeze(1)).mean().item()

        before = error()
        for _ in range(35):
            step = decoder_step(
                family(targets(16)), decoder, optimizer, torch.zeros(16, 2), solver, num_iterations=5,
                gradient=gradient, generator=generator,
            )  # fmt: skip
            assert step.updated
        assert error() < 0.2 * before

    @pytest.mark.parametrize("mode", [dcem.Unroll(), dcem.Checkpoint()])
    @pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
    def test_gradient_is_that_of_finite_differences(self, build, mode):
        torch.manual_seed(0)
        decoder = build(bounds=(-2.0, 3.0)).double()
        if not list(decoder.parameters()):
            decoder.basis = torch.nn.Parameter(decoder._buffers.pop("basis"))
        target = torch.randn(2, *EVENT, dtype=torch.float64)
        noise = torch.randn(3, 2, 20, *decoder.latent_shape, dtype=torch.float64)

        def step(lr=0.0):
            return decoder_step(
                lambda x: (x - target.unsqueeze(1)).square().flatten(2).sum(-1), decoder,
                torch.optim.SGD(decoder.parameters(), lr=lr), torch.zeros(2, *decoder.latent_shape).double(),
                dcem.CEM(20, 4, dcem.LML(0.5)), num_iterations=3, noise=noise, gradient=mode, max_grad_norm=None,
            )  # fmt: skip

        direction = [torch.randn_like(p) for p in decoder.parameters()]
        result = step()
        analytic = sum((p.grad * d).sum() for p, d in zip(decoder.parameters(), direction, strict=True)).item()
        norm = torch.stack([p.grad.norm() for p in decoder.parameters()]).norm()
        torch.testing.assert_close(result.gradient_norm, norm)
        losses = []
        for sign in (1, -2):
            for p, d in zip(decoder.parameters(), direction, strict=True):
                p.data += sign * 1e-6 * d
            losses.append(step().loss.item())
        assert analytic == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-5, abs=1e-7)

    def test_detach_leaves_the_gradient_of_the_value(self):
        """At temperature 0 it is that of `f(dec(ẑ))` with `ẑ` held fixed."""
        decoder = MLPDecoder(2, 3, (4,))
        objective = family(torch.randn(4, 3))
        start = copy.deepcopy(decoder.state_dict())
        hard = dcem.CEM(20, 4, dcem.HardTopK())
        step = step_of(decoder, objective, solver=hard, gradient=dcem.Detach(), max_grad_norm=None)
        fresh = MLPDecoder(2, 3, (4,))
        fresh.load_state_dict(start)
        loss = objective(fresh(step.solution.x).unsqueeze(1)).mean()
        loss.backward()
        torch.testing.assert_close(step.loss, loss.detach())
        for p, q in zip(decoder.parameters(), fresh.parameters(), strict=True):
            torch.testing.assert_close(p, q - q.grad)

    def test_a_hard_selection_refuses_to_be_differentiated(self):
        with pytest.raises(RuntimeError, match=r"HardTopK has no gradient.*gradient=dcem.Detach\(\)"):
            step_of(MLPDecoder(2, 3), family(torch.zeros(4, 3)), solver=dcem.CEM(20, 4, dcem.HardTopK()))

    def test_result(self):
        decoder = MLPDecoder((2, 3), (5, 2), (4,))
        objective = family(torch.randn(4, 5, 2))
        before = copy.deepcopy(decoder)
        step = step_of(decoder, objective)
        assert step.x.shape == (4, 5, 2)
        assert step.values.shape == (4,)
        torch.testing.assert_close(step.x, before(step.solution.x))
        torch.testing.assert_close(step.values, objective(step.x.unsqueeze(1)).squeeze(1))
        torch.testing.assert_close(step.loss, step.values.mean())
        assert step.updated
        assert not any(t.requires_grad for t in (*step[:3], step.solution.x, step.solution.distribution.mean))

    def test_no_batch_and_two_batch_axes(self):
        for batch in ((), (2, 3)):
            decoder = MLPDecoder(2, 5, (4,))
            step = step_of(decoder, lambda x: x.square().sum(-1), batch=batch)
            assert step.updated
            assert step.values.shape == batch
            assert step.x.shape == (*batch, 5)

    @pytest.mark.parametrize("limit", [1e-3, None])
    def test_clips_the_gradient(self, limit):
        decoder = MLPDecoder(2, 3, (4,))
        before = copy.deepcopy(decoder)
        step = step_of(decoder, lambda x: 1e3 * x.square().sum(-1), max_grad_norm=limit)
        moved = torch.stack([(p - q).norm() for p, q in zip(decoder.parameters(), before.parameters(), strict=True)])
        expected = step.gradient_norm.item() if limit is None else limit
        assert moved.norm().item() == pytest.approx(expected, rel=1e-3)
        assert step.gradient_norm > 1

    @pytest.mark.parametrize("bad", [math.nan, inf, -inf])
    def test_what_is_not_finite_leaves_everything_as_it_was(self, bad):
        decoder = MLPDecoder(2, 3, (4,))
        optimizer = torch.optim.Adam(decoder.parameters(), lr=0.1)
        step_of(decoder, family(torch.zeros(4, 3)), optimizer)
        before = copy.deepcopy((decoder.state_dict(), optimizer.state_dict()))
        step = step_of(decoder, lambda x: x.sum(-1) * bad, optimizer)
        assert not step.updated
        assert step.loss.isnan()
        assert (step.solution.status == dcem.Status.NONFINITE).all()
        after = (decoder.state_dict(), optimizer.state_dict())
        assert str(before) == str(after)
        torch.testing.assert_close(before[0], after[0], rtol=0, atol=0)

    def test_the_mean_of_half_precision_values_is_single(self):
        bits = torch.linspace(1, 2, 257)[:, None]  # more digits than bfloat16 has
        step = step_of(
            MLPDecoder(2, 3, (4,)), lambda x: (0 * x.sum(-1) + bits).bfloat16(), batch=(257,), gradient=dcem.Detach()
        )
        torch.testing.assert_close(step.loss, bits.bfloat16().float().mean(), rtol=1e-6, atol=0)

    def test_a_gradient_that_is_not_finite_is_refused(self):
        decoder = MLPDecoder(2, 3, (4,))
        before = copy.deepcopy(decoder.state_dict())
        step = step_of(decoder, lambda x: (x.detach() - x).square().sum(-1).sqrt() + 1, gradient=dcem.Detach())
        assert not step.updated
        assert step.loss == 1
        torch.testing.assert_close(before, decoder.state_dict(), rtol=0, atol=0)

    def test_a_failing_problem_does_not_harm_the_others(self):
        target = torch.randn(4, 3)
        failing = target.clone()
        failing[2] = math.nan
        decoder, other = MLPDecoder(2, 3, (4,)), MLPDecoder(2, 3, (4,))
        other.load_state_dict(decoder.state_dict())
        noise = torch.randn(3, 4, 20, 2)
        step = step_of(decoder, family(failing), noise=noise)
        assert step.updated
        assert step.values.isnan().tolist() == [False, False, True, False]
        rest = torch.tensor([0, 1, 3])
        step_of(other, family(target[rest]), batch=(3,), noise=noise[:, rest])
        torch.testing.assert_close(decoder.state_dict(), other.state_dict(), rtol=1e-4, atol=1e-6)

    def test_others_than_the_optimizers_parameters_stay_untouched(self):
        decoder, scale = MLPDecoder(2, 3, (4,)), torch.nn.Parameter(torch.ones(3))
        temperature = torch.nn.Parameter(torch.tensor(0.5))
        optimizer = torch.optim.SGD([*decoder.parameters(), temperature], lr=1.0)
        solver = dcem.CEM(20, 4, dcem.LML(temperature))
        step_of(decoder, lambda x: (scale * x).square().sum(-1), optimizer, solver=solver)
        assert scale.grad is None
        assert temperature.item() != 0.5

    def test_works_where_gradients_are_off(self):
        with torch.no_grad():
            assert step_of(MLPDecoder(2, 3, (4,)), lambda x: x.square().sum(-1)).updated

    def test_refuses_an_optimizer_of_something_else(self):
        other = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=1.0)
        with pytest.raises(ValueError, match="optimizer: expected parameters that the value .* depends on"):
            step_of(MLPDecoder(2, 3), lambda x: x.sum(-1), other)
        with pytest.raises(ValueError, match="optimizer: expected parameters that the value .* depends on"):
            step_of(SplineDecoder(2, 3), lambda x: x.sum(-1), other)
        with pytest.raises(
            ValueError, match="^objective: expected values with a gradient, which the decoder learns from"
        ):
            step_of(MLPDecoder(2, 3), lambda x: torch.from_numpy(x.detach().numpy().sum(-1)))
        failed = step_of(MLPDecoder(2, 3), lambda x: torch.full(x.shape[:-1], math.nan))
        assert not failed.updated
        with pytest.raises(TypeError, match="^optimizer: expected a torch optimizer, got None"):
            decoder_step(lambda x: x.sum(-1), MLPDecoder(2, 3), None, torch.zeros(2))
        with pytest.raises(ValueError, match="max_grad_norm: expected a finite number > 0, got 0"):
            step_of(MLPDecoder(2, 3), lambda x: x.sum(-1), max_grad_norm=0)


def test_bounds_of_double_precision_are_exact_in_a_module_of_single() -> None:
    double = torch.tensor([1.0, -1.0], dtype=torch.float64)
    linear = dcem.embedding.LinearDecoder(
        torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64), bounds=(-0.3, 0.3)
    )
    spline = dcem.embedding.SplineDecoder(2, 2, bounds=(-0.3, torch.tensor([0.3, 7.0], dtype=torch.float64)))
    for decoder in (linear, spline):
        assert decoder.low.dtype == torch.float32
        assert decoder(double).tolist() == [0.3, -0.3]
        decoder.load_state_dict(decoder.state_dict())
        assert decoder(double).tolist() == [0.3, -0.3]
    assert (spline(double.float()).double().abs() <= 0.3).all()


@pytest.mark.parametrize("degree", [1, 3])
def test_whole_numbers_are_numbers(degree):
    """They are not what fractions are rounded to."""
    spline = dcem.embedding.SplineDecoder(3, 5, degree=degree)
    knots, sequence = torch.tensor([0, 4, 2]), torch.tensor([0, 2, 4, 3, 2])
    torch.testing.assert_close(spline(knots), spline(knots.float()))
    torch.testing.assert_close(spline.encode(sequence), spline.encode(sequence.float()))
