"""Objective mismatch: the model of the highest likelihood is not the model that controls best.

Small dynamics nets plan the swing-up of a pendulum. One is fitted to transitions (maximum likelihood, that is squared
errors of one step); the other starts from it and learns end to end: its plans, made by DCEM, are executed on the true
system, and the true cost is differentiated with respect to the net. Then the likelihood is held and the control is
ruined; then the state has numbers that do not matter, on which a likelihood spends a small net.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

import dcem
from dcem.control import MPC, rollout
from dcem.experiments.mismatch_task import TASK_DIMS, DynamicsNet, Plant, Transitions, squared_errors, transitions
from dcem.experiments.run import Run
from dcem.experiments.training import Schedule, choose_device, require

GROUPS: dict[str, dict[str, Any]] = {}
DATA_SEED, VALID_SEED, TEST_SEED = 1_000, 2_000, 3_000
"""The states that models are chosen and tested by are those of every run; the data are the seed's own."""


@dataclass
class Config:
    """Settings of `dcem mismatch`."""

    widths: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 6, 12])
    adversary_width: int = 12
    """Of the model that is degraded and then recovered, among `widths`."""
    adversary_references: list[int] = field(default_factory=lambda: [12, 6])
    """Whose errors the degraded one may have: widths of fitted models, among `widths`."""
    distractors: list[int] = field(default_factory=lambda: [2, 8, 32])
    distractor_width: int = 6
    num_episodes: int = 100
    """Of random actions, from the task's initial states; as many again to validate, and to test."""
    episode_length: int = 25
    fit_updates: int = 3000
    fit_batch_size: int = 256
    fit_lr: float = 1e-2
    num_updates: int = 120
    """End to end; also of the adversary."""
    batch_size: int = 16
    lr: float = 1e-2
    grad_clip: float = 1.0
    eval_every: int = 20
    num_replans: int = 3
    """Plans in a row that an update is differentiated through."""
    num_executed: int = 5
    """Actions of each that are executed."""
    restart: float = 0.3
    """How many of the systems that an update has controlled start anew; the others go on from where they are."""
    horizon: int = 15
    num_samples: int = 64
    num_elites: int = 8
    num_iterations: int = 4
    temperature: float = 0.3
    """Of DCEM, in training; what is trained is tested with the hard selection, too."""
    num_steps: int = 50
    """Of an episode of closed loop."""
    num_valid: int = 64
    num_test: int = 128
    seed: int = 0
    device: str = "cpu"
    threads: int = 1


def check(config: Config) -> None:
    """Refuse settings that cannot be run."""
    others = ("widths", "adversary_references", "distractors", "fit_lr", "lr", "grad_clip", "restart", "temperature")
    for key in (of.name for of in fields(config) if of.name not in (*others, "seed", "device")):
        require(getattr(config, key) >= 1, key, "at least 1", getattr(config, key))
    require(bool(config.widths) and min(config.widths) >= 1, "widths", "positive widths", config.widths)
    among = {*config.adversary_references, config.adversary_width} <= set(config.widths)
    known = among or not config.adversary_references
    require(known, "adversary_references", "some of widths, and adversary_width too", config.adversary_references)
    even = all(num >= 2 and num % 2 == 0 for num in config.distractors)
    require(even, "distractors", "even numbers of at least 2", config.distractors)
    for key in ("fit_lr", "lr", "grad_clip", "temperature"):
        require(getattr(config, key) > 0, key, "a positive number", getattr(config, key))
    require(1 <= config.num_elites <= config.num_samples, "num_elites", "1 to num_samples", config.num_elites)
    require(config.num_executed <= config.horizon, "num_executed", "at most horizon", config.num_executed)
    require(0 <= config.restart <= 1, "restart", "a fraction", config.restart)


Policy = Callable[[Tensor], Tensor]
"""From states `(n, num_states)` to the actions of some steps ahead, `(n, any, 1)`."""


class Task(NamedTuple):
    """A plant, what is known of it, and the states that controllers are chosen and tested by."""

    plant: Plant
    train: Transitions
    valid: Transitions
    test: Transitions
    valid_states: Tensor
    test_states: Tensor


