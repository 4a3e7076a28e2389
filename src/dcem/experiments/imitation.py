"""Imitate a model-predictive expert by learning the cost, the dynamics or both through the controller.

The expert plans with the true plant and the true cost. A learner of the same model class starts from wrong parameters
and sees demonstrations. It learns through the controller (its plans shall be the expert's), by the likelihood of the
observed transitions, or, without a model, as a network from states to actions. The plant may have a damping and a
constant force that the learner's model class lacks. All runs of a method, over seeds and numbers of demonstrations, are
one batch.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

import dcem
from dcem.experiments import imitation_figures
from dcem.experiments.imitation_tasks import (
    HORIZON,
    TASKS,
    Controller,
    Demonstrations,
    Search,
    Task,
    demonstrate,
    drive,
    parameter_errors,
    residuals,
    running_cost,
    true_plant,
)
from dcem.experiments.run import SUMMARY, Run
from dcem.experiments.training import Schedule, require

METHODS = {
    "cost": "cost through the controller",
    "dynamics": "dynamics through the controller",
    "both": "both through the controller",
    "fine-tune": "likelihood, then both through the controller",
    "likelihood": "dynamics by likelihood",
    "network": "network (behaviour cloning)",
}
OF_PLANT = {
    "matched": ("cost", "dynamics", "both", "likelihood", "network"),
    "mismatched": ("dynamics", "both", "fine-tune", "likelihood", "network"),
}
GRADIENTS = ("unroll", "truncate", "implicit")
GROUPS: dict[str, dict[str, Any]] = {}
HELD_OUT_SEED = 1_000_000


@dataclass
class Config:
    """Settings of `dcem imitation`."""

    system: str = "pendulum"
    plants: list[str] = field(default_factory=lambda: ["matched", "mismatched"])
    """`matched`: the learner's model class holds the plant; `mismatched`: it lacks a damping and a constant force."""
    methods: list[str] = field(default_factory=list)
    """Which to compare; empty: all that make sense for the plant."""
    num_demonstrations: list[int] = field(default_factory=lambda: [10, 50, 100])
    num_steps: int = 20
    """Of a demonstration."""
    wrong: float = 0.2
    """Root mean square error of the logarithms of the parameters that the learner starts from."""
    num_updates: int = 160
    batch_size: int = 16
    lr: float = 0.02
    cutoff: float = 1.0
    """Plans that differ by much more than this (in units of the action's bound) count as of another branch."""
    matched_steps: int = 1
    """How much of the plans is compared: 1 is the action that is applied, 12 the whole."""
    gradient: str = "truncate"
    """How the learner's plans are differentiated: unroll, truncate (the last three iterations), implicit."""
    num_samples: int = 96
    num_elites: int = 12
    num_iterations: int = 12
    temperature: float = 0.1
    """Of the soft selection that unroll and truncate need."""
    network_updates: int = 1000
    eval_every: int = 20
    num_held_out: int = 10
    """Trajectories that the learners are judged on, and initial states of their own ones."""
    closed_loop_steps: int = 40
    num_seeds: int = 4
    seed: int = 0
    device: str = "cpu"
    """The tensors are small: only cpu."""
    threads: int = 1


def check(config: Config) -> None:
    """Refuse settings that cannot be run."""
    require(config.system in TASKS, "system", f"one of {', '.join(TASKS)}", config.system)
    unknown = [plant for plant in config.plants if plant not in OF_PLANT]
    require(bool(config.plants) and not unknown, "plants", f"some of {', '.join(OF_PLANT)}", config.plants)
    unknown = [method for method in config.methods if method not in METHODS]
    require(not unknown, "methods", f"some of {', '.join(METHODS)}", ", ".join(unknown))
    for plant in config.plants:
        require(bool(_methods(config, plant)), "methods", f"one of {', '.join(OF_PLANT[plant])}", config.methods)
    numbers = config.num_demonstrations
    require(bool(numbers) and min(numbers) >= 1, "num_demonstrations", "numbers of at least 1", numbers)
    counts = ("num_updates", "batch_size", "num_iterations", "network_updates", "eval_every", "num_held_out")
    for key in (*counts, "num_samples", "closed_loop_steps", "num_seeds", "threads"):
        require(getattr(config, key) >= 1, key, "at least 1", getattr(config, key))
    require(config.num_steps >= 2, "num_steps", "at least 2", config.num_steps)
    require(config.wrong >= 0, "wrong", "at least 0", config.wrong)
    for key in ("lr", "cutoff", "temperature"):
        require(getattr(config, key) > 0, key, "a positive number", getattr(config, key))
    require(1 <= config.num_elites <= config.num_samples, "num_elites", "1 to num_samples", config.num_elites)
    require(1 <= config.matched_steps <= HORIZON, "matched_steps", f"1 to {HORIZON}", config.matched_steps)
    require(config.gradient in GRADIENTS, "gradient", f"one of {', '.join(GRADIENTS)}", config.gradient)
    require(config.device == "cpu", "device", "cpu", config.device)


def search(config: Config) -> Search:
    """The learner's search. What is differentiated implicitly may be hard, what is unrolled has to be soft."""
    modes = {"implicit": dcem.Implicit(), "unroll": dcem.Unroll(), "truncate": dcem.Truncate(3)}
    selection = dcem.HardTopK() if config.gradient == "implicit" else dcem.LML(config.temperature)
    return Search(config.num_samples, config.num_elites, config.num_iterations, selection, modes[config.gradient])


