"""What every world model has to do: inherit `WorldModelContract` and define `make`."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

import dcem
from dcem._tree import leaves, map_tensors
from dcem.control import MPC
from dcem.world import WorldModel

OBSERVATION, ACTION, HORIZON = 3, 2, 4
LEADS = [(), (5,), (2, 3)]
LOW, HIGH = -1.0, 1.0


def make_sequences(batch: int = 8, steps: int = 6, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """Noisy sequences of a damped linear system driven by random actions; nearer to zero is better."""
    tensordict = pytest.importorskip("tensordict")
    generator = torch.Generator().manual_seed(seed)
    state = torch.randn(batch, OBSERVATION, generator=generator)
    mix = torch.randn(ACTION, OBSERVATION, generator=generator)
    observations, actions, rewards = [state], [], []
    for _ in range(steps):
        action = torch.rand(batch, ACTION, generator=generator) * 2 - 1
        rewards.append(-state.square().sum(-1, keepdim=True) - 0.1 * action.square().sum(-1, keepdim=True))
        state = 0.9 * state.roll(1, -1) + 0.3 * action @ mix + 0.05 * torch.randn(state.shape, generator=generator)
        observations.append(state)
        actions.append(action)
    done = torch.zeros(batch, steps, 1, dtype=torch.bool)
    done[: batch // 4, -1] = True
    after = {
        "observation": torch.stack(observations[1:], 1).to(dtype),
        "reward": torch.stack(rewards, 1).to(dtype),
        "terminated": done,
        "done": done.clone(),
    }
    data = {"observation": torch.stack(observations[:-1], 1).to(dtype), "action": torch.stack(actions, 1).to(dtype)}
    return tensordict.TensorDict({**data, "next": after}, batch_size=(batch, steps))


def total(losses: dict[str, Tensor]) -> Tensor:
    return sum((value for name, value in losses.items() if name.startswith("loss_")), start=torch.zeros(()))


def optional(model: WorldModel) -> dict[str, Any]:
    """What MPC takes of a model beyond dynamics and cost, as far as this MPC and this model have it."""
    names = {"terminal_cost": "terminal_cost", "proposals": "propose", "continues": "continues"}
    taken = inspect.signature(MPC).parameters
    return {option: getattr(model, name) for option, name in names.items() if option in taken and hasattr(model, name)}


class WorldModelContract:
    planned_through: tuple[str, ...] = ()
    """Beginnings of the names of parameters that the cost of an imagined rollout depends on."""
    falling: tuple[str, ...] = ()
    """The losses that fall while a model learns; all of them by default. Those that chase a moving target need not."""

    def make(self) -> WorldModel:
        """A small model of `OBSERVATION` and `ACTION` numbers, which draws nothing when it observes and imagines."""
        raise NotImplementedError

    # what the tests share

    def seeded(self, seed: int = 0) -> WorldModel:
        torch.manual_seed(seed)
        return self.make()

    def inputs(self, *lead: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        draws = torch.randn(*lead, ACTION + OBSERVATION, generator=generator).to(dtype)
        return draws[..., :ACTION].tanh(), draws[..., ACTION:]

    def belief(self, model: WorldModel, *lead: int, dtype: torch.dtype = torch.float32) -> Any:
        belief = model.initial(lead)
        for seed in range(2):
            belief = model.observe(belief, *self.inputs(*lead, dtype=dtype, seed=seed))
        return belief

    def everything(self, model: WorldModel, *lead: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """All that a model says of some observations."""
        belief, (action, _) = self.belief(model, *lead, dtype=dtype), self.inputs(*lead, dtype=dtype, seed=7)
        ahead = model.imagine(belief, action)
        said = [*leaves(belief), *leaves(ahead), model.cost(belief, action)]
        return said + [getattr(model, name)(ahead) for name in ("terminal_cost", "continues") if hasattr(model, name)]

    def imagined_cost(self, model: WorldModel, belief: Any, actions: Tensor) -> Tensor:
        cost = torch.zeros(())
        for action in actions.unbind(-2):
            cost = cost + model.cost(belief, action)
            belief = model.imagine(belief, action)
        return cost

    # shapes

    @pytest.mark.parametrize("lead", LEADS)
    def test_any_leading_axes(self, lead: tuple[int, ...]) -> None:
        model = self.seeded()
        belief, (action, _) = self.belief(model, *lead), self.inputs(*lead)
        ahead = model.imagine(belief, action)
        shapes = [leaf.shape for leaf in leaves(model.initial(lead))]
        assert shapes
        assert all(shape[:-1] == lead for shape in shapes), "each tensor of a belief is (*batch, n)"
        assert [leaf.shape for leaf in leaves(belief)] == shapes
        assert [leaf.shape for leaf in leaves(ahead)] == shapes
        assert type(ahead) is type(belief) is type(model.initial(lead))
        assert model.cost(belief, action).shape == lead
        if hasattr(model, "terminal_cost"):
            assert model.terminal_cost(belief).shape == lead
        if hasattr(model, "continues"):
            assert model.continues(belief).shape == lead
            assert ((model.continues(belief) >= 0) & (model.continues(belief) <= 1)).all()
        if hasattr(model, "propose"):
            assert model.propose(belief, HORIZON, 7).shape == (*lead, 7, HORIZON, ACTION)

    def test_axes_are_only_axes(self) -> None:
        model = self.seeded().double()
        flat, folded = (self.everything(model, *lead, dtype=torch.float64) for lead in [(6,), (2, 3)])
        for one, other in zip(flat, folded, strict=True):
            torch.testing.assert_close(one, other.flatten(0, 1), rtol=1e-10, atol=1e-10)

    def test_mates_in_a_batch_do_not_matter(self) -> None:
        model = self.seeded()
        belief, (action, seen) = self.belief(model, 4), self.inputs(4, seed=3)

        def after(belief: Any, action: Tensor, seen: Tensor) -> list[Tensor]:
            ahead = model.imagine(belief, action)
            more = [getattr(model, name)(ahead) for name in ("terminal_cost", "continues") if hasattr(model, name)]
            return [*leaves(model.observe(belief, action, seen)), *leaves(ahead), model.cost(belief, action), *more]

        others = torch.tensor([False, True, True, True]).unsqueeze(-1)
        belief_2 = map_tensors(lambda leaf: torch.where(others, 3 * leaf + 1, leaf), belief)
        action_2, seen_2 = (torch.where(others, -2 * x, x) for x in (action, seen))
        for one, other in zip(after(belief, action, seen), after(belief_2, action_2, seen_2), strict=True):
            assert torch.equal(one[0], other[0])
            assert not torch.equal(one[1:], other[1:])

    # gradients

    def test_gradients_reach_the_parameters_through_imagination(self) -> None:
        model = self.seeded().double()
        actions = self.inputs(5, HORIZON, dtype=torch.float64)[0].requires_grad_()
        self.imagined_cost(model, self.belief(model, 5, dtype=torch.float64), actions).sum().backward()
        assert actions.grad is not None
        assert (actions.grad != 0).any()
        assert self.planned_through
        for prefix in self.planned_through:
            named = [(name, p) for name, p in model.named_parameters() if name.startswith(prefix)]
            assert named, prefix
            assert any(p.grad is not None and (p.grad != 0).any() for _, p in named), prefix
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())

    def test_gradients_are_those_of_finite_differences(self) -> None:
        model = self.seeded().double()
        belief = map_tensors(Tensor.detach, self.belief(model, dtype=torch.float64))
        actions = self.inputs(HORIZON, dtype=torch.float64)[0].requires_grad_()
        assert torch.autograd.gradcheck(lambda a: self.imagined_cost(model, belief, a), actions)

    # planning

    @pytest.mark.parametrize("lead", [(), (3,)])
    def test_a_controller_plans_through_it_as_it_is(self, lead: tuple[int, ...]) -> None:
        model, generator = self.seeded(), torch.Generator().manual_seed(0)
        solver = dcem.CEM(30, 5, dcem.LML(0.3))
        mpc = MPC(model.imagine, model.cost, HORIZON, ACTION, (LOW, HIGH), solver, num_iterations=3, **optional(model))
        belief = self.belief(model, *lead)
        plan = mpc(belief, generator=generator)
        assert plan.actions.shape == (*lead, HORIZON, ACTION)
        assert ((plan.actions >= LOW) & (plan.actions <= HIGH)).all()
        assert type(plan.states) is type(belief)
        assert plan.cost.isfinite().all()
        learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(plan.actions.sum(), learned, allow_unused=True)
        assert any(g is not None and (g != 0).any() for g in gradients)
        again = mpc(belief, warm_start=plan, generator=generator)
        assert again.actions.shape == plan.actions.shape

    # learning

    def test_losses_are_scalars_and_the_rest_is_detached(self) -> None:
        losses = self.seeded().loss(make_sequences())
        assert any(name.startswith("loss_") for name in losses)
        for name, value in losses.items():
            assert value.shape == (), name
            assert value.isfinite(), name
            assert value.requires_grad == name.startswith("loss_"), name

    def test_the_loss_falls(self) -> None:
        model, sequences = self.seeded(), make_sequences(16)
        optimizer, history = torch.optim.Adam(model.parameters(), lr=1e-2), []
        for _ in range(25):
            losses = model.loss(sequences)
            optimizer.zero_grad()
            total(losses).backward()
            optimizer.step()
            history.append(sum(losses[name].item() for name in self.falling or losses if name.startswith("loss_")))
        assert sum(history[-5:]) < 0.8 * sum(history[:5])

    def test_sequences_of_float64_teach_a_float32_model(self) -> None:
        losses = self.seeded().loss(make_sequences(dtype=torch.float64))
        assert all(value.dtype == torch.float32 for value in losses.values())

    # as a module

    def test_state_dict_round_trip(self) -> None:
        one, other = self.seeded(0), self.seeded(1)
        assert any(
            not torch.equal(a, b) for a, b in zip(self.everything(one, 2), self.everything(other, 2), strict=True)
        )
        other.load_state_dict(one.state_dict())
        for a, b in zip(self.everything(one, 2), self.everything(other, 2), strict=True):
            assert torch.equal(a, b)

    def test_float64(self) -> None:
        model = self.seeded().double()
        assert all(leaf.dtype == torch.float64 for leaf in self.everything(model, 2, dtype=torch.float64))
        losses = model.loss(make_sequences(dtype=torch.float64))
        assert all(value.dtype == torch.float64 for value in losses.values())
        if hasattr(model, "propose"):
            assert model.propose(self.belief(model, 2, dtype=torch.float64), HORIZON, 3).dtype == torch.float64

    def test_a_deep_copy_lives_by_itself(self) -> None:
        model = self.seeded()
        before = self.everything(model, 2)
        twin = copy.deepcopy(model)
        for parameter in twin.parameters():
            parameter.data.add_(0.1)
        for a, b in zip(before, self.everything(model, 2), strict=True):
            assert torch.equal(a, b)
        assert any(not torch.equal(a, b) for a, b in zip(before, self.everything(twin, 2), strict=True))

    def test_functional_call(self) -> None:
        one, other, sequences = self.seeded(0), self.seeded(1), make_sequences()
        torch.manual_seed(0)
        expected = one.loss(sequences)
        torch.manual_seed(0)
        given = {**dict(one.named_parameters()), **dict(one.named_buffers())}
        losses = torch.func.functional_call(other, given, (sequences,))
        for name, value in expected.items():
            assert torch.equal(value, losses[name]), name

    def test_a_seed_replays(self) -> None:
        def everything() -> list[Tensor]:
            model = self.seeded(5)
            told = [*self.everything(model, 2), *model.loss(make_sequences()).values()]
            return told + ([model.propose(self.belief(model, 2), HORIZON, 3)] if hasattr(model, "propose") else [])

        for one, other in zip(everything(), everything(), strict=True):
            assert torch.equal(one, other)

    # bad input

    @pytest.mark.cpu
    @pytest.mark.parametrize("lead", [(), (4,)])
    def test_bad_observations_and_actions(self, lead: tuple[int, ...]) -> None:
        model = self.seeded()
        belief, (action, seen) = model.initial(lead), self.inputs(*lead)
        broken = seen.clone()
        broken[..., 1] = torch.nan
        with pytest.raises(ValueError, match="observation: expected shape"):
            model.observe(belief, action, seen[..., :-1])
        with pytest.raises(ValueError, match="observation: expected finite numbers, got nan"):
            model.observe(belief, action, broken)
        with pytest.raises(ValueError, match="action: expected shape"):
            model.observe(belief, action[..., :-1], seen)
        with pytest.raises(ValueError, match="action: expected shape"):
            model.imagine(belief, torch.cat([action, action], -1))
        with pytest.raises(ValueError, match="action: expected shape"):
            model.cost(belief, torch.cat([action, action], -1))
        with pytest.raises(TypeError, match="belief: expected a tensor or a tree of tensors"):
            model.imagine(None, action)
        for method in (model.imagine, model.cost):  # an MPC that was given the observation
            with pytest.raises(ValueError, match=r"belief: expected \(\*batch, \d+.* got .*dcem.rl.policy"):
                method(torch.zeros(*lead, 97), action)
        with pytest.raises(TypeError, match="action: expected a floating-point tensor"):
            model.imagine(belief, torch.ones(*lead, ACTION, dtype=torch.long))

    def test_bad_sequences(self) -> None:
        model, sequences = self.seeded(), make_sequences()
        with pytest.raises(TypeError, match="sequences: expected a TensorDict"):
            model.loss({"observation": sequences["observation"]})
        with pytest.raises(ValueError, match="T >= 2"):
            model.loss(sequences[:, :1])
        with pytest.raises(ValueError, match=r"batch size \(B, T\)"):
            model.loss(sequences[0])
        for key in ["observation", "action", ("next", "reward"), ("next", "terminated")]:
            with pytest.raises(ValueError, match="is missing"):
                model.loss(sequences.exclude(key))
        for key in ["observation", "action", ("next", "reward")]:
            wide = sequences.clone()
            wide[key] = torch.cat([wide[key], wide[key]], -1)
            with pytest.raises(ValueError, match="expected shape"):
                model.loss(wide)
            broken = sequences.clone()
            broken[key][1, 2, 0] = torch.nan
            with pytest.raises(ValueError, match="expected finite numbers, got nan"):
                model.loss(broken)
        for name in ("terminated", "truncated", "done"):  # as in what a collector returns: an episode after the other
            for end in (torch.zeros(8, 6, 1, dtype=torch.bool), torch.zeros(8, 6)):
                end[2, -1] = 1  # is none in between
                crossing = sequences.clone()
                crossing["next", name] = end
                model.loss(crossing)
                end[5, 3] = 1
                with pytest.raises(ValueError, match=rf'"{name}"\) at step 3 of sequence 5, .* dcem.world.replay'):
                    model.loss(crossing)
