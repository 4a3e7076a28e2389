"""A plant, its expert's demonstrations, and what a learner is judged by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dcem.experiments.imitation.controller import (
    Controller,
    Demonstrations,
    demonstrate,
    drive,
    parameter_errors,
    residuals,
    running_cost,
)
from dcem.experiments.imitation.settings import HELD_OUT_SEED, Config
from dcem.experiments.imitation.task import TASKS, true_plant

FIT_ITERATIONS = 100


class Study:
    """A plant, its expert's demonstrations, and what a learner is judged by; runs are seeds times numbers."""

    def __init__(self, config: Config, plant: str) -> None:
        self.config, self.task = config, TASKS[config.system]
        self.plant = true_plant(self.task, plant == "matched")
        seeds = range(config.seed, config.seed + config.num_seeds)
        self.runs = [(num, seed) for num in config.num_demonstrations for seed in seeds]

        def demonstrations(num: int, seed: int) -> Demonstrations:
            return demonstrate(self.task, plant == "matched", num, config.num_steps, seed)

        most = max(config.num_demonstrations)
        of_seed = {seed: demonstrations(most, seed) for seed in seeds}
        self.demonstrations = [of_seed[seed].first(num) for num, seed in self.runs]
        pairs = [of_seed[seed].pairs() for _, seed in self.runs]
        self.states, self.plans = (torch.stack(of) for of in zip(*pairs, strict=True))
        self.num_pairs = torch.tensor([num * config.num_steps for num, _ in self.runs])
        self.held_out = demonstrations(config.num_held_out, HELD_OUT_SEED)
        starts = self.task.starts(config.num_held_out, torch.Generator().manual_seed(HELD_OUT_SEED + 1))
        self.starts = starts.expand(len(self.runs), *starts.shape)
        expert = Controller.true(self.task).policy(self.plant)
        self.expert_cost = running_cost(self.task, drive(expert, self.plant, starts, config.closed_loop_steps))

    def batch(self, generator: torch.Generator, size: int) -> tuple[Tensor, Tensor]:
        """States and plans of a random batch a run, `(runs, size, ...)`, from that run's demonstrations."""
        chosen = torch.rand(len(self.runs), size, generator=generator) * self.num_pairs.unsqueeze(-1)
        runs = torch.arange(len(self.runs)).unsqueeze(-1)
        return self.states[runs, chosen.long()], self.plans[runs, chosen.long()]

    def initial(self, method: str) -> Controller:
        """What a method starts from: what it is to learn is wrong, what it knows is true."""
        truth = Controller.true(self.task)
        start = Controller.wrong(self.task, self.config.wrong, [seed for _, seed in self.runs])
        if method == "fine-tune":
            self.fit(start)
        with torch.no_grad():
            if method == "cost":
                start.dynamics.copy_(truth.dynamics)
            elif method != "both":
                start.weights.copy_(truth.weights)
                start.goal.copy_(truth.goal)
        return start

    def fit(self, controller: Controller) -> None:
        """Fit the dynamics of each run to its observed transitions: least squares in units of the changes."""
        for i, demonstrations in enumerate(self.demonstrations):
            parameters = controller.dynamics.detach()[i].clone().requires_grad_()
            optimizer = torch.optim.LBFGS([parameters], max_iter=FIT_ITERATIONS, line_search_fn="strong_wolfe")

            def loss(
                parameters: Tensor = parameters,
                optimizer: torch.optim.Optimizer = optimizer,
                demonstrations: Demonstrations = demonstrations,
            ) -> Tensor:
                optimizer.zero_grad()
                value = residuals(self.task.system(*parameters.exp().unbind()), demonstrations).square().mean()
                value.backward()  # type: ignore[no-untyped-call]
                return value

            optimizer.step(loss)  # type: ignore[no-untyped-call]
            controller.dynamics.data[i] = parameters.detach()

    @torch.no_grad()
    def imitation_loss(self, policy: Callable[[Tensor], Tensor]) -> Tensor:
        """Mean squared error of the first action on held-out states, in units of the action's bound, `(runs,)`."""
        states, plans = self.held_out.pairs()
        error = policy(states.expand(len(self.runs), *states.shape))[..., 0, :] - plans[..., 0, :]
        return (error / self.task.max_action).square().mean((-2, -1))

    def report(self, policy: Callable[[Tensor], Tensor], model: Any) -> dict[str, list[float]]:
        """All metrics of a learner, a number a run."""
        driven = drive(policy, self.plant, self.starts, self.config.closed_loop_steps)
        metrics = {
            "imitation_loss": self.imitation_loss(policy),
            "relative_cost": running_cost(self.task, driven) / self.expert_cost,
        }
        if isinstance(model, Controller):
            metrics |= parameter_errors(model)
            states, plans = (of.expand(len(self.runs), *of.shape) for of in self.held_out)
            with torch.no_grad():
                flat = Demonstrations(states, plans)
                metrics["prediction_error"] = residuals(model.system(), flat).square().mean((-3, -2, -1)).sqrt()
        return {name: value.tolist() for name, value in metrics.items()}