def _methods(config: Config, plant: str) -> list[str]:
    return [method for method in OF_PLANT[plant] if not config.methods or method in config.methods]


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
            optimizer = torch.optim.LBFGS([parameters], max_iter=100, line_search_fn="strong_wolfe")

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


class Networks(nn.Module):
    """A tanh network a run, from states `(runs, batch, *s)` to actions within the bound, as plans of one step."""

    def __init__(self, task: Task, seeds: list[int], hidden: int = 64) -> None:
        super().__init__()
        sizes = [*task.system(*task.dynamics.values()).state_shape, hidden, hidden, 1]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.max_action = task.max_action
        self.weights = nn.ParameterList(
            torch.stack([torch.randn(m, n, generator=generator) / m**0.5 for generator in generators])
            for m, n in pairwise(sizes)
        )
        self.biases = nn.ParameterList(torch.zeros(len(seeds), 1, n) for n in sizes[1:])

    def forward(self, state: Tensor) -> Tensor:
        for weight, bias in zip(self.weights, self.biases, strict=True):
            state = torch.tanh(torch.baddbmm(bias, state, weight))
        return self.max_action * state.unsqueeze(-2)


def main(config: Config, run: Run) -> dict[str, Any]:
    """Train all methods on each plant, compare, draw; returns the metrics."""
    metrics: dict[str, dict[str, Any]] = {}
    records: dict[str, dict[str, Any]] = {}
    for plant in config.plants:
        study: Study | None = None
        for method in _methods(config, plant):
            folder = run.folder / f"{plant}-{method}"
            if not (run.resume and (folder / SUMMARY).exists()):
                study = study or Study(config, plant)
                with Run(
                    folder, run.config, seed=config.seed, device=run.device, command=run.command, resume=run.resume
                ) as part:
                    part.verbose = False
                    part.finish(**train(study, method, part))
            summary = json.loads((folder / SUMMARY).read_text("utf-8"))
            metrics.setdefault(plant, {})[method] = summary["metrics"]
            lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
            records.setdefault(plant, {})[method] = [json.loads(line) for line in lines]
            run.say(f"{plant} {method}: " + _shown(summary["metrics"]))
    text = imitation_figures.table(metrics, METHODS, config)
    (run.folder / "table.md").write_text(f"`{run.command}`\n\n{text}", "utf-8")
    run.say(text)
    for name, figure in imitation_figures.figures(metrics, records, METHODS, config).items():
        run.figure(name, figure)
    run.finish(**metrics)
    return metrics


def train(study: Study, method: str, run: Run) -> dict[str, list[float]]:
    """Train one method, all runs of it at once; checkpoints and metrics go to the run."""
    config = study.config
    if method == "likelihood":
        controller = study.initial(method)
        study.fit(controller)
        return study.report(controller.policy(), controller)
    if method == "network":
        return _clone(study, run)
    controller, plan_with = study.initial(method), search(config)
    learned = {"cost": [controller.weights, controller.goal], "dynamics": [controller.dynamics]}
    optimizer = torch.optim.Adam(learned.get(method, [*controller.parameters()]), lr=config.lr)
    schedule = Schedule(optimizer, "cosine", config.num_updates, 0)
    generator = torch.Generator().manual_seed(config.seed)
    run.track(controller=controller, optimizer=optimizer, schedule=schedule, generator=generator)
    if run.step == 0:
        _log(study, controller, run, 0)
    for step in run.steps(config.num_updates, config.eval_every, method):
        states, plans = study.batch(generator, config.batch_size)
        planned = controller.planner(plan_with)(states, generator=generator).actions
        error = ((planned - plans) / study.task.max_action)[..., : config.matched_steps, :].square().mean((-2, -1))
        # Where the plan is on another branch (it swings the other way) the derivative of the plan knows no way back.
        loss = (error / (1 + error / config.cutoff**2)).mean(-1).sum()  # runs share no parameter
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % config.eval_every == 0 or step == config.num_updates:
            _log(study, controller, run, step)
    return study.report(controller.policy(), controller)


def _clone(study: Study, run: Run) -> dict[str, list[float]]:
    """Behaviour cloning: a network a run, fitted to the first actions."""
    config = study.config
    networks = Networks(study.task, [seed for _, seed in study.runs])
    optimizer = torch.optim.Adam(networks.parameters(), lr=3e-3)
    schedule = Schedule(optimizer, "cosine", config.network_updates, 0)
    generator = torch.Generator().manual_seed(config.seed)
    run.track(networks=networks, optimizer=optimizer, schedule=schedule, generator=generator)
    every = max(1, config.network_updates // 5)
    for _ in run.steps(config.network_updates, every, "network"):
        states, plans = study.batch(generator, 64)
        error = networks(states)[..., 0, :] - plans[..., 0, :]
        loss = (error / study.task.max_action).square().mean((-2, -1)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return study.report(networks, networks)


def _log(study: Study, controller: Controller, run: Run, step: int) -> None:
    """The held-out loss and the errors of the parameters of each run."""
    values = {"imitation_loss": study.imitation_loss(controller.policy()), **parameter_errors(controller)}
    names = [f"{num}_{seed}" for num, seed in study.runs]
    run.log(
        step, **{f"{key}_{name}": float(v) for key, of in values.items() for name, v in zip(names, of, strict=True)}
    )


def _shown(metrics: dict[str, list[float]]) -> str:
    return "  ".join(f"{name} {sum(values) / len(values):.3g}" for name, values in metrics.items())
