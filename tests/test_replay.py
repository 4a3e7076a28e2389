"""What is computed a second time for its gradient is computed alike, or it is an error; what is returned is not reused."""

import contextlib

import numpy as np
import pytest
import torch
from torch import Tensor

import dcem
from dcem.control import MPC

T, N = 3, 20
SOLVER = dcem.CEM(N, 4, dcem.LML(0.5))
NOISE = torch.randn(T, N, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
RECOMPUTING = [dcem.Checkpoint(), dcem.Prune(1.0), dcem.Prune(0.5)]


def gradient(mode: dcem.GradientMode, draw, generator: torch.Generator | None = None) -> Tensor:
    """Of a solve whose objective is blurred by what `draw(shape)` gives."""
    theta = torch.tensor([0.7, -0.3], dtype=torch.float64, requires_grad=True)
    x = dcem.minimize(
        lambda x: (x - theta).square().sum(-1) * draw(x.shape[:-1]), torch.zeros(2, dtype=torch.float64), SOLVER,
        num_iterations=T, noise=NOISE, gradient=mode, generator=generator,
    ).x  # fmt: skip
    return torch.autograd.grad(x.sum(), theta)[0]


@pytest.mark.cpu
def test_checkpoints_replay_the_global_and_the_given_generator():
    def by_global(mode: dcem.GradientMode) -> Tensor:
        torch.manual_seed(1)
        return gradient(mode, lambda shape: torch.rand(shape, dtype=torch.float64))

    def by_given(mode: dcem.GradientMode) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        found = gradient(mode, lambda shape: torch.rand(shape, dtype=torch.float64, generator=generator), generator)
        assert torch.rand(1, generator=generator) == after  # it goes on from where the solve had left it
        return found

    reference = torch.Generator().manual_seed(1)
    torch.rand(T, N, dtype=torch.float64, generator=reference)
    after = torch.rand(1, generator=reference)
    torch.testing.assert_close(by_global(dcem.Checkpoint()), by_global(dcem.Unroll()), rtol=0, atol=0)
    torch.testing.assert_close(by_given(dcem.Checkpoint()), by_given(dcem.Unroll()), rtol=0, atol=0)


@pytest.mark.cpu
@pytest.mark.parametrize("mode", RECOMPUTING, ids=repr)
@pytest.mark.parametrize("source", ["numpy", "own generator"])
def test_randomness_that_cannot_be_replayed_is_an_error(mode, source):
    numpy, own = np.random.default_rng(0), torch.Generator().manual_seed(0)
    draw = {
        "numpy": lambda shape: torch.from_numpy(numpy.random(tuple(shape))),
        "own generator": lambda shape: torch.rand(shape, dtype=torch.float64, generator=own),
    }[source]
    remedy = "draw nothing" if isinstance(mode, dcem.Prune) else "draw from torch's global"
    with pytest.raises(RuntimeError, match=f"objective: expected the values that it had before .* {remedy}"):
        gradient(mode, draw)
    assert gradient(dcem.Unroll(), draw).isfinite().all()


@pytest.mark.parametrize("mode", [dcem.Unroll(), dcem.Checkpoint(), dcem.Truncate(1), dcem.Prune(0.5)], ids=repr)
@pytest.mark.parametrize("in_iteration", [0, 1])
def test_an_error_of_the_objective_that_is_kept_touches_no_later_gradient(mode, in_iteration):
    """A notebook keeps the last error. Torch before 2.13 would let it compute the failed solve again in what follows."""
    center, calls = torch.ones(2, requires_grad=True), []

    def fails(x):
        calls.append(None)
        if len(calls) > in_iteration:
            raise KeyError("a simulator's own")
        return (x - center).square().sum(-1)

    with pytest.raises(KeyError, match="a simulator's own") as kept:
        dcem.minimize(fails, torch.zeros(2), dcem.CEM(10, 3), num_iterations=3, gradient=mode)
    count = len(calls)
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: packed.append(x) or x, lambda x: x):
        x = torch.ones(3, requires_grad=True)
        y = x.exp()
    assert [p.data_ptr() for p in packed] == [y.data_ptr()]
    assert torch.equal(torch.autograd.grad(x.exp().sum(), x)[0], y)
    assert len(calls) == count
    assert kept.value.args == ("a simulator's own",)