def make_task(config: Config, num_distractors: int = 0) -> Task:
    """Plant, data and states."""
    device = choose_device(config.device)
    plant = Plant(num_distractors).to(device)
    seeds = (DATA_SEED + config.seed, VALID_SEED + config.seed, TEST_SEED + config.seed)
    size = (config.num_episodes, config.episode_length)
    train, valid, test = (transitions(plant, *size, torch.Generator(device).manual_seed(seed)) for seed in seeds)
    valid_states = plant.sample_states(config.num_valid, torch.Generator(device).manual_seed(VALID_SEED))
    test_states = plant.sample_states(config.num_test, torch.Generator(device).manual_seed(TEST_SEED))
    return Task(plant, train, valid, test, valid_states, test_states)


def controller(model: nn.Module, plant: Plant, config: Config, *, soft: bool) -> MPC:
    """The planner of all models, with DCEM's selection or CEM's."""
    selection = dcem.LML(config.temperature) if soft else dcem.HardTopK()
    solver = dcem.CEM(config.num_samples, config.num_elites, selection, init_std=plant.bounds[1] / 2)
    return MPC(model, plant.cost, config.horizon, 1, plant.bounds, solver, num_iterations=config.num_iterations)


def planning(model: nn.Module, plant: Plant, config: Config, *, soft: bool, num_executed: int) -> Policy:
    """Plan, and hand out the first actions of the plan. With one alone, each plan starts from the one before."""
    mpc, plan = controller(model, plant, config, soft=soft), None
    generator = torch.Generator(plant.turn.device).manual_seed(TEST_SEED)

    def act(states: Tensor) -> Tensor:
        nonlocal plan
        before = plan if num_executed == 1 else None
        plan = mpc(states, warm_start=before, generator=generator, gradient=dcem.Detach())
        return plan.actions[:, :num_executed]

    return act


@torch.no_grad()
def returns(policy: Policy, plant: Plant, states: Tensor, num_steps: int) -> float:
    """Minus the true cost of an episode of closed loop, on average."""
    total, step = states.new_zeros(len(states)), 0
    while step < num_steps:
        actions = policy(states)[:, : num_steps - step]
        visited = rollout(plant, states, actions)
        total -= plant.cost(visited[:, :-1], actions).sum(-1)
        states, step = visited[:, -1], step + actions.shape[1]
    return total.mean().item()


