"""Phase 1: learn a latent model from the episodes of a controller that plans through it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import dcem
from dcem.control import MPC, Plan
from dcem.experiments.planet.replay import Replay
from dcem.experiments.planet.settings import Config, Planner
from dcem.experiments.planet.suite import ACTION_REPEAT, Suite
from dcem.experiments.run import Run
from dcem.world import LatentModel

EVALUATION_SEED = 1_000_000
"""Rounds of evaluation start from seeds that no round of training has."""


def make_model(config: Config, suite: Suite) -> LatentModel:
    """The model at its start."""
    return LatentModel(
        suite.observation_size, suite.action_size, (suite.low, suite.high), latent_size=config.latent_size,
        hidden=config.hidden, discount=config.discount,
    )  # fmt: skip


def full_space(model: LatentModel, settings: Planner) -> MPC:
    """Plan over the actions themselves, with the vanilla selection."""
    solver = dcem.CEM(
        settings.num_samples, settings.num_elites, dcem.HardTopK(), init_std=settings.init_std,
        min_std=settings.min_std, max_std=settings.max_std,
    )  # fmt: skip
    return MPC(
        model.imagine, model.cost, settings.horizon, model.action_size, (model.low, model.high), solver,
        num_iterations=settings.num_iterations, gradient=dcem.Detach(), terminal_cost=model.terminal_cost,
        discount=model.discount, proposals=model.propose, num_proposals=settings.num_proposals,
    )  # fmt: skip


class Episodes(NamedTuple):
    """A round: an episode in each environment."""

    observations: Tensor  # (E, T + 1, O)
    actions: Tensor  # (E, T, A)
    rewards: Tensor  # (E, T)
    planning_seconds: float

    @property
    def returns(self) -> Tensor:
        """Undiscounted, ``(E,)``."""
        return self.rewards.sum(-1)


@torch.no_grad()
def play(
    suite: Suite,
    seed: int,
    model: LatentModel | None,
    mpc: MPC | None,
    *,
    explore: bool,
    between: Callable[[], None] | None = None,
) -> Episodes:
    """Play a round with a controller, or with random actions where there is none.

    To ``explore`` is to apply a draw from the planner's last distribution instead of its mean. What is to happen
    ``between`` decisions, learning, is called after each.
    """
    observation = suite.reset(seed)
    observations, actions, rewards, seconds = [observation], list[Tensor](), list[Tensor](), 0.0
    plan: Plan | None = None
    done = False
    while not done:
        started = time.perf_counter()
        if model is None or mpc is None:
            action = suite.low + (suite.high - suite.low) * torch.rand(suite.num_envs, suite.action_size)
        else:
            plan = mpc(model.encode(observation), warm_start=plan)
            action = plan.action
            if explore:
                assert isinstance(plan.distribution, dcem.Gaussian)
                spread = plan.distribution.std[:, 0]
                action = torch.clamp(action + spread * torch.randn_like(action), suite.low, suite.high)
        seconds += time.perf_counter() - started
        observation, reward, done = suite.step(action)
        observations.append(observation)
        actions.append(action)
        rewards.append(reward)
        if between is not None:
            with torch.enable_grad():
                between()
    return Episodes(torch.stack(observations, 1), torch.stack(actions, 1), torch.stack(rewards, 1), seconds)


class Learner:
    """The optimiser's side of a model."""

    def __init__(self, model: LatentModel, config: Config) -> None:
        self.model, self.config = model, config
        encoder = list(model.encoder.parameters())
        own = {id(parameter) for parameter in [*encoder, *model.target_values.parameters()]}
        others = [parameter for parameter in model.parameters() if id(parameter) not in own]
        groups: list[dict[str, Any]] = [{"params": encoder, "lr": config.encoder_lr}, {"params": others}]
        self.parameters = [*encoder, *others]
        self.optimizer = torch.optim.Adam(groups, lr=config.lr, foreach=True)

    def update(self, sequences: object) -> dict[str, Tensor]:
        """One step down the model's loss."""
        losses = self.model.loss(sequences)
        loss = torch.stack([value for name, value in losses.items() if name.startswith("loss_")]).sum()
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, self.config.grad_clip, foreach=True)
        self.optimizer.step()
        self.model.update_target()
        return {name: value.detach() for name, value in losses.items()}


class _Updates:
    """So many updates for each decision, and the means of what they say over a round."""

    def __init__(self, learner: Learner, replay: Replay) -> None:
        self.learner, self.replay, self.config = learner, replay, learner.config
        self.due, self.made, self.sums = 0.0, 0, dict[str, Tensor]()

    def after_a_decision(self) -> None:
        """Make the updates that are due."""
        self.due += self.config.updates_per_decision * self.config.num_envs
        num = int(self.due)
        for batch in self.replay.sample(self.config.batch_size, num) if num else []:
            for name, value in self.learner.update(batch).items():
                self.sums[name] = self.sums.get(name, torch.zeros(())) + value
        self.due, self.made = self.due - num, self.made + num

    def means(self) -> dict[str, float]:
        """Of the round that has ended; the next one starts from nothing."""
        means = {name: float(total / self.made) for name, total in self.sums.items()}
        self.due, self.made, self.sums = 0.0, 0, {}
        return means


def learn(config: Config, run: Run) -> LatentModel:
    """Alternate decisions and updates for `num_rounds`; a checkpoint after each round."""
    suite = Suite(config.task, config.num_envs, ACTION_REPEAT[config.task])
    model = make_model(config, suite)
    learner = Learner(model, config)
    mpc = full_space(model, config.planner)
    decisions = 1000 // suite.action_repeat * config.num_envs  # a round
    replay = Replay(decisions * config.num_rounds, config.window)
    run.track(model=model, optimizer=learner.optimizer, replay=replay)
    updates = _Updates(learner, replay)
    for step in run.steps(config.num_rounds, 1, config.task):
        started = time.perf_counter()
        seeding = step <= config.seed_rounds
        episodes = play(
            suite, config.seed * 10_000 + step, None if seeding else model, mpc, explore=True,
            between=None if seeding else updates.after_a_decision,
        )  # fmt: skip
        replay.extend(episodes.observations, episodes.actions, episodes.rewards)
        values = updates.means() | {
            "env_steps": step * 1000 * config.num_envs,
            "return": episodes.returns.mean().item(),
            "planning_s": episodes.planning_seconds,
            "round_s": time.perf_counter() - started,
        }
        if step % config.eval_every == 0 or step == config.num_rounds:
            evaluation = play(suite, EVALUATION_SEED + step, model, mpc, explore=False)
            values["return_eval"] = evaluation.returns.mean().item()
        run.log(step, **values)
    return model
