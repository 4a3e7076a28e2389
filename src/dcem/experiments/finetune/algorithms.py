"""PPO and SAC by TorchRL, the same loops for a controller and for a network; resumable."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from tensordict import TensorDictBase
from torch import nn
from torchrl.data import LazyTensorStorage, ReplayBuffer, SliceSampler
from torchrl.modules import MLP, ValueOperator
from torchrl.objectives import ClipPPOLoss, SACLoss, SoftUpdate, ValueEstimators
from torchrl.objectives.value import GAE

from dcem.experiments.finetune.hyperparameters import PPO, SAC
from dcem.experiments.finetune.learner import ActionValue, Learner, Sampler
from dcem.experiments.harness.run import Run
from dcem.rl import total_loss


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
    num_iterations = math.ceil(settings.num_steps / frames)
    for step in run.steps(num_iterations, 1, "ppo"):
        for group in optimizer.param_groups if settings.decay else ():
            group["lr"] = settings.lr * (1 - (step - 1) / num_iterations)
        learner.explore(1 - (1 - settings.final_std) * (step - 1) / max(num_iterations - 1, 1))
        data = sampler(task.num_steps)
        for _ in range(settings.critic_epochs):
            advantages(data)
            for batch in _minibatches(data.reshape(-1), settings.critic_batch_size):
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
        for batch in _minibatches(data, settings.batch_size or len(data)):
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


def sac(learner: Learner, settings: SAC, run: Run, likelihood: float = 0.0) -> None:
    """Soft actor-critic by returns over replayed slices; of a controller the temperature is fixed, since its std is."""
    task, policy = learner.task, learner.policy
    sampler = Sampler(learner.envs(settings.num_envs), policy, task.reward_scale)
    value = ValueOperator(ActionValue(task), in_keys=["observation", "action"])
    fixed = {"fixed_alpha": True, "alpha_init": 1e-3} if learner.is_controller else {"alpha_init": 0.1}
    loss = SACLoss(policy, value, delay_qvalue=True, loss_function="l2", **fixed)
    loss.make_value_estimator(ValueEstimators.TDLambda, gamma=settings.discount, lmbda=settings.td_lambda)
    loss.set_keys(reward="scaled")
    target = SoftUpdate(loss, tau=settings.tau)
    critics = [p for p in loss.qvalue_network_params.parameters() if p.requires_grad]
    others = [] if learner.is_controller else [loss.log_alpha]
    optimizer = torch.optim.Adam(
        [*learner.groups(settings.lr), {"params": [*critics, *others], "lr": settings.critic_lr}]
    )
    num_steps = math.ceil(settings.num_steps / settings.num_envs)
    slices = SliceSampler(slice_len=settings.slice_length, end_key=("next", "done"), truncated_key=None)
    storage = LazyTensorStorage(num_steps * settings.num_envs, ndim=2)
    replay = ReplayBuffer(storage=storage, sampler=slices, batch_size=settings.batch_size)
    run.track(loss=loss, policy=policy, optimizer=optimizer, sampler=sampler, replay=replay)
    _log(learner, run, 0)
    weights = {"policy": 1.0, "likelihood": likelihood}
    warm_up = max(settings.warm_up, settings.num_envs * settings.slice_length)
    begins = warm_up + settings.critic_first * settings.num_steps
    for step in run.steps(num_steps, 100, "sac"):
        frames, before = step * settings.num_envs, (step - 1) * settings.num_envs
        left = min(1.0, (settings.num_steps - before) / max(settings.num_steps - begins, 1.0))
        for group in optimizer.param_groups[:-1] if settings.decay else ():
            group["lr"] = settings.lr * left
        learner.explore(settings.final_std + (1 - settings.final_std) * left)
        replay.extend(sampler(1))
        due, done = (int(max(0, at - warm_up) / settings.steps_per_update) for at in (frames, before))
        for _ in range(due - done):
            batch = replay.sample().reshape(-1, settings.slice_length)
            losses = loss(batch.refine_names(None, "time"))
            if frames <= begins:
                losses = losses.select("loss_qvalue")
            optimizer.zero_grad()
            total = total_loss(weights, {"policy": losses, "likelihood": lambda: learner.likelihood(batch)})  # noqa: B023
            total.backward()  # type: ignore[no-untyped-call]
            _clip(optimizer, 10.0)
            optimizer.step()
            target.step()
        if frames % settings.eval_every < settings.num_envs:
            _log(learner, run, frames)


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
