"""The recurrent state-space model."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from world_contract import ACTION, OBSERVATION, WorldModelContract, make_sequences, total

import dcem
from dcem.control import MPC, rollout
from dcem.world import RSSM, RSSMBelief, WorldModel, fused

SMALL: dict[str, Any] = {"deterministic_size": 16, "stochastic_size": 4, "hidden_sizes": (16, 16)}


def small(seed: int = 0, **options: Any) -> RSSM:
    torch.manual_seed(seed)
    return RSSM(OBSERVATION, ACTION, **{**SMALL, **options})


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TestRSSM(WorldModelContract):
    planned_through = ("embed", "cell", "prior_net", "reward_net")

    def make(self) -> WorldModel:
        return RSSM(OBSERVATION, ACTION, **SMALL)


def test_the_papers_sizes_are_the_defaults() -> None:
    model = RSSM(OBSERVATION, ACTION)
    assert [leaf.shape[-1] for leaf in model.initial()] == [200, 30]
    assert (model.min_std, model.free_nats, model.kl_balance) == (0.1, 3.0, None)
    for net in (model.observation_net, model.reward_net, model.continuation_net):
        assert [layer.out_features for layer in net[:4:2]] == [200, 200]


# samples and means


def test_samples_are_those_of_prior_and_posterior() -> None:
    mean, sample = small(), small(carry="sample")
    start = RSSMBelief(torch.randn(1, 16).expand(50_000, -1), torch.randn(1, 4).expand(50_000, -1))
    action, seen = torch.rand(1, ACTION).expand(50_000, -1), torch.randn(1, OBSERVATION).expand(50_000, -1)
    with torch.no_grad():
        steps = {
            "imagine": (lambda m, **k: m.imagine(start, action, **k), lambda h: sample.prior(h)),
            "observe": (lambda m, **k: m.observe(start, action, seen, **k), lambda h: sample.posterior(h, seen)),
        }
        for name, (step, distribution) in steps.items():
            one, many = step(mean), step(sample, generator=seeded())
            assert torch.equal(one.deterministic, many.deterministic), name
            expected = distribution(one.deterministic)
            assert torch.equal(one.stochastic, expected.mean), name
            assert (expected.stddev >= 0.1).all(), name
            torch.testing.assert_close(many.stochastic.mean(0), expected.mean[0], rtol=0, atol=0.03)
            torch.testing.assert_close(many.stochastic.std(0), expected.stddev[0], rtol=0.02, atol=0)


@pytest.mark.parametrize("carry", ["mean", "sample"])
@pytest.mark.parametrize("where", ["class", "object"])
def test_prior_and_posterior_of_ones_own_are_learned_and_planned_with(carry: str, where: str) -> None:
    def by(shift: float, name: str) -> Callable[..., Any]:
        def moved(model: RSSM, *given: Tensor) -> Any:
            normal = getattr(RSSM, name)(model, *given)
            return torch.distributions.Normal(normal.mean + shift, normal.stddev)

        return moved

    own: dict[str, Any] = {"prior": by(100.0, "prior"), "posterior": by(50.0, "posterior")}
    torch.manual_seed(0)
    kind = type("Own", (RSSM,), own if where == "class" else {})
    model, plain = kind(OBSERVATION, ACTION, carry=carry, **SMALL), small(carry=carry)
    if where == "object":
        for name, method in own.items():
            setattr(model, name, functools.partial(method, model))
    actions, seen = torch.rand(5, 4, ACTION), torch.randn(5, OBSERVATION)
    expected, found = (m.observe(m.initial(5), actions[:, 0], seen, generator=seeded()) for m in (plain, model))
    torch.testing.assert_close(found.stochastic, expected.stochastic + 50.0)
    with torch.no_grad():
        steps = [m.imagine(expected, actions[:, 0], generator=seeded()) for m in (plain, model)]
        torch.testing.assert_close(steps[1].stochastic, steps[0].stochastic + 100.0)
        assert (rollout(model.imagine, expected, actions).stochastic[:, 1:] > 90.0).all()
    assert model.loss(make_sequences())["kl"] > 1000.0


def test_a_generator_replays_samples() -> None:
    model, actions, seen = small(carry="sample"), torch.rand(5, ACTION), torch.randn(5, OBSERVATION)

    def play(seed: int) -> RSSMBelief:
        generator = seeded(seed)
        belief = model.observe(model.initial((5,)), actions, seen, generator=generator)
        return model.imagine(belief, actions, generator=generator)

    assert torch.equal(play(0).stochastic, play(0).stochastic)
    assert not torch.equal(play(0).stochastic, play(1).stochastic)
    sequences = make_sequences()
    one, again = (total(model.loss(sequences, generator=seeded(3))) for _ in range(2))
    assert torch.equal(one, again)
    assert not torch.equal(one, total(model.loss(sequences, generator=seeded(4))))


def test_a_step_of_the_memory_is_a_gated_recurrent_unit_written_out() -> None:
    model, size = small(), SMALL["deterministic_size"]
    before, action = RSSMBelief(torch.randn(5, 2, size), torch.randn(5, 2, 4)), torch.rand(5, 2, ACTION)
    driven = torch.cat([before.stochastic, action], -1) @ model.embed[0].weight.T + model.embed[0].bias
    of_input = driven.relu() @ model.cell.weight_ih.T + model.cell.bias_ih
    of_state = before.deterministic @ model.cell.weight_hh.T + model.cell.bias_hh
    (reset, update), candidate = (
        (of_input + of_state).sigmoid()[..., : 2 * size].chunk(2, -1),
        of_input[..., 2 * size :],
    )
    candidate = (candidate + reset * of_state[..., 2 * size :]).tanh()
    expected = update * before.deterministic + (1 - update) * candidate
    torch.testing.assert_close(model.imagine(before, action).deterministic, expected)


# the loss


def slow_loss(model: RSSM, sequences: Any, generator: torch.Generator) -> dict[str, Tensor]:
    """The loss again, from what a model does step by step, with closed forms written out."""
    batch, steps = sequences.batch_size
    belief, before = model.initial((batch,)), torch.zeros(batch, ACTION)
    sums = dict.fromkeys(("observation", "reward", "kl"), torch.zeros(()))
    ahead = []
    for t in range(steps):
        now = sequences[:, t]
        belief = model.observe(belief, before, now["observation"], generator=generator)
        p, q = model.prior(belief.deterministic), model.posterior(belief.deterministic, now["observation"])
        kl = (p.stddev / q.stddev).log() + (q.variance + (q.mean - p.mean).square()) / (2 * p.variance) - 0.5
        reward = -model.cost(belief, now["action"])
        sums["observation"] = (
            sums["observation"] + 0.5 * (model.decode(belief) - now["observation"]).square().sum(-1).mean()
        )
        sums["reward"] = sums["reward"] + 0.5 * (reward - now["next", "reward"].squeeze(-1)).square().mean()
        sums["kl"] = sums["kl"] + torch.where(kl.sum(-1) < model.free_nats, model.free_nats, kl.sum(-1)).mean()
        before = now["action"]
        ahead.append(belief)
    last = model.imagine(belief, before).deterministic
    deterministic = torch.stack([*(b.deterministic for b in ahead), last], 1)
    prior = model.prior(deterministic)
    stochastic = prior.mean + prior.stddev * torch.randn(prior.mean.shape, generator=generator)
    p = model.continues(RSSMBelief(deterministic, stochastic))[:, 1:]
    ended = sequences["next", "terminated"].squeeze(-1)
    losses = {f"loss_{name}": value / steps for name, value in sums.items()}
    return {**losses, "loss_continuation": -torch.where(ended, (1 - p).log(), p.log()).mean()}


@pytest.mark.parametrize("free_nats", [0.0, 0.5])
def test_the_loss_is_what_its_parts_say(free_nats: float) -> None:
    for seed in range(3):
        model, sequences = small(seed, carry="sample", free_nats=free_nats), make_sequences(seed=seed)
        losses = model.loss(sequences, generator=seeded())
        for name, value in slow_loss(model, sequences, seeded()).items():
            torch.testing.assert_close(losses[name], value, rtol=1e-4, atol=1e-5)


def test_weights_scale_their_parts() -> None:
    sequences = make_sequences()
    plain = small().loss(sequences, generator=seeded())
    weighted = small(reward_weight=10.0, kl_weight=0.25).loss(sequences, generator=seeded())
    torch.testing.assert_close(weighted["loss_reward"], 10 * plain["loss_reward"])
    torch.testing.assert_close(weighted["loss_kl"], 0.25 * plain["loss_kl"])


def test_the_gradient_of_the_loss_is_that_of_finite_differences() -> None:
    model = small(free_nats=0.0, kl_balance=None, deterministic_size=5, stochastic_size=2, hidden_sizes=(6, 6)).double()
    sequences = make_sequences(3, 4, dtype=torch.float64)
    parameters = dict(model.named_parameters())

    def loss(*values: Tensor) -> Tensor:
        given = dict(zip(parameters, values, strict=True))
        torch.manual_seed(0)
        return total(torch.func.functional_call(model, given, (sequences,)))

    assert torch.autograd.gradcheck(loss, tuple(parameters.values()), fast_mode=True)


def test_free_nats_leave_a_small_divergence_alone() -> None:
    sequences = make_sequences()
    for free_nats, moves in {0.0: True, 1e6: False}.items():
        model = small(free_nats=free_nats)
        losses = model.loss(sequences, generator=seeded())
        gradients = torch.autograd.grad(losses["loss_kl"], list(model.parameters()), allow_unused=True)
        assert any(g is not None and (g != 0).any() for g in gradients) == moves
        if not moves:
            assert losses["loss_kl"] == free_nats
            assert losses["kl"] < free_nats


def test_balance_shares_the_gradient_between_prior_and_posterior() -> None:
    def gradients(kl_balance: float | None) -> dict[str, Tensor]:
        model = small(free_nats=0.0, kl_balance=kl_balance)
        loss = model.loss(make_sequences(), generator=seeded())["loss_kl"]
        return dict(
            zip(
                dict(model.named_parameters()),
                torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True),
                strict=True,
            )
        )

    plain, of_posterior, of_prior, mixed = (gradients(alpha) for alpha in (None, 0.0, 1.0, 0.8))
    for name, whole in plain.items():
        torch.testing.assert_close(of_posterior[name] + of_prior[name], whole, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(0.2 * of_posterior[name] + 0.8 * of_prior[name], mixed[name], rtol=1e-4, atol=1e-5)
        if name.startswith("prior_net"):
            assert (of_posterior[name] == 0).all()


# what it learns


def test_it_learns_where_an_episode_ends() -> None:
    """A counter goes up by the action; the episode ends when it passes 1."""
    tensordict = pytest.importorskip("tensordict")
    generator, steps = seeded(), 4
    action = torch.rand(200, steps, 1, generator=generator)
    after = action.cumsum(1)
    alive = (after[:, :-1] <= 1).all(1).squeeze(-1)
    count = torch.cat([torch.zeros(200, 1, 1), after], 1)
    data = {"observation": count[:, :-1], "action": action}
    ended = {"reward": torch.zeros(200, steps, 1), "terminated": after > 1}
    sequences = tensordict.TensorDict({**data, "next": ended}, batch_size=(200, steps))[alive]
    torch.manual_seed(0)
    model = RSSM(1, 1, deterministic_size=16, stochastic_size=2, hidden_sizes=(32, 32), free_nats=0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(100):
        optimizer.zero_grad()
        total(model.loss(sequences, generator=generator)).backward()
        optimizer.step()
    with torch.no_grad():
        belief = model.observe(model.initial((2,)), torch.zeros(2, 1), torch.zeros(2, 1))
        slow_and_fast = torch.tensor([[0.1], [0.8]])
        for _ in range(2):
            belief = model.imagine(belief, slow_and_fast)
        slow, fast = model.continues(belief).tolist()
    assert slow > 0.9
    assert fast < 0.2


# bad arguments


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"deterministic_size": 0}, ValueError, "deterministic_size: expected at least 1, got 0"),
        ({"stochastic_size": 1.5}, TypeError, "stochastic_size: expected an int, got 1.5"),
        ({"hidden_sizes": ()}, ValueError, "hidden_sizes: expected at least one positive width"),
        ({"hidden_sizes": 8}, TypeError, "hidden_sizes: expected a sequence of ints, got 8"),
        ({"min_std": 0.0}, ValueError, "min_std: expected a finite number > 0, got 0.0"),
        ({"carry": "mode"}, ValueError, "carry: expected one of mean, sample, got 'mode'"),
        ({"free_nats": -1.0}, ValueError, "free_nats: expected a finite number >= 0, got -1.0"),
        ({"kl_weight": math.inf}, ValueError, "kl_weight: expected a finite number >= 0, got inf"),
        ({"reward_weight": "1"}, TypeError, "reward_weight: expected a number, got '1'"),
        ({"kl_balance": 1.5}, ValueError, r"kl_balance: expected a number in \[0, 1\], got 1.5"),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        RSSM(OBSERVATION, ACTION, **options)


# planning


def test_a_plan_is_differentiated_as_finite_differences_say() -> None:
    """Through imagination, costs and solver: the derivative along a direction in all parameters at once."""
    model = small().double()
    belief = model.observe(model.initial((2,)), torch.zeros(2, ACTION).double(), torch.randn(2, OBSERVATION).double())
    belief = RSSMBelief(*(leaf.detach() for leaf in belief))
    noise = torch.randn(3, 2, 20, 4, ACTION, generator=seeded(), dtype=torch.float64)
    solver = dcem.CEM(20, 4, dcem.LML(0.5))
    mpc = MPC(
        model.imagine,
        model.cost,
        4,
        ACTION,
        (-1.0, 1.0),
        solver,
        num_iterations=3,
        continues=model.continues,
        discount=0.9,
    )
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(mpc(belief, noise=noise).action.sum(), parameters, materialize_grads=True)
    direction = [torch.randn(p.shape, generator=seeded(1), dtype=p.dtype) for p in parameters]
    slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
    values = []
    for step in (1e-6, -1e-6):
        moved = copy.deepcopy(mpc)  # and the model with it
        model_of = moved.dynamics.__self__
        with torch.no_grad():
            for parameter, d in zip(model_of.parameters(), direction, strict=True):
                parameter.add_(d, alpha=step)
            values.append(moved(belief, noise=noise).action.sum())
    assert slope != 0
    torch.testing.assert_close((values[0] - values[1]) / 2e-6, slope.detach(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", [dcem.world.RSSM, dcem.world.LatentModel])
def test_a_batch_may_be_a_number(kind) -> None:
    model = kind(3, 2)
    for one, other in zip(model.initial(4), model.initial((4,)), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(TypeError, match="batch_shape: expected an int or a sequence of ints, got 'a'"):
        model.initial("a")


# one kernel a step, where there is one


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """Tells when a kernel is asked for: stand-ins, of which numbers can be told."""
    kept: list[torch.dtype] = []

    def path(h: Tensor, s: Tensor, actions: Tensor, weights: list[Tensor]) -> tuple[Tensor, ...]:
        kept.append(h.dtype)
        return tuple(torch.cat([x[None], torch.full((len(actions), *x.shape), 7).to(x)]) for x in (h, s))

    def perceptron(h: Tensor, s: Tensor, a: Tensor, weights: list[Tensor]) -> Tensor:
        kept.append(h.dtype)
        return torch.full_like(h[..., 0], 7)

    monkeypatch.setattr(fused.operators, "has_kernel", lambda name, device_type: hasattr(fused.operators, name))
    monkeypatch.setattr(fused.operators, "recurrent_rollout", path)
    monkeypatch.setattr(fused.operators, "perceptron", perceptron)
    monkeypatch.setattr(fused, "_allows_tf32", lambda: True)
    monkeypatch.setattr(fused, "_has_room", lambda device: True)
    return kept


def test_a_kernel_is_asked_where_nobody_can_tell(asked: list[torch.dtype]) -> None:
    model, actions = small(), torch.rand(5, ACTION)
    with torch.no_grad():
        assert (model.imagine(model.initial(5), actions).deterministic == 7).all()
        assert (model.cost(model.initial(5), actions) == -7).all()
        assert (model.continues(model.initial(5)) == torch.tensor(7.0).sigmoid()).all()
        asked.clear()
        mpc = MPC(model.imagine, model.cost, 3, ACTION, (-1, 1), dcem.CEM(10, 2), num_iterations=2)
        plan = mpc(model.initial(5))
        assert asked == [torch.float32] * 2 * 3  # a path and its costs, in two iterations and for the answer
        assert (plan.cost == -21).all()
        assert plan.states.deterministic[:, 1:].eq(7).all()
        assert plan.states.deterministic[:, 0].eq(0).all()
        asked.clear()
        compiled = torch.compile(model.imagine, backend="eager", fullgraph=True)
        assert (compiled(model.initial(5), actions).deterministic == 7).all()
        assert asked == [torch.float32]
        asked.clear()
        assert model.imagine(model.initial(5), actions.double()).deterministic.dtype == torch.float32
        assert asked == [torch.float32]  # as the layers take them
        device = actions.device.type
        with torch.autocast(device, torch.bfloat16):
            assert model.imagine(model.initial(5), actions).stochastic.dtype == torch.bfloat16
        half = small().to(torch.bfloat16)
        half.imagine(half.initial(5), actions.bfloat16())
        assert asked[-2:] == [torch.bfloat16] * 2


def around(step: Callable[..., Any]) -> Callable[..., Any]:
    """What does more than the step, and says that it is the step."""

    @functools.wraps(step)
    def function(*of: Any, **options: Any) -> RSSMBelief:
        return RSSMBelief(*(x / 7 for x in step(*of, **options)))

    return function


class Around:
    """The same as an object that passes on all that is asked of it."""

    def __init__(self, step: Callable[..., Any]) -> None:
        self.step = step

    def __call__(self, *of: Any) -> RSSMBelief:
        return RSSMBelief(*(x / 7 for x in self.step(*of)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.step, name)


class Slower(RSSM):
    @functools.wraps(RSSM.imagine)
    def imagine(self, *of: Any, **options: Any) -> RSSMBelief:
        return RSSMBelief(*(x / 7 for x in super().imagine(*of, **options)))


def in_its_place(model: RSSM) -> Callable[..., Any]:
    model.imagine = around(model.imagine)
    return model.imagine


@pytest.mark.parametrize(
    ("kind", "step_of"),
    [
        (Slower, lambda m: m.imagine), (RSSM, in_its_place), (RSSM, lambda m: around(m.imagine)),
        (RSSM, lambda m: Around(m.imagine)), (RSSM, lambda m: around(torch.no_grad()(m.imagine))),
        (RSSM, lambda m: around(torch.compile(m.imagine, backend="eager"))),
        (RSSM, lambda m: functools.partial(around(RSSM.imagine), m)),
    ],
    ids=["subclass", "in its place", "around", "proxy", "no_grad", "compiled", "unbound"],
)  # fmt: skip
def test_a_path_is_followed_step_by_step_where_a_step_is_not_the_models_own(kind, step_of, asked: list) -> None:
    model = kind(OBSERVATION, ACTION, **SMALL)
    with torch.no_grad():
        path = rollout(step_of(model), model.initial(5), torch.rand(5, 4, ACTION))
    assert asked[0] == torch.float32
    assert path.deterministic[:, 1:].eq(1).all()


@pytest.mark.parametrize("wrapped", [torch.no_grad(), functools.partial(torch.compile, backend="eager")])
def test_a_step_with_something_around_it_is_one(wrapped) -> None:
    """Without a kernel, too."""
    model = small()
    with torch.no_grad():
        path = rollout(wrapped(model.imagine), model.initial(5), torch.rand(5, 4, ACTION))
    assert path.deterministic.shape == (5, 5, 16)


@pytest.mark.parametrize("name", ["_remember", "_carried", "prior", "check"])
def test_what_is_done_otherwise_is_done_in_each_step(name: str, asked: list[torch.dtype]) -> None:
    """In a subclass and on the object."""
    calls = []

    def noted(*of: Any) -> Any:
        calls.append(name)
        return getattr(RSSM, name)(*of)

    models = [type("Noted", (RSSM,), {name: noted})(OBSERVATION, ACTION, **SMALL), small()]
    setattr(models[1], name, functools.partial(noted, models[1]))
    for model in models:
        calls.clear()
        with torch.no_grad():
            rollout(model.imagine, model.initial(5), torch.rand(5, 4, ACTION))
        assert calls == [name] * 4
        assert len(asked) in (0, 4)  # a check keeps no step from being one kernel
        asked.clear()


def test_a_path_at_once_lies_in_memory_as_one_of_steps_does(asked: list[torch.dtype]) -> None:
    model = small()
    with torch.no_grad():
        path = rollout(model.imagine, model.initial(5), torch.rand(5, 4, ACTION))
        plan = MPC(model.imagine, model.cost, 3, ACTION, (-1, 1), dcem.CEM(10, 2), num_iterations=2)(model.initial(5))
    assert asked == [torch.float32] * 7
    for states in (path, plan.states):
        assert all(x.is_contiguous() for x in states)


def test_one_activation_may_stand_twice(asked: list[torch.dtype]) -> None:
    model = small()
    model.reward_net[3] = model.reward_net[1]
    with torch.no_grad():
        assert (model.cost(model.initial(5), torch.rand(5, ACTION)) == -7).all()


def test_a_belief_of_another_kind_is_taken_as_it_is_without_kernels(asked: list[torch.dtype]) -> None:
    @dataclasses.dataclass
    class Belief:
        deterministic: Tensor
        stochastic: Tensor

    model, belief = small(), small().initial(5)
    expected = model.imagine(belief, torch.ones(5, ACTION))
    with torch.no_grad():
        assert torch.equal(model.continues([*belief]), model.continues(belief))
        asked.clear()
        found = model.imagine(Belief(*belief), torch.ones(5, ACTION))
    assert asked == []
    assert torch.equal(found.deterministic, expected.deterministic)


def test_a_path_at_once_is_checked_as_its_steps_are(asked: list[torch.dtype]) -> None:
    model = small()
    with torch.no_grad(), pytest.raises(ValueError, match="action: expected"):
        rollout(model.imagine, model.initial(5), torch.rand(5, 4, ACTION + 1))
    assert asked == []


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's own, of a GRU under vmap
def test_and_not_where_it_would_be_wrong(asked: list[torch.dtype], monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients, transforms, draws, exports, dtypes without a kernel, steps and layers of another kind, hooks."""

    class Doubled(torch.nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    class Remembers(RSSM):
        def _remember(self, belief: RSSMBelief, action: Tensor) -> Tensor:
            return 2 * super()._remember(belief, action)

    class Carries(RSSM):
        def _carried(self, deterministic: Tensor, *rest: Any) -> RSSMBelief:
            return super()._carried(deterministic, *rest)

    class Quantized(Tensor):
        """Numbers that are not behind its address."""

    def quantize(model: RSSM) -> None:
        weight = model.embed[0].weight.detach().as_subclass(Quantized)
        model.embed[0].weight = torch.nn.Parameter(weight, requires_grad=False)

    def steps(model: RSSM, dtype: torch.dtype = torch.float32) -> None:
        model.imagine(model.initial(5), torch.rand(5, ACTION, dtype=dtype))
        rollout(model.imagine, model.initial(5), torch.rand(5, 2, ACTION, dtype=dtype))

    model = small()
    steps(model)  # a gradient may be asked of it
    with torch.no_grad():
        torch.func.vmap(model.imagine)(model.initial(5), torch.rand(5, ACTION))
        if model.cell.bias_hh.is_cpu:  # on a GPU torch's own step has no forward mode
            torch.func.jvp(lambda a: model.imagine(model.initial(5), a), *[(torch.rand(5, ACTION),)] * 2)
        with torch.autograd.forward_ad.dual_level():
            steps(model)
        steps(small(carry="sample"))
        steps(small().double(), torch.float64)
        with torch.autocast(model.cell.bias_hh.device.type, torch.bfloat16):  # which leaves doubles as they are
            steps(small().double(), torch.float64)
        for kind in (Remembers, Carries):
            steps(kind(OBSERVATION, ACTION, **SMALL))
        steps(RSSM(OBSERVATION, ACTION, **SMALL | {"stochastic_size": fused.WIDEST + 1}))
        belief, action = model.initial(5), torch.rand(5, ACTION)
        for strict in (False, True):
            torch.export.export(_Step(model), (belief, action), strict=strict)
        for change in (
            quantize,
            lambda m: m.embed.__setitem__(0, Doubled(4 + ACTION, 16)),
            lambda m: m.prior_net.__setitem__(1, torch.nn.SiLU()),
            lambda m: m.prior_net[0].register_forward_hook(lambda *_: None),
            lambda m: torch.nn.utils.parametrizations.weight_norm(m.cell, "weight_hh"),
            lambda m: setattr(m.cell, "forward", m.cell.forward),
            lambda m: m.prior_net.__setitem__(2, torch.nn.Linear(16, 8, bias=False)),
            lambda m: m.prior_net.insert(0, torch.nn.Linear(16, 16)),
        ):
            other = small()
            change(other)
            steps(other)
        for change in (
            lambda m: m.embed.__setitem__(0, torch.nn.Linear(4 + ACTION + 2, 16)),
            lambda m: setattr(m, "cell", m.cell.double()),
            lambda m: m.prior_net[0].to("meta"),
        ):
            other = small()
            change(other)
            with pytest.raises(RuntimeError):  # of the layers, not numbers from beyond the weights
                other.imagine(belief, action)
        with pytest.raises(RuntimeError):
            model.imagine(belief._replace(stochastic=torch.zeros(1, 4)), action)
        for name in ("_allows_tf32", "_has_room"):
            with monkeypatch.context() as patch:
                patch.setattr(fused, name, lambda *of: False)
                steps(model)
    assert asked == []


class _Step(torch.nn.Module):
    def __init__(self, model: RSSM) -> None:
        super().__init__()
        self.model = model

    def forward(self, belief: RSSMBelief, action: Tensor) -> RSSMBelief:
        return self.model.imagine(belief, action)


@pytest.mark.filterwarnings("ignore:Please use the new API settings to control TF32")  # torch 2.9, of its older name
def test_tf32_is_allowed_by_either_of_torchs_names_and_a_small_gpu_has_no_room(monkeypatch) -> None:
    matmul, before = torch.backends.cuda.matmul, torch.get_float32_matmul_precision()
    try:
        for older, allowed in (("high", True), ("medium", True), ("highest", False)):
            torch.set_float32_matmul_precision(older)
            assert fused._allows_tf32() == allowed
        for newer, allowed in (("tf32", True), ("ieee", False)):  # after which torch refuses to tell the older
            matmul.fp32_precision = newer
            assert fused._allows_tf32() == allowed
    finally:
        torch.set_float32_matmul_precision(before)
    for kilobytes, room in ((227, True), (163, False), (99, False)):  # of an H100, an A100, a GPU for desktops
        properties = SimpleNamespace(shared_memory_per_block_optin=kilobytes * 1024)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, of=properties: of)
        assert fused._has_room(torch.device("cuda")) == room


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("rows", [1000, 1013, 9000])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-3), (torch.bfloat16, 0.1)])
def test_a_gpu_imagines_what_the_layers_do(rows: int, dtype: torch.dtype, tolerance: float) -> None:
    """Kernels that begin before those they follow have ended read what these wrote, also where they are replayed."""
    torch.manual_seed(0)
    model = RSSM(17, 6).cuda().requires_grad_(False)
    belief, actions = model.initial((rows,)), torch.zeros(rows, 12, 6, device="cuda")
    before, stream, graph = torch.get_float32_matmul_precision(), torch.cuda.Stream(), torch.cuda.CUDAGraph()

    def imagine() -> tuple[Tensor, ...]:
        path = rollout(model.imagine, belief, actions)
        before_each = RSSMBelief(*(x[:, :-1] for x in path))
        return *path, model.cost(before_each, actions), model.continues(before_each)

    try:
        torch.set_float32_matmul_precision("high")
        half = torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16, cache_enabled=False)
        with torch.cuda.stream(stream), torch.no_grad(), half:
            imagine()
            with torch.cuda.graph(graph, stream=stream):
                found = imagine()
            for _ in range(5):
                for x in (*belief, actions):
                    x.uniform_(-1, 1)
                graph.replay()
                again = imagine()
                for one, other in zip(found, again, strict=True):
                    assert one.dtype == dtype
                    assert torch.equal(one, other)
        torch.cuda.synchronize()
        torch.set_float32_matmul_precision("highest")
        exact = copy.deepcopy(model).double()
        double = RSSMBelief(*(x.double() for x in belief))
        path = rollout(exact.imagine, double, actions.double())
        before_each = RSSMBelief(*(x[:, :-1] for x in path))
        expected = (*path, exact.cost(before_each, actions.double()), exact.continues(before_each))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=0, atol=tolerance)
    finally:
        torch.set_float32_matmul_precision(before)
