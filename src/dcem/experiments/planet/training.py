"""Learn a latent model, and a decoder for the embedded controller, from the episodes that are planned with them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import dcem
from dcem.control import MPC, Plan
from dcem.experiments.harness.reading import checkpoint_of
from dcem.experiments.harness.run import Run
from dcem.experiments.planet.controllers import (
    BeliefDecoder,
    Controller,
    Model,
    embedded,
    last_beliefs,
    load,
    make_decoder,
    make_model,
    save,
)
from dcem.experiments.planet.replay import Replay
from dcem.experiments.planet.settings import CONTROLLER, Config
from dcem.experiments.planet.suite import Suite
from dcem.world import LatentModel, WorldModel

EVALUATION_SEED = 1_000_000
"""Rounds of evaluation start from seeds that no round of training has."""


class Episodes(NamedTuple):
    """A round: an episode in each environment."""

    observations: Tensor  # (E, T + 1, O)
    actions: Tensor  # (E, T, A)
    rewards: Tensor  # (E, T)
    planning_seconds: float
    stepping_seconds: float

    @property
    def returns(self) -> Tensor:
        """Undiscounted, `(E,)`."""
        return self.rewards.sum(-1)


@torch.no_grad()
def play(
    suite: Suite,
    seed: int,
    model: WorldModel | None,
    mpc: MPC | None,
    *,
    explore: float,
    between: Callable[[], None] | None = None,
) -> Episodes:
    """Play a round with a controller, or with random actions where there is none.

    `explore` is the least std of the noise on the action, which is that of the planner's last distribution where it
    plans over actions; 0 for none at all. What is to happen `between` decisions, learning, is called after each.
    """
    observation = suite.reset(seed)
    action = suite.low.new_zeros(suite.num_envs, suite.action_size)
    belief = None if model is None else model.initial((suite.num_envs,))
    observations, actions, rewards, seconds = [observation], list[Tensor](), list[Tensor](), [0.0, 0.0]
    plan: Plan | None = None
    done = False
    while not done:
        started = time.perf_counter()
        if model is None or mpc is None:
            action = suite.low + (suite.high - suite.low) * torch.rand_like(action)
        else:
            belief = model.observe(belief, action, observation)
            warm = plan if mpc.decoder is None else None
            plan = mpc(belief, warm_start=warm, gradient=dcem.Detach())
            action = plan.action
            if explore > 0:
                spread = torch.full_like(action, explore)
                if mpc.decoder is None and isinstance(plan.distribution, dcem.Gaussian):
                    spread = plan.distribution.std[:, 0].clamp(min=explore)
                action = torch.clamp(action + spread * torch.randn_like(action), suite.low, suite.high)
        planned = time.perf_counter()
        observation, reward, done = suite.step(action)
        seconds[0] += planned - started
        seconds[1] += time.perf_counter() - planned
        observations.append(observation)
        actions.append(action)
        rewards.append(reward)
        if between is not None:
            with torch.enable_grad():
                between()
    return Episodes(torch.stack(observations, 1), torch.stack(actions, 1), torch.stack(rewards, 1), *seconds)


class Learner:
    """The optimisers of model and decoder, and what to do with a batch of sequences."""

    def __init__(self, config: Config, model: Model, decoder: BeliefDecoder | None) -> None:
        self.config, self.model = config, model
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups: list[dict[str, Any]] = [{"params": self.parameters}]
        if isinstance(model, LatentModel):
            encoder = list(model.encoder.parameters())
            of_encoder = {id(parameter) for parameter in encoder}
            others = [parameter for parameter in self.parameters if id(parameter) not in of_encoder]
            groups = [{"params": encoder, "lr": config.encoder_lr}, {"params": others}]
        eps = 1e-8 if isinstance(model, LatentModel) else 1e-4  # as in the paper
        self.optimizer = torch.optim.Adam(groups, lr=config.lr, eps=eps, foreach=True)
        self.decoder = decoder
        if decoder is not None:
            self.mpc = embedded(model, decoder, config.embedding)
            self.decoder_optimizer = torch.optim.Adam(decoder.parameters(), lr=config.embedding.lr, foreach=True)

    def tracked(self) -> dict[str, Any]:
        """What a checkpoint has to hold."""
        tracked = {"model": self.model, "optimizer": self.optimizer}
        return tracked | (
            {"decoder": self.decoder, "decoder_optimizer": self.decoder_optimizer} if self.decoder else {}
        )

    def update(self, sequences: Any) -> dict[str, Tensor]:
        """One step down the model's loss, and one down the cost of the plans in the beliefs that it now has."""
        losses = self.model.loss(sequences)
        loss = torch.stack([value for name, value in losses.items() if name.startswith("loss_")]).sum()
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, self.config.grad_clip, foreach=True)
        self.optimizer.step()
        if isinstance(self.model, LatentModel):
            self.model.update_target()
        said = {name: value.detach() for name, value in losses.items()}
        if self.decoder is not None:
            said["plan_cost"] = self._embed(sequences[: self.config.embedding.batch_size], self.decoder)
        return said

    def _embed(self, sequences: Any, decoder: BeliefDecoder) -> Tensor:
        """A step of the decoder down the cost of what DCEM finds with it, differentiated through the search."""
        cost = self.mpc(last_beliefs(self.model, sequences)).cost.mean()
        parameters = list(decoder.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(cost, parameters), strict=True):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_(parameters, self.config.grad_clip, foreach=True)
        self.decoder_optimizer.step()
        return cost.detach()


