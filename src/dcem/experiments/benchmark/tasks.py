"""The tasks: planning problems of the other experiments."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dcem.control import rollout, tasks
from dcem.embedding import LinearDecoder
from dcem.energy import MLPEnergy, log_likelihood
from dcem.experiments.benchmark.planners import ours
from dcem.experiments.benchmark.playing import BATCH, Solve, Task, play, total
from dcem.experiments.benchmark.settings import Config
from dcem.experiments.cartpole_embed import task as cartpole
from dcem.experiments.gallery.settings import SCENES
from dcem.experiments.harness.training import Schedule, descend
from dcem.experiments.imitation import settings as imitation
from dcem.experiments.imitation.controller import Controller
from dcem.experiments.imitation.study import Study
from dcem.experiments.mismatch import settings as mismatch
from dcem.experiments.mismatch.task import Plant, explored
from dcem.experiments.mismatch.training import Systems
from dcem.experiments.regression import settings as regression
from dcem.experiments.regression.task import data
from dcem.world import DynamicsNet, Transitions

STRONG = 1000
"""Evaluations a decision of the reference where nothing else is one: iCEM, with the plant itself as its model."""
EXPERT = cartpole.EXPERT
"""The full-space search that embedded ones are compared with."""
WIDTH = 6
"""Of the net that has to do for a pendulum."""
Y_SCALE = 7.0
"""The action ±1 of the energy's task stands for ±7, as `init_std` does in `dcem regression`."""
LATENT = 8


class Rollouts(nn.Module):
    """The cost of sequences of actions by a model of the dynamics, as an MPC adds it up."""

    def __init__(
        self, dynamics: Callable[..., Tensor], cost: Callable[[Tensor, Tensor], Tensor], bounds: tuple[float, float]
    ) -> None:
        super().__init__()
        self.dynamics, self.cost, self.bounds = dynamics, cost, bounds

    def applied(self, action: Tensor) -> Tensor:
        """The action that ±1 stands for."""
        low, high = self.bounds
        return (low + high) / 2 + (high - low) / 2 * action

    def forward(self, state: Tensor, actions: Tensor) -> Tensor:
        """`(E, N, s)` and `(E, N, H, a)` to `(E, N)`."""
        actions = self.applied(actions)
        path = rollout(self.dynamics, state, actions)
        return self.cost(path[..., :-1, :], actions).sum(-1)


def _controlled(told: Rollouts, plant: Callable[..., Tensor], cost: Callable[..., Tensor], **options: Any) -> Task:
    """A plant in closed loop."""
    task = Task(
        model=told,
        price=lambda state, action: cost(state, told.applied(action)),
        plant=lambda state, action: plant(state, told.applied(action)),
        reference=lambda starts: _by_strong_search(task, Rollouts(plant, cost, told.bounds), starts),
        **options,
    )
    return task


def _by_strong_search(task: Task, truth: Rollouts, starts: Tensor) -> Tensor:
    """What planning with the plant itself costs, by a search that is far larger."""
    return play(partial(ours, "icem"), task, truth, starts, STRONG)[0]