class Systems:
    """Systems under control, and what draws for them; part of a checkpoint."""

    def __init__(self, plant: Plant, config: Config) -> None:
        self.plant, self.config = plant, config
        self.generator = torch.Generator(choose_device(config.device)).manual_seed(config.seed)
        self.states = plant.sample_states(config.batch_size, self.generator)

    def cost(self, mpc: MPC) -> Tensor:
        """Execute a few plans, a few steps each: the true cost a step, differentiable through plant and plans."""
        config, states, costs = self.config, self.states, list[Tensor]()
        for _ in range(config.num_replans):
            actions = mpc(states, generator=self.generator).actions[:, : config.num_executed]
            visited = rollout(self.plant, states, actions)
            costs.append(self.plant.cost(visited[:, :-1], actions).mean())
            states = visited[:, -1]
        fresh = self.plant.sample_states(config.batch_size, self.generator)
        draws = torch.rand(config.batch_size, 1, generator=self.generator, device=fresh.device)
        self.states = torch.where(draws < config.restart, fresh, states.detach())
        return torch.stack(costs).mean()

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints."""
        return {"states": self.states, "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self.states = state["states"]
        self.generator.set_state(state["generator"].cpu())


class Best:
    """The weights that were best on validation; part of a checkpoint."""

    def __init__(self) -> None:
        self.score, self.weights = -math.inf, dict[str, Tensor]()

    def see(self, score: float, model: nn.Module) -> None:
        """Keep them if they are better."""
        if score > self.score:
            self.score, self.weights = score, {key: t.detach().clone() for key, t in model.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints."""
        return {"score": self.score, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self.score, self.weights = state["score"], state["weights"]


def train(
    run: Run,
    model: DynamicsNet,
    update: Callable[[torch.optim.Optimizer], float],
    evaluate: Callable[[], dict[str, float]],
    num_updates: int,
    lr: float,
    eval_every: int,
    **state: Any,
) -> None:
    """Updates with evaluations; the weights of the highest `score` stay. `state` is what else a checkpoint holds."""
    optimizer, best = torch.optim.Adam(model.parameters(), lr=lr), Best()
    schedule = Schedule(optimizer, "cosine", num_updates, 0)
    run.track(model=model, optimizer=optimizer, schedule=schedule, best=best, **state)
    if run.step == 0:
        metrics = evaluate()
        run.log(0, **metrics)
        best.see(metrics["score"], model)
    for step in run.steps(num_updates, eval_every, run.folder.name):
        loss = update(optimizer)
        schedule.step()
        if step % eval_every == 0 or step == num_updates:
            metrics = evaluate()
            run.log(step, loss=loss, **metrics)
            best.see(metrics["score"], model)
    model.load_state_dict(best.weights)


def fit(run: Run, task: Task, config: Config, width: int) -> DynamicsNet:
    """Maximum likelihood: what the data say of one step, the weights chosen by other data."""
    torch.manual_seed(config.seed)
    model = DynamicsNet(width, task.train).to(task.train.state.device)
    generator = torch.Generator(task.train.state.device).manual_seed(config.seed)

    def update(optimizer: torch.optim.Optimizer) -> float:
        size = (config.fit_batch_size,)
        chosen = torch.randint(len(task.train.state), size, generator=generator, device=generator.device)
        return descend(optimizer, squared_errors(model, Transitions(*(t[chosen] for t in task.train))).mean())

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        error = squared_errors(model, task.valid).mean().item()
        return {"mse": error, "score": -error}

    every = max(1, config.fit_updates // 10)
    train(run, model, update, evaluate, config.fit_updates, config.fit_lr, every, generator=generator)
    return model


def learn(run: Run, task: Task, config: Config, model: DynamicsNet) -> DynamicsNet:
    """End to end: lower the true cost of what the model plans, from the weights that it has."""
    mpc, systems = controller(model, task.plant, config, soft=True), Systems(task.plant, config)

    def update(optimizer: torch.optim.Optimizer) -> float:
        return descend(optimizer, systems.cost(mpc), config.grad_clip)

    def evaluate() -> dict[str, float]:
        return evaluation(model, task, config)

    train(run, model, update, evaluate, config.num_updates, config.lr, config.eval_every, systems=systems)
    return model


def degrade(run: Run, task: Task, config: Config, model: DynamicsNet, allowed: DynamicsNet) -> DynamicsNet:
    """The adversary: raise the true cost of what the model plans, at errors no larger than those of another model.

    After each step up the cost, steps down the errors (of the training or of the validation data, whichever have grown
    more) as long as they are larger.
    """
    mpc, systems = controller(model, task.plant, config, soft=True), Systems(task.plant, config)
    sets = (task.train, task.valid)
    with torch.no_grad():
        limits = torch.stack([squared_errors(allowed, data).mean() for data in sets])

    def excess() -> Tensor:
        return (torch.stack([squared_errors(model, data).mean() for data in sets]) / limits).max() - 1

    def update(optimizer: torch.optim.Optimizer) -> float:
        loss = descend(optimizer, -systems.cost(mpc), config.grad_clip)
        parameters = list(model.parameters())
        for _ in range(50):
            over = excess()
            if over <= 0:
                break
            gradients = torch.autograd.grad(over, parameters)
            norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum()
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.sub_(over / norm * gradient)  # Polyak's step, to where they would be as large
        return -loss

    def evaluate() -> dict[str, float]:
        metrics = evaluation(model, task, config)
        with torch.no_grad():
            kept = float(excess()) <= 0.001
        return {**metrics, "score": -metrics["return"] if kept else -math.inf}

    train(run, model, update, evaluate, config.num_updates, config.lr, config.eval_every, systems=systems)
    return model


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, grad_clip: float = math.inf) -> float:
    """One step down a loss."""
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_((p for group in optimizer.param_groups for p in group["params"]), grad_clip)
    optimizer.step()
    return loss.item()


@torch.no_grad()
def evaluation(model: DynamicsNet, task: Task, config: Config) -> dict[str, float]:
    """On validation data, during training. The model is chosen by the return with the selection of deployment."""
    policy = planning(model, task.plant, config, soft=False, num_executed=config.num_executed)
    mean = returns(policy, task.plant, task.valid_states, config.num_steps)
    return {"mse": squared_errors(model, task.valid).mean().item(), "return": mean, "score": mean}


@torch.no_grad()
def report(model: DynamicsNet, task: Task, config: Config) -> dict[str, float]:
    """On test data and test states: as deployed, with the soft selection of training, and with a plan at every step."""
    errors = squared_errors(model, task.test)
    metrics = {"mse": errors.mean().item(), "task_mse": errors[:TASK_DIMS].mean().item()}
    return metrics | closed_loop(model, task, config)


def closed_loop(model: nn.Module, task: Task, config: Config) -> dict[str, float]:
    """Returns of planning with a model, for the three ways to deploy it."""
    ways = {"return": (False, config.num_executed), "return_soft": (True, config.num_executed)}
    ways |= {"return_every_step": (False, 1)}
    metrics = {}
    for key, (soft, num_executed) in ways.items():
        policy = planning(model, task.plant, config, soft=soft, num_executed=num_executed)
        metrics[key] = returns(policy, task.plant, task.test_states, config.num_steps)
    return metrics


def references(task: Task, config: Config) -> dict[str, dict[str, float]]:
    """What planning with the true model returns, and what no plan returns."""
    generator = torch.Generator(task.test_states.device).manual_seed(TEST_SEED)
    low, high = task.plant.bounds
    policies: dict[str, Policy] = {
        "random": lambda states: (
            low + (high - low) * torch.rand(len(states), 1, 1, generator=generator, device=states.device)
        ),
        "zero": lambda states: states.new_zeros(len(states), 1, 1),
    }
    metrics = {"true-model": closed_loop(task.plant, task, config)}
    for name, policy in policies.items():
        metrics[name] = {"return": returns(policy, task.plant, task.test_states, config.num_steps)}
    return metrics


def main(config: Config, run: Run) -> dict[str, dict[str, float]]:
    """All models of one seed, each a run in its own folder; returns what they reach."""
    plain: Any = OmegaConf.to_container(OmegaConf.structured(config))
    task, metrics = make_task(config), dict[str, dict[str, float]]()
    metrics |= references(task, config)

    def part(name: str, task: Task, training: Callable[..., DynamicsNet], *arguments: Any) -> DynamicsNet:
        with Run(
            run.folder / name, plain, seed=config.seed, device=run.device, command=run.command, resume=run.resume
        ) as inner:
            inner.verbose, inner.quiet = False, run.quiet
            model = training(inner, task, config, *arguments)
            metrics[name] = report(model, task, config)
            inner.finish(**metrics[name])
        run.say(f"{name}: " + "  ".join(f"{key} {value:.4g}" for key, value in metrics[name].items()))
        return model

    def both(task: Task, width: int, suffix: str) -> DynamicsNet:
        model = part(f"likelihood-{suffix}", task, fit, width)
        part(f"end-to-end-{suffix}", task, learn, copy.deepcopy(model))
        return model

    fitted = {width: both(task, width, f"width-{width}") for width in config.widths}
    for reference in config.adversary_references:
        model = copy.deepcopy(fitted[config.adversary_width])
        model = part(f"adversary-{reference}", task, degrade, model, fitted[reference])
        part(f"recovered-{reference}", task, learn, model)
    for num in config.distractors:
        both(make_task(config, num), config.distractor_width, f"distractors-{num}")
    run.finish(**metrics)
    return metrics