class _Updates:
    """So many updates for each decision; the means of what they say over a round, and what it took."""

    def __init__(self, learner: Learner, replay: Replay) -> None:
        self.learner, self.replay, self.config = learner, replay, learner.config
        self.due, self.made, self.seconds, self.sums = 0.0, 0, 0.0, dict[str, float | Tensor]()

    def after_a_decision(self) -> None:
        """Make the updates that are due."""
        started = time.perf_counter()
        self.due += self.config.updates_per_decision * self.config.num_envs
        num = int(self.due)
        for _ in range(num):
            for name, value in self.learner.update(self.replay.sample()).items():
                self.sums[name] = self.sums.get(name, 0.0) + value
        self.due, self.made = self.due - num, self.made + num
        self.seconds += time.perf_counter() - started

    def means(self) -> dict[str, float]:
        """Of the round that has ended; the next one starts from nothing."""
        means = {name: float(total / self.made) for name, total in self.sums.items()} | {"learning_s": self.seconds}
        self.due, self.made, self.seconds, self.sums = 0.0, 0, 0.0, {}
        return means


def learn(config: Config, run: Run) -> Controller:
    """Alternate decisions and updates for `num_rounds`, a checkpoint after each."""
    suite = Suite(config.task, config.num_envs, config.episode_steps, run.device)
    before, replay = _start(config, suite)
    model, decoder, env_steps = before.model, before.decoder, before.env_steps
    seeds_by = model if Path(config.start).is_file() else None  # else at random
    if config.phase == "embed" and decoder is None:
        decoder = make_decoder(config, model)
    learner = Learner(config, model, decoder)
    controller = Controller(config, model, decoder, env_steps)
    run.track(replay=replay, **learner.tracked())
    updates = _Updates(learner, replay)
    mpc = controller.mpc
    for step in run.steps(config.num_rounds, 1, config.task):
        started = time.perf_counter()
        seeding = step <= config.seeding
        episodes = play(
            suite, config.seed * 10_000 + step, seeds_by if seeding else model, before.mpc if seeding else mpc,
            explore=config.explore, between=None if seeding else updates.after_a_decision,
        )  # fmt: skip
        replay.extend(episodes.observations, episodes.actions, episodes.rewards)
        controller = controller._replace(env_steps=env_steps + step * config.episode_steps * config.num_envs)
        values = updates.means() | {
            "env_steps": controller.env_steps,
            "return": episodes.returns.mean().item(),
            "planning_s": episodes.planning_seconds,
            "stepping_s": episodes.stepping_seconds,
            "round_s": time.perf_counter() - started,
        }
        if step % config.eval_every == 0 or step == config.num_rounds:
            evaluation = play(suite, EVALUATION_SEED + step, model, mpc, explore=0.0)
            values["return_eval"] = evaluation.returns.mean().item()
            save(run.folder / CONTROLLER, controller)
        run.log(step, **values)
    return controller


def _start(config: Config, suite: Suite) -> tuple[Controller, Replay]:
    """At the beginning; or taken over from the run `start`, or, with nothing to replay, from a controller.pt."""
    decisions = config.episode_steps // suite.action_repeat * config.num_envs * config.num_rounds
    start, replay, kept = Path(config.start), dict[str, Any](), 0
    controller = Controller(config, make_model(config, suite), None, 0)
    if start.is_file():
        before, _ = load(start, config, suite.device)
        controller = before._replace(config=config, decoder=before.decoder if config.phase == "embed" else None)
    elif config.start:
        before, _ = load(start / CONTROLLER, config)
        state = checkpoint_of(start, torch.device("cpu"))["tracked"]
        controller.model.load_state_dict(state["model"])
        controller, replay = controller._replace(env_steps=before.env_steps), state["replay"]
        kept = len(replay["data"]["episode"])
    buffer = Replay(decisions + kept, config.batch_size, config.window, suite.device)
    if replay:
        buffer.load_state_dict(replay)
    return controller, buffer