def test_a_checkpoint_leaves_the_settings_of_torch_alone():
    """Which are of the process: of two threads one would put back what the other had set."""
    found = []

    def objective(x):
        found.append(torch.utils.checkpoint._enable_checkpoint_early_stop)
        return x.square().sum(-1)

    with torch.utils.checkpoint.set_checkpoint_early_stop(True):
        x = dcem.minimize(objective, torch.ones(2, requires_grad=True), gradient=dcem.Checkpoint(), num_iterations=2).x
    x.sum().backward()
    assert found == [True, True, None, None]


def test_prune_cannot_replay_the_global_generator_either():
    with pytest.raises(RuntimeError, match="objective: expected the values that it had before where Prune"):
        gradient(dcem.Prune(1.0), lambda shape: torch.rand(shape, dtype=torch.float64))


@pytest.mark.parametrize("mode", RECOMPUTING, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_that_differs_is_none(mode, dtype):
    """A pruned batch is multiplied in another order than the whole, and half precision shows it."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.SiLU(), torch.nn.Linear(64, 1)).to(dtype)
    x = dcem.minimize(
        lambda x: net(x).squeeze(-1) + 10.0, torch.zeros(8, dtype=dtype), dcem.CEM(100, 10), gradient=mode,
        generator=torch.Generator().manual_seed(0),
    ).x  # fmt: skip
    assert torch.autograd.grad(x.sum(), net[0].weight)[0].isfinite().all()


def planned(chunk_size: int | None, draw, generator: torch.Generator | None = None) -> Tensor:
    speed = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    mpc = MPC(
        lambda x, u: x + speed * u * draw(u.shape), lambda x, u: (x - 1).square().sum(-1), 3, 1,
        solver=SOLVER, num_iterations=T, chunk_size=chunk_size,
    )  # fmt: skip
    noise = torch.randn(T, 1, N, 3, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    plan = mpc(torch.zeros(1, 1, dtype=torch.float64), noise=noise, generator=generator)
    return torch.autograd.grad(plan.actions.sum(), speed)[0]


@pytest.mark.cpu
def test_chunks_replay_the_generator_of_the_plan():
    """Drawn for a candidate at a time, the numbers do not depend on how many are followed together."""

    def found(chunk_size: int | None) -> Tensor:
        generator = torch.Generator().manual_seed(3)

        def draw(shape: torch.Size) -> Tensor:  # the same for all candidates: chunks draw less often otherwise
            return torch.rand(1, dtype=torch.float64, generator=generator).expand(shape)

        return planned(chunk_size, draw, generator)

    torch.testing.assert_close(found(N // 2), found(N // 2), rtol=0, atol=0)
    numpy = np.random.default_rng(0)
    with pytest.raises(RuntimeError, match="objective: expected the values that it had before"):
        planned(N // 2, lambda shape: torch.from_numpy(numpy.random(tuple(shape))))
    by_finite_differences = []
    for speed in (0.3 - 1e-6, 0.3 + 1e-6):
        generator = torch.Generator().manual_seed(3)
        mpc = MPC(
            lambda x, u, s=speed, g=generator: x + s * u * torch.rand(1, dtype=torch.float64, generator=g).expand(u.shape),
            lambda x, u: (x - 1).square().sum(-1), 3, 1, solver=SOLVER, num_iterations=T, chunk_size=N // 2,
        )  # fmt: skip
        noise = torch.randn(T, 1, N, 3, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            plan = mpc(torch.zeros(1, 1, dtype=torch.float64), noise=noise, generator=generator)
        by_finite_differences.append(plan.actions.sum())
    low, high = by_finite_differences
    torch.testing.assert_close(found(N // 2), (high - low) / 2e-6, rtol=1e-5, atol=1e-7)


@pytest.mark.cpu
@pytest.mark.parametrize("given", [False, True])
def test_a_failing_batch_mate_changes_no_draw(given):
    """The second evaluation draws again what the first has drawn, and the next iteration goes on as it would have."""

    def answer(bad: float) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1) if given else None
        torch.manual_seed(1)
        theta = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

        def objective(x: Tensor) -> Tensor:
            values = (x - theta).square().sum(-1) * torch.rand(2, N, dtype=torch.float64, generator=generator)
            return torch.cat([values[:1], values[1:] + torch.where(x[1:, :, 0] > 0.5, bad, 0.0)])

        x = dcem.minimize(objective, torch.zeros(2, 2, dtype=torch.float64), SOLVER, generator=generator).x
        return x[0], torch.autograd.grad(x[0].sum(), theta)[0]

    for ours, alone in zip(answer(torch.nan), answer(0.0), strict=True):
        assert torch.equal(ours, alone)


@pytest.mark.cpu
@pytest.mark.parametrize("solver", [SOLVER, dcem.MPPI(N)], ids=repr)
def test_an_objective_may_fill_one_tensor_again_and_again(solver):
    """As simulators and NumPy's `out=` do; what is kept of it is a copy."""
    buffer, of_numpy = torch.empty(2, N), np.empty((2, N), dtype=np.float32)

    def plain(x: Tensor) -> Tensor:
        return x.square().sum(-1)

    def into_torch(x: Tensor) -> Tensor:
        return buffer.copy_(plain(x))

    def into_numpy(x: Tensor) -> Tensor:
        np.copyto(of_numpy, plain(x).numpy())
        return torch.from_numpy(of_numpy)

    answers = [
        dcem.minimize(f, torch.ones(2, 2), solver, record=True, generator=torch.Generator().manual_seed(0))
        for f in (plain, into_torch, into_numpy)
    ]
    for answer in answers[1:]:
        assert torch.equal(answer.best_value, answers[0].best_value)
        assert torch.equal(answer.best_x, answers[0].best_x)
        assert torch.equal(answer.best_x.square().sum(-1), answer.best_value)
        for ours, theirs in zip(answer.history, answers[0].history, strict=True):
            assert torch.equal(ours.values, theirs.values)


@pytest.mark.cpu
@pytest.mark.parametrize("solver", [SOLVER, dcem.CEM(N, 4, dcem.HardTopK(), keep_elites=0.5), dcem.MPPI(N)], ids=repr)
def test_an_objective_that_writes_to_its_candidates_through_numpy_changes_none(solver):
    """Torch counts the writes of its own only, so that no check sees these."""

    def scaled(x: Tensor) -> Tensor:
        array = x.numpy()
        array *= 2.0
        return torch.from_numpy(np.square(array - 1.0).sum(-1))

    def decode(z: Tensor) -> Tensor:
        array = z.numpy()
        array *= 2.0
        return torch.from_numpy(array.copy())

    by_decoder = dcem.embed(lambda x: (x - 1.0).square().sum(-1), decode)
    answers = [
        dcem.minimize(f, torch.ones(2, 2), solver, record=True, generator=torch.Generator().manual_seed(0))
        for f in (lambda x: (2.0 * x - 1.0).square().sum(-1), scaled, by_decoder)
    ]
    for answer in answers[1:]:
        torch.testing.assert_close(answer.x, answers[0].x)
        torch.testing.assert_close(answer.best_x, answers[0].best_x)
        for ours, theirs in zip(answer.history, answers[0].history, strict=True):
            torch.testing.assert_close(ours.samples, theirs.samples)


@pytest.mark.cpu
def test_dynamics_that_write_to_their_actions_through_numpy_change_none():
    def dynamics(x: Tensor, u: Tensor) -> Tensor:
        after = x + u
        u.numpy()[...] = 7.0
        return after

    def plan(dynamics) -> dcem.control.Plan:
        mpc = MPC(dynamics, lambda x, u: x.square().sum(-1) + u.square().sum(-1), 3, 1, (-1.0, 1.0), SOLVER)
        return mpc(torch.ones(2, 1), generator=torch.Generator().manual_seed(0))

    ours, theirs = plan(dynamics), plan(lambda x, u: x + u)
    assert torch.equal(ours.actions, theirs.actions)
    assert torch.equal(ours.cost, theirs.cost)


@pytest.mark.parametrize("mode", [dcem.Unroll(), dcem.Checkpoint(), dcem.Detach()], ids=repr)
def test_one_that_does_so_with_a_gradient_is_refused(mode):
    """Autograd has seen the values that are written over."""
    buffer, theta = torch.empty(N), torch.ones(2, requires_grad=True)

    def objective(x: Tensor) -> Tensor:
        return (
            buffer.detach_().copy_((x - theta).square().sum(-1))
            if buffer.requires_grad
            else buffer.copy_((x - theta).square().sum(-1))
        )

    if isinstance(mode, dcem.Detach):
        assert dcem.minimize(objective, torch.zeros(2), SOLVER, gradient=mode).best_value < 0.3
        return
    with pytest.raises(ValueError, match="objective: expected to leave values that it has returned as they are"):
        dcem.minimize(objective, torch.zeros(2), SOLVER, gradient=mode)


@pytest.mark.cpu
@pytest.mark.parametrize("mode", [dcem.Unroll(), dcem.Checkpoint(), dcem.Truncate(1)], ids=repr)
def test_looking_for_a_slope_that_is_not_finite_draws_nothing(mode):
    theta, generator = torch.tensor(0.0, requires_grad=True), torch.Generator().manual_seed(0)

    def objective(x: Tensor) -> Tensor:
        noise = torch.randn(x.shape[:-1]) + torch.randn(x.shape[:-1], generator=generator)
        return (x - theta).square().sum(-1) + noise + 0 * (theta * torch.ones(x.shape[:-1])).sqrt()

    x = dcem.minimize(objective, torch.zeros(2), SOLVER, num_iterations=2, gradient=mode, generator=generator).x
    before = torch.get_rng_state(), generator.get_state()
    assert torch.autograd.grad(x.sum(), theta)[0].isnan()
    assert torch.equal(before[0], torch.get_rng_state())
    assert torch.equal(before[1], generator.get_state())


@pytest.mark.cpu
@pytest.mark.parametrize("forward", [True, False])
def test_a_promise_within_an_objective_does_not_change_that_of_its_replay(forward):
    drawn = np.random.default_rng(0)

    def draw(shape: torch.Size) -> Tensor:
        with dcem.unchecked():
            return torch.from_numpy(drawn.random(tuple(shape)))

    theta = torch.tensor([0.7, -0.3], dtype=torch.float64, requires_grad=True)
    inside = {True: dcem.unchecked(), False: contextlib.nullcontext()}
    with inside[forward]:
        x = dcem.minimize(
            lambda x: (x - theta).square().sum(-1) * draw(x.shape[:-1]), torch.zeros(2, dtype=torch.float64), SOLVER,
            num_iterations=T, noise=NOISE, gradient=dcem.Checkpoint(),
        ).x  # fmt: skip
    refuses = pytest.raises(RuntimeError, match="objective: expected the values that it had before")
    with inside[not forward], contextlib.nullcontext() if forward else refuses:
        assert torch.autograd.grad(x.sum(), theta)[0].isfinite().all()


@pytest.mark.cpu
@pytest.mark.parametrize("mode", [*RECOMPUTING, dcem.Unroll()], ids=repr)
def test_a_problem_without_values_is_no_sign_of_others(mode):
    """Values of fewer candidates differ by rounding, which is less than their spread; of a problem that failed there is
    none."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
    data = torch.zeros(4, 1, 2)
    data[1] = torch.nan
    x = dcem.minimize(
        lambda x: net(x + data).squeeze(-1), torch.zeros(4, 2), dcem.CEM(100, 10), num_iterations=3, gradient=mode
    )
    assert x.status.tolist() == [0, 2, 0, 0]


NOISY = [
    ("ends", lambda x: (x[..., 1] > 0).float(), 1.0),
    ("fails", None, torch.nan),
    ("overflows", None, 1e37),
]


@pytest.mark.cpu
@pytest.mark.parametrize(("continues", "scale"), [case[1:] for case in NOISY], ids=[case[0] for case in NOISY])
def test_what_is_drawn_does_not_depend_on_a_second_evaluation(continues, scale):
    """Where an episode ends, candidates fail, or a sum overflows, something may be followed again for its gradient."""
    theta = torch.tensor(1.0, requires_grad=True)

    def pushed(x: Tensor, u: Tensor, generator: torch.Generator) -> Tensor:
        place = x[..., :1] + 0.1 * u + 0.3 * theta * torch.randn(x[..., :1].shape, generator=generator)
        return torch.cat([place, x[..., 1:] - 1], -1)

    def cost(x: Tensor, u: Tensor) -> Tensor:
        far = x[..., 0].square() + 0.01 * u.square().sum(-1)
        return scale * (1 + far) if scale == scale else torch.where(far > 0.5, torch.nan, far)

    mpc = MPC(pushed, cost, 5, 1, (-1.0, 1.0), dcem.CEM(60, 5), num_iterations=3, continues=continues)

    def plan(mate: float) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        found = mpc(torch.tensor([[0.5, 2.0], [0.2, mate]]), generator=generator).actions[0].detach()
        return found, torch.rand(1, generator=generator)

    first = plan(2.0)
    assert all(map(torch.equal, first, plan(9.0)))
    with torch.no_grad():
        for ours, theirs in zip(first, plan(2.0), strict=True):
            torch.testing.assert_close(ours, theirs)