def _fitted(model: nn.Module, num_updates: int, loss: Callable[[torch.Generator], Tensor], lr: float) -> None:
    """Fit a model to data, as all planners are given it."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule, generator = Schedule(optimizer, num_updates), torch.Generator().manual_seed(0)
    for _ in range(num_updates):
        descend(optimizer, loss(generator))
        schedule.step()


class Answered(NamedTuple):
    """A plan as `dcem.control.MPC` returns it, as far as it is asked for."""

    actions: Tensor


def objective_mismatch(config: Config) -> Task:
    """A pendulum, of which a net of a few hidden units was fitted to random actions by likelihood."""
    settings, plant = mismatch.Config(), Plant()
    seen = explored(plant, settings.num_episodes, settings.episode_length, torch.Generator().manual_seed(1))
    net = DynamicsNet(WIDTH, seen)

    def error(generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(seen.state), (settings.fit_batch_size,), generator=generator)
        return net.squared_errors(Transitions(*(of[chosen] for of in seen))).mean()

    _fitted(net, config.fit_updates, error, settings.fit_lr)
    told = Rollouts(net, plant.cost, plant.bounds)

    def training(generator: torch.Generator) -> Callable[[Solve], Tensor]:
        systems = Systems(plant, settings)

        def loss(solve: Solve) -> Tensor:
            mpc: Any = lambda states, **_: Answered(told.applied(solve(states)))  # noqa: E731
            return systems.cost(mpc)

        return loss

    return _controlled(
        told, plant, plant.cost, horizon=settings.horizon, num_actions=1, num_decisions=settings.num_steps,
        starts=lambda num, generator: plant.sample_states(num, generator), training=training, lr=settings.lr,
    )  # fmt: skip


def by_imitation(config: Config) -> Task:
    """A pendulum with damping and a constant torque, which its model lacks, fitted to an expert's demonstrations; with
    the expert's cost. What is learned through a planner is to do what the expert does.
    """
    settings = imitation.Config(num_demonstrations=[10], num_seeds=1, num_held_out=1)
    study = Study(settings, "mismatched")
    fitted, truth = study.initial("fine-tune"), Controller.true(study.task)
    learner = Controller(study.task, fitted.dynamics[0], fitted.weights[0], fitted.goal[0])
    expert = truth.policy(study.plant)
    told = Imitator(learner)

    def training(generator: torch.Generator) -> Callable[[Solve], Tensor]:
        def loss(solve: Solve) -> Tensor:
            states, plans = (of[0] for of in study.batch(generator, BATCH))
            error = solve(states)[:, 0] - plans[:, 0] / study.task.max_action
            return error.square().mean()

        return loss

    def reference(starts: Tensor) -> Tensor:
        return total(task, starts, lambda states: expert(states)[:, 0] / study.task.max_action)

    task = _controlled(
        told, study.plant, truth.cost, horizon=12, num_actions=1, num_decisions=settings.closed_loop_steps,
        starts=study.task.starts, training=training, lr=settings.lr,
    )._replace(reference=torch.no_grad()(reference))  # fmt: skip
    return task


class Imitator(Rollouts):
    """A learner of `dcem imitation`, whose system follows its parameters."""

    def __init__(self, learner: Controller) -> None:
        super().__init__(lambda *of: self.learner.system()(*of), learner.cost, learner.system().bounds)
        self.learner = learner


class EnergyOf(nn.Module):
    """An energy as the cost of its answers, each a plan of one action."""

    def __init__(self, energy: nn.Module) -> None:
        super().__init__()
        self.energy = energy

    def forward(self, state: Tensor, actions: Tensor) -> Tensor:
        """`x` `(E, N, 1)` and answers `(E, N, 1, 1)` to `(E, N)`."""
        energies: Tensor = self.energy(state[:, 0], Y_SCALE * actions[..., 0, :])
        return energies


def energy_learning(config: Config) -> Task:
    """Predict `y = x sin x` by the minimum of an energy that was fitted by likelihood. What is learned through a
    planner is to have the minimum where the target is.
    """
    settings = regression.Config(solver=regression.DCEM())
    x, y = data(settings)
    energy = MLPEnergy(1, 1, (64, 64))

    def batch(generator: torch.Generator) -> Tensor:
        return torch.randint(len(x), (BATCH,), generator=generator)

    def surprise(generator: torch.Generator) -> Tensor:
        at = batch(generator)
        return -log_likelihood(energy, x[at], y[at], low=-Y_SCALE, high=Y_SCALE, num_points=64).mean()

    _fitted(energy, config.fit_updates, surprise, 5e-3)

    def training(generator: torch.Generator) -> Callable[[Solve], Tensor]:
        def loss(solve: Solve) -> Tensor:
            at = batch(generator)
            return (Y_SCALE * solve(x[at])[:, 0] - y[at]).square().mean()

        return loss

    return Task(
        EnergyOf(energy), 1, 1, 1,
        starts=lambda num, generator: 2 * math.pi * torch.rand(num, 1, generator=generator),
        price=lambda x, action: (Y_SCALE * action - x * x.sin()).square().sum(-1),
        plant=lambda x, action: x,
        reference=lambda x: torch.zeros(len(x)),
        training=training, lr=settings.lr,
    )  # fmt: skip


class Embedded(nn.Module):
    """The cost of forces on a cart that are decoded from a few numbers, which are a plan of one action."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder
        self.forces = Rollouts(cartpole.SYSTEM, cartpole.SYSTEM.cost, (-1.0, 1.0))

    def forward(self, state: Tensor, actions: Tensor) -> Tensor:
        """`(E, N, s)` and `(E, N, 1, LATENT)` to `(E, N)`."""
        costs: Tensor = self.forces(state, self.decoder(actions[..., 0, :]).unsqueeze(-1))
        return costs


def embedded_search(config: Config) -> Task:
    """The first plan of a cartpole, of 20 forces, over the principal components of an expert's plans."""
    system = cartpole.SYSTEM
    search = EXPERT.but(num_samples=200, num_elites=20, num_iterations=10)
    plans = cartpole.plan(cartpole.full(search), system.sample_states(config.num_solved))
    decoder = LinearDecoder.principal_components(plans.actions[..., 0], LATENT, bounds=system.bounds)
    told = Embedded(decoder)

    def price(state: Tensor, action: Tensor) -> Tensor:
        return told(state.unsqueeze(1), action[:, None, None]).squeeze(1)

    def reference(starts: Tensor) -> Tensor:
        return cartpole.costs(cartpole.full(EXPERT), starts)

    return Task(
        told, 1, LATENT, 1, price=price, plant=lambda state, action: state, reference=reference,
        starts=lambda num, generator: system.sample_states(num, generator=generator),
    )  # fmt: skip


def control(name: str, config: Config) -> Task:
    """A system with its own equations as the model, from the task's own starts."""
    scene = SCENES[name]
    system, horizon, num_steps = scene.system(), scene.horizon, scene.num_steps
    if name == "pendulum":  # Gymnasium's episodes
        horizon, num_steps = tasks.HORIZONS[name], round(tasks.SECONDS[name] / system.dt)
    return _controlled(
        Rollouts(system, system.cost, system.bounds), system, system.cost, horizon=horizon,
        num_actions=system.action_shape[0], num_decisions=num_steps,
        starts=lambda num, generator: system.sample_states(num, generator=generator),
    )  # fmt: skip


MAKE: dict[str, Callable[[Config], Task]] = {
    "mismatch": objective_mismatch,
    "imitation": by_imitation,
    "energy": energy_learning,
    "embedded": embedded_search,
    "pendulum": partial(control, "pendulum"),
    "cartpole": partial(control, "cartpole"),
}


def load(name: str, config: Config) -> Task:
    """A task; its model is fitted anew, with the same draws whatever has been drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MAKE[name](config)
