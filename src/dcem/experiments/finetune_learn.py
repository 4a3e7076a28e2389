"""PPO and SAC by TorchRL, the same loops for a controller and for a network: collect, learn, evaluate; resumable."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import AddStateIndependentNormalScale, NormalParamExtractor, TensorDictModule
from torch import Tensor, nn
from torchrl.data import Bounded, LazyTensorStorage, ReplayBuffer
from torchrl.envs import ExplorationType, TransformedEnv, set_exploration_type
from torchrl.modules import MLP, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import ClipPPOLoss, SACLoss, SoftUpdate
from torchrl.objectives.value import GAE

from dcem.experiments.finetune_task import Task, make_env
from dcem.experiments.run import Run
from dcem.rl import Actor, parameter_groups, parts, total_loss

JUDGES_SEED = 1_000_000


@dataclass
class PPO:
    """Settings of proximal policy optimisation.

    Attributes:
        num_steps: environment steps in all.
        num_envs: side by side; an iteration is one episode of each.
        num_epochs: over an iteration's steps.
        batch_size: of a minibatch.
        lr: of what is learned in the policy.
        critic_lr: of the value network.
        critic_epochs: over an iteration's steps for the value network alone, before the policy's.
        discount: per step.
        gae_lambda: of the advantages.
        clip: of the ratio.
        target_kl: an iteration's policy updates end beyond it.
        entropy: weight of the bonus.
        max_grad_norm: of the policy's gradient.
        eval_every: environment steps between evaluations; at least an iteration's.
    """

    num_steps: int = 0
    num_envs: int = 8
    num_epochs: int = 4
    batch_size: int = 100
    lr: float = 0.1
    critic_lr: float = 3e-3
    critic_epochs: int = 10
    discount: float = 0.97
    gae_lambda: float = 0.9
    clip: float = 0.3
    target_kl: float = 0.5
    entropy: float = 0.0
    max_grad_norm: float = 1.0
    eval_every: int = 1


@dataclass
class SAC:
    """Settings of soft actor-critic.

    Attributes:
        num_steps: environment steps in all.
        num_envs: side by side.
        warm_up: steps before learning begins.
        steps_per_update: environment steps for each update.
        batch_size: of an update.
        lr: of what is learned in the policy.
        critic_lr: of the value networks and the temperature.
        discount: per step.
        tau: by how much the target networks follow.
        eval_every: environment steps between evaluations.
    """

    num_steps: int = 0
    num_envs: int = 4
    warm_up: int = 400
    steps_per_update: int = 4
    batch_size: int = 64
    lr: float = 0.02
    critic_lr: float = 3e-3
    discount: float = 0.97
    tau: float = 0.01
    eval_every: int = 400


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
        """How well a controller's model predicts the next observation: minus the log-likelihood of unit variance."""
        model = self.policy.controller.mpc.dynamics
        error = model(data["observation"], data["action"]) - data["next", "observation"]
        return {"loss_dynamics": 0.5 * error.square().sum(-1).mean()}

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
        module = nn.Sequential(net, NormalParamExtractor(scale_lb=1e-4))
    return ProbabilisticActor(
        TensorDictModule(module, ["observation"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        spec=Bounded(low, high, (1,)),
        distribution_class=TanhNormal,
        distribution_kwargs={"low": low, "high": high},
        return_log_prob=True,
        log_prob_key="action_log_prob",
    )


def ppo(learner: Learner, settings: PPO, run: Run, likelihood: float = 0.0) -> None:
    """Proximal policy optimisation; an iteration is an episode of each environment."""
    task, policy = learner.task, learner.policy
    sampler = Sampler(learner.envs(settings.num_envs), policy, task.reward_scale)
    critic = ValueOperator(MLP(task.plant().state_shape[0], 1, num_cells=[64, 64], activation_class=nn.Tanh))
    advantages = GAE(gamma=settings.discount, lmbda=settings.gae_lambda, value_network=critic, deactivate_vmap=True)
    loss = ClipPPOLoss(
        policy, critic, clip_epsilon=settings.clip, entropy_bonus=settings.entropy > 0,
        entropy_coeff=settings.entropy, critic_coeff=1.0, loss_critic_type="l2",
    )  # fmt: skip
    advantages.set_keys(reward="scaled")
    loss.set_keys(reward="scaled")
    optimizer = torch.optim.Adam(learner.groups(settings.lr), eps=1e-5)
    critic_optimizer = torch.optim.Adam(critic.parameters(), lr=settings.critic_lr)
    run.track(policy=policy, critic=critic, optimizer=optimizer, critic_optimizer=critic_optimizer, sampler=sampler)
    _log(learner, run, 0)
    weights = {"policy": 1.0, "likelihood": likelihood}
    frames = settings.num_envs * task.num_steps
    for step in run.steps(math.ceil(settings.num_steps / frames), 1, "ppo"):
        data = sampler(task.num_steps)
        for _ in range(settings.critic_epochs):
            advantages(data)
            for batch in _minibatches(data.reshape(-1), settings.batch_size):
                critic_optimizer.zero_grad()
                loss.loss_critic(batch)[0].mean().backward()
                critic_optimizer.step()
        advantages(data)
        advantage = data["advantage"]
        data["advantage"] = (advantage - advantage.mean()) / (advantage.std() + 1e-6)
        kl = _improve(loss, data.reshape(-1), settings, weights, learner, [optimizer, critic_optimizer])
        if step * frames % settings.eval_every < frames:
            _log(learner, run, step * frames, explored=data["next", "reward"].sum((1, 2)).mean().item(), kl=kl)


def _improve(
    loss: ClipPPOLoss,
    data: TensorDictBase,
    settings: PPO,
    weights: dict[str, float],
    learner: Learner,
    optimizers: list[torch.optim.Optimizer],
) -> float:
    """Epochs of minibatches, until the policy has moved too far."""
    kl = 0.0
    for _ in range(settings.num_epochs):
        for batch in _minibatches(data, settings.batch_size):
            losses = loss(batch)
            kl = losses["kl_approx"].mean().item()
            if abs(kl) > settings.target_kl:
                return kl
            for optimizer in optimizers:
                optimizer.zero_grad()
            total = total_loss(weights, {"policy": losses, "likelihood": lambda: learner.likelihood(batch)})  # noqa: B023
            total.backward()  # type: ignore[no-untyped-call]
            for optimizer in optimizers:
                _clip(optimizer, settings.max_grad_norm)
                optimizer.step()
    return kl


def sac(learner: Learner, settings: SAC, run: Run) -> None:
    """Soft actor-critic with replayed steps; of a controller the temperature is fixed, since its std is."""
    task, policy = learner.task, learner.policy
    sampler = Sampler(learner.envs(settings.num_envs), policy, task.reward_scale)
    value = ValueOperator(ActionValue(task), in_keys=["observation", "action"])
    fixed = {"fixed_alpha": True, "alpha_init": 1e-3} if learner.is_controller else {"alpha_init": 0.1}
    loss = SACLoss(policy, value, delay_qvalue=True, loss_function="l2", **fixed)
    loss.make_value_estimator(gamma=settings.discount)
    loss.set_keys(reward="scaled")
    target = SoftUpdate(loss, tau=settings.tau)
    critics = [p for p in loss.qvalue_network_params.parameters() if p.requires_grad]
    others = [] if learner.is_controller else [loss.log_alpha]
    optimizer = torch.optim.Adam(
        [*learner.groups(settings.lr), {"params": [*critics, *others], "lr": settings.critic_lr}]
    )
    replay = ReplayBuffer(storage=LazyTensorStorage(settings.num_steps), batch_size=settings.batch_size)
    run.track(loss=loss, policy=policy, optimizer=optimizer, sampler=sampler, replay=replay)
    _log(learner, run, 0)
    for step in run.steps(math.ceil(settings.num_steps / settings.num_envs), 100, "sac"):
        frames, before = step * settings.num_envs, (step - 1) * settings.num_envs
        replay.extend(sampler(1).reshape(-1))
        due, done = (max(0, at - settings.warm_up) // settings.steps_per_update for at in (frames, before))
        for _ in range(due - done):
            losses = loss(replay.sample())
            optimizer.zero_grad()
            total_loss({"sac": 1.0}, {"sac": losses}).backward()  # type: ignore[no-untyped-call]
            _clip(optimizer, 10.0)
            optimizer.step()
            target.step()
        if frames % settings.eval_every < settings.num_envs:
            _log(learner, run, frames)


class ActionValue(nn.Module):
    """`Q(observation, action)`, of actions in units of their bound."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        plant = task.plant()
        self.unit = plant.bounds[1]
        self.net = MLP(plant.state_shape[0] + 1, 1, num_cells=[128, 128], activation_class=nn.ReLU)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        value: Tensor = self.net(torch.cat([observation, action / self.unit], -1))
        return value


def _minibatches(data: TensorDictBase, size: int) -> Iterator[TensorDictBase]:
    """The steps in a random order, some at a time; a rest is left out."""
    for rows in torch.randperm(len(data)).split(size):  # type: ignore[no-untyped-call]
        if len(rows) == size or len(data) < size:
            yield data[rows]


def _clip(optimizer: torch.optim.Optimizer, norm: float) -> None:
    for group in optimizer.param_groups:
        nn.utils.clip_grad_norm_(group["params"], norm)


def _log(learner: Learner, run: Run, frames: int, **more: float) -> None:
    """Evaluate, and note what a controller believes; a resumed run has its first line already."""
    if frames > 0 or not run.records():
        run.log(frames, **learner.evaluate(), **learner.parameters(), **more)
