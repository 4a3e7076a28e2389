"""Phase 3: the controller fine-tuned by proximal policy optimisation, differentiated through its plans."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictSequential
from torch import Tensor, nn
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

import dcem
from dcem.experiments.harness.run import Run
from dcem.experiments.harness.settings import require
from dcem.experiments.planet.controllers import Controller, belief_size, load, save
from dcem.experiments.planet.settings import CONTROLLER, Config
from dcem.experiments.planet.suite import Suite
from dcem.experiments.planet.training import EVALUATION_SEED, play
from dcem.rl import Actor
from dcem.world import LatentModel


def parts(controller: Controller) -> dict[str, nn.Module]:
    """What can be tuned, by name."""
    named = controller.model.parts()
    return named if controller.decoder is None else named | {"decoder": controller.decoder}


class Tuner:
    """Actor, critic and their losses; what turns observations into beliefs stays as it is."""

    def __init__(self, config: Config, controller: Controller) -> None:
        self.config, self.settings = config, config.tuning
        model, mpc = controller.model, controller.mpc
        mpc.gradient = dcem.Truncate(self.settings.last)
        std = torch.tensor(self.settings.std, device=model.low.device)
        self.actor = Actor(mpc, model, nn.Parameter(std) if self.settings.learn_std else std)
        self.primer = self.actor.make_tensordict_primer()
        afresh = () if controller.decoder is None else ("plan", "latent")  # every embedded search starts from 0
        self.remembered = [key for key in self.primer.primers if key not in afresh]
        net = nn.Sequential(
            nn.Linear(belief_size(model), 256), nn.LayerNorm(256), nn.SiLU(),
            nn.Linear(256, 256), nn.LayerNorm(256), nn.SiLU(), nn.Linear(256, 1),
        ).to(model.low.device)  # fmt: skip
        self.critic = TensorDictSequential(self.actor.observer(), ValueOperator(net, in_keys=["state"]))
        named = parts(controller)
        for module in named.values():
            module.requires_grad_(False)
        tuned: dict[str, list[Tensor]] = {
            name: list(named[name].requires_grad_().parameters()) for name in self.settings.parts
        }
        if self.settings.learn_std:
            tuned["std"] = [self.actor.std]
        self.tuned = [parameter for part in tuned.values() for parameter in part]
        rates = asdict(self.settings.rates)
        parts_apart = [{"params": part, "lr": rates[name] or self.settings.lr} for name, part in tuned.items()]
        of_one_rate = [{"params": self.tuned, "lr": self.settings.lr}]  # as runs had it before parts had their own
        self.optimizer = torch.optim.Adam(parts_apart if any(rates.values()) else of_one_rate)
        self.critic_optimizer = torch.optim.Adam(net.parameters(), lr=self.settings.critic_lr)
        self.loss = ClipPPOLoss(
            self.actor, self.critic, clip_epsilon=self.settings.clip, entropy_bonus=False, normalize_advantage=True
        )
        self.advantage, self.returns = (
            GAE(gamma=self.settings.discount, lmbda=weight, value_network=self.critic, deactivate_vmap=True)
            for weight in (self.settings.gae_lambda, self.settings.critic_lambda)
        )
        self.net, self.model, self.decoder = net, model, controller.decoder

    def tracked(self) -> dict[str, Any]:
        """What a checkpoint has to hold."""
        tracked: dict[str, Any] = {
            "model": self.model, "critic": self.net, "optimizer": self.optimizer,
            "critic_optimizer": self.critic_optimizer, "actor": self.actor,
        }  # fmt: skip
        return tracked

    @torch.no_grad()
    def collect(self, suite: Suite, seed: int) -> TensorDictBase:
        """An episode in each environment by the actor, `(E, T)`."""
        carried = self.primer.primers.zero((suite.num_envs,)).select(*self.remembered)
        carried["observation"] = suite.reset(seed)
        done, steps = False, []
        while not done:
            with set_exploration_type(ExplorationType.RANDOM):
                step = self.actor(carried)
            observation, reward, done = suite.step(step["action"])
            ended = torch.zeros_like(reward, dtype=torch.bool).unsqueeze(-1)
            step["next"].update(
                {
                    "observation": observation,
                    "reward": reward.unsqueeze(-1) * (1 - self.settings.discount),  # values are then means of rewards
                    "terminated": ended,
                    "done": torch.full_like(ended, done),
                }
            )
            steps.append(step)
            carried = step["next"].select("observation", *self.remembered)
        episodes: TensorDictBase = torch.stack(steps, 1)
        return episodes

    def fit_critic(self, data: TensorDictBase, num_updates: int) -> float:
        """Regress the critic on the returns that the advantage estimator gives; returns the last error."""
        flat = data.reshape(-1)
        for _ in range(num_updates):
            batch = flat[
                torch.randint(len(flat), (self.settings.critic_batch_size,), device=flat["observation"].device)
            ]
            error = (self.critic(batch)["state_value"] - batch["value_target"]).square().mean()
            self.critic_optimizer.zero_grad()
            error.backward()
            self.critic_optimizer.step()
        return float(error.detach())

    def step(self, data: TensorDictBase) -> dict[str, float]:
        """One PPO step on the episodes of `(E, T)`: critic, advantages, then passes over a share of the states."""
        settings = self.settings
        for _ in range(2):  # the targets depend on the critic
            with torch.no_grad():
                self.returns(data)
            critic_error = self.fit_critic(data, settings.critic_updates)
        with torch.no_grad():
            self.advantage(data)
        flat = data.reshape(-1)
        flat = flat[
            torch.randperm(len(flat), device=flat["observation"].device)[: max(1, round(settings.share * len(flat)))]
        ]
        divergence, made = 0.0, 0
        for _ in range(settings.passes):
            for batch in flat[torch.randperm(len(flat), device=flat["observation"].device)].split(
                settings.minibatch_size
            ):
                losses = self.loss(batch)
                divergence = float(losses["kl_approx"])
                if divergence > settings.max_divergence:
                    break
                loss = losses["loss_objective"]
                if settings.likelihood > 0:
                    loss = loss + settings.likelihood * self._model_loss(data)
                gradients = torch.autograd.grad(loss, self.tuned, allow_unused=True)
                for parameter, gradient in zip(self.tuned, gradients, strict=True):
                    parameter.grad = gradient
                nn.utils.clip_grad_norm_(self.tuned, settings.grad_clip)
                self.optimizer.step()
                if settings.likelihood > 0 and isinstance(self.model, LatentModel):
                    self.model.update_target()
                made += 1
        return {"critic_error": critic_error, "divergence": divergence, "updates": float(made)}

    def _model_loss(self, data: TensorDictBase) -> Tensor:
        """What the model was learned by, of sequences from the episodes `(E, T)`, with the rewards as they came."""
        num, window = self.config.batch_size, min(self.config.window, data.shape[1])
        device = data["observation"].device
        episode = torch.randint(len(data), (num, 1), device=device)
        first = torch.randint(data.shape[1] - window + 1, (num, 1), device=device)
        sequences = data[episode, first + torch.arange(window, device=device)]
        sequences["next", "reward"] = sequences["next", "reward"] / (1 - self.settings.discount)
        losses = self.model.loss(sequences)
        return torch.stack([value for name, value in losses.items() if name.startswith("loss_")]).sum()


def tune(config: Config, run: Run) -> Controller:
    """PPO steps, a checkpoint after each; evaluated on the same episodes before and after."""
    before, _ = load(Path(config.start), config, run.device)
    missing = [name for name in config.tuning.parts if name not in parts(before)]
    require(not missing, "tuning.parts", f"some of {', '.join(parts(before))}, which {config.start} has", missing)
    soft = "a controller of phase=embed: over actions the selection is hard, and has no gradient"
    require(before.decoder is not None, "start", soft, config.start)
    settings = config.tuning
    tuned = [*settings.parts, *(["std"] if settings.learn_std else [])]
    frozen = [name for name, rate in asdict(settings.rates).items() if rate > 0 and name not in tuned]
    require(not frozen, "tuning.rates", f"rates of what is tuned, {', '.join(tuned)}", frozen)
    of_model = not settings.likelihood or set(settings.parts) & before.model.parts().keys()
    require(bool(of_model), "tuning.parts", "a part of the model, which tuning.likelihood moves", settings.parts)
    suite = Suite(config.task, config.num_envs, config.episode_steps, run.device)
    controller = before._replace(config=config)
    tuner = Tuner(config, controller)
    run.track(**tuner.tracked())

    def evaluate() -> Tensor:
        torch.manual_seed(EVALUATION_SEED)
        mpc = tuner.actor.controller.mpc
        rounds = range(config.tuning.eval_rounds)
        return torch.cat([play(suite, EVALUATION_SEED + i, tuner.model, mpc, explore=0.0).returns for i in rounds])

    if run.step == 0:
        run.log(0, env_steps=before.env_steps, return_eval=evaluate().mean().item())
    for step in run.steps(config.num_rounds, 1, config.task):
        started, made = time.perf_counter(), config.tuning.rounds_per_step
        seeds = [config.seed * 10_000 + made * step + i + 500_000 for i in range(made)]
        data: TensorDictBase = torch.cat([tuner.collect(suite, seed) for seed in seeds])
        played = time.perf_counter()
        values = tuner.step(data) | {
            "env_steps": before.env_steps + step * made * config.episode_steps * config.num_envs,
            "return": data["next", "reward"].sum().item() / len(data) / (1 - config.tuning.discount),
            "playing_s": played - started,
            "learning_s": time.perf_counter() - played,
        }
        if step % config.eval_every == 0 or step == config.num_rounds:
            values["return_eval"] = evaluate().mean().item()
            controller = controller._replace(env_steps=int(values["env_steps"]))
            save(run.folder / CONTROLLER, controller)
        run.log(step, **values)
    return controller
