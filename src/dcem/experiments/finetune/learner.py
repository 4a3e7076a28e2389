"""A policy with its environments: collect, evaluate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import AddStateIndependentNormalScale, NormalParamExtractor, TensorDictModule
from torch import Tensor, nn
from torchrl.data import Bounded
from torchrl.envs import ExplorationType, TransformedEnv, set_exploration_type
from torchrl.modules import MLP, ProbabilisticActor, TanhNormal

from dcem.experiments.finetune.settings import JUDGES_SEED
from dcem.experiments.finetune.task import Task, make_env
from dcem.rl import Actor, parameter_groups, parts


class Sampler:
    """Steps of a policy in environments, going on where it stopped; its state is a part of a checkpoint."""

    def __init__(self, env: TransformedEnv, policy: Callable[[TensorDictBase], TensorDictBase], scale: float) -> None:
        self.env, self.policy, self.scale = env, policy, scale
        self.carried: TensorDictBase | None = None

    @torch.no_grad()
    def __call__(self, num_steps: int) -> TensorDictBase:
        """`(num_envs, num_steps)` steps with exploration; `("next", "scaled")` is the reward to learn from."""
        steps = []
        carried = self.env.reset() if self.carried is None else self.carried
        with set_exploration_type(ExplorationType.RANDOM):
            for _ in range(num_steps):
                step, carried = self.env.step_and_maybe_reset(self.policy(carried))
                steps.append(step)
        self.carried = carried
        data: TensorDictBase = TensorDict.stack(steps, 1)
        data.names = [None, "time"]
        return data.set(("next", "scaled"), self.scale * data["next", "reward"])

    def state_dict(self) -> dict[str, Any]:
        """Where the environments stand."""
        carried = {} if self.carried is None else self.carried.to_dict()
        return {"carried": carried, "generator": self.env.base_env.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on there."""
        self.carried = TensorDict(state["carried"], self.env.batch_size) if state["carried"] else None
        self.env.base_env.generator.set_state(state["generator"].cpu())


class Learner:
    """A policy with its environments and what is learned in it.

    Args:
        task: the plant and the task.
        policy: a controller or a network.
        seed: of the environments.
        num_judged: episodes of an evaluation.
    """

    def __init__(self, task: Task, policy: ProbabilisticActor, seed: int, num_judged: int = 64) -> None:
        self.task, self.policy, self.seed = task, policy, seed
        self.is_controller = isinstance(policy, Actor)
        self.judges = self.envs(num_judged)

    def envs(self, num_envs: int) -> TransformedEnv:
        """Environments, which carry what a controller has to remember."""
        primer = (self.policy.make_tensordict_primer(),) if self.is_controller else ()
        return make_env(self.task, num_envs, self.seed, *primer)

    def explore(self, share: float) -> None:
        """Set the std of a controller's exploration to this share of the task's; a network learns its own."""
        if self.is_controller:
            self.policy.planner.std.fill_(share * self.task.std)

    def evaluate(self) -> dict[str, float]:
        """Returns of episodes without exploration, from the same states at each evaluation of each method."""
        self.judges.set_seed(JUDGES_SEED)
        with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
            data = self.judges.rollout(self.task.num_steps, self.policy, break_when_any_done=False)
        returns = data["next", "reward"].sum((1, 2))
        return {"return": returns.mean().item(), "return_median": returns.median().item()}

    def groups(self, lr: float) -> list[dict[str, Any]]:
        """What is learned in the policy, for an optimiser."""
        if not self.is_controller:
            return [{"params": list(self.policy.parameters()), "lr": lr}]
        learned = {name: of for name, of in parts(self.policy).items() if all(p.requires_grad for p in of)}
        return parameter_groups(self.policy, dict.fromkeys(learned, lr))

    def likelihood(self, data: TensorDictBase) -> dict[str, Tensor]:
        """How well a controller's model predicts the next observation, and its cost the reward: minus the
        log-likelihoods of unit variance. That of the reward is at its best constant, which changes no plan.
        """
        mpc = self.policy.controller.mpc
        observation, action = data["observation"], data["action"]
        error = mpc.dynamics(observation, action) - data["next", "observation"]
        surprise = mpc.cost(observation, action) + data["next", "reward"].squeeze(-1)
        return {
            "loss_dynamics": 0.5 * error.square().sum(-1).mean(),
            "loss_reward": 0.5 * surprise.var(correction=0),
        }

    def parameters(self) -> dict[str, float]:
        """What a controller believes now, for the log."""
        if not self.is_controller:
            return {}
        mpc = self.policy.controller.mpc
        physics = dict(zip(mpc.dynamics.names, mpc.dynamics.log.exp().tolist(), strict=True))
        return physics | {f"weight_{i}": weight for i, weight in enumerate(mpc.cost.log.exp().tolist())}


def network(task: Task, algorithm: str) -> ProbabilisticActor:
    """A policy from scratch, as TorchRL's examples make them: its std is one parameter for PPO, a head for SAC."""
    plant = task.plant()
    size, (low, high) = plant.state_shape[0], plant.bounds
    net: nn.Module
    if algorithm == "ppo":
        net = MLP(size, 1, num_cells=[64, 64], activation_class=nn.Tanh)
        nn.init.orthogonal_(net[-1].weight, 0.01)  # type: ignore[index]
        module = nn.Sequential(net, AddStateIndependentNormalScale(1))
    else:
        net = MLP(size, 2, num_cells=[128, 128], activation_class=nn.ReLU)
        module = nn.Sequential(InUnits(task.units), net, NormalParamExtractor(scale_lb=1e-4))
    return ProbabilisticActor(
        TensorDictModule(module, ["observation"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        spec=Bounded(low, high, (1,)),
        distribution_class=TanhNormal,
        distribution_kwargs={"low": low, "high": high},
        return_log_prob=True,
        log_prob_key="action_log_prob",
    )


class ActionValue(nn.Module):
    """`Q(observation, action)`."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        units = (*task.units, task.plant().bounds[1])
        self.net = nn.Sequential(InUnits(units), MLP(len(units), 1, num_cells=[128, 128], activation_class=nn.ReLU))

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        value: Tensor = self.net(torch.cat([observation, action], -1))
        return value


class InUnits(nn.Module):
    """Divide by units, so that what a network sees is of order one."""

    units: Tensor

    def __init__(self, units: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("units", torch.tensor(units))

    def forward(self, x: Tensor) -> Tensor:
        return x / self.units
