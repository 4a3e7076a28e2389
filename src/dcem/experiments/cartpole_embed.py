"""An embedded control space for the cartpole: a decoder from a few numbers to 20 forces (Amos & Yarats 2020, 5.2).

All swing-ups look alike. A decoder ``u = dec_θ(z)`` is learned so that searching over ``z`` with 100 samples finds
better forces than the cross-entropy method finds with 1000 samples in the space of all forces. No expert's solutions
are used: the gradient of the cost reached flows through the search, which is differentiable at a temperature above 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import dcem
from dcem.control import MPC, Compiled, Plan
from dcem.control.systems import Cartpole
from dcem.embedding import MLPDecoder
from dcem.experiments import ConfigError
from dcem.experiments.run import Run
from dcem.experiments.training import Schedule, choose_device, require

HORIZON = 20
SYSTEM = Cartpole()
COMPILED = Compiled(SYSTEM)
"""One for all runs of a sweep: compilation takes longer than a short training."""
NUM_VALIDATION, VALIDATION_SEED = 100, 20
"""The expert's mean cost depends on the states by ±0.6. Of the seeds 0 to 23 this one comes closest to the expert's
-9.17 on another set of 100, so that costs compare; it was chosen by the expert alone, before any training."""
SELECTIONS = ("soft", "hard")


@dataclass
class Config:
    """Settings of `dcem cartpole-embed`."""

    latent: int = 8
    temperature: float = 1.0
    """0: a hard selection in training, and a gradient that does not go through the search."""
    hidden: list[int] = field(default_factory=lambda: [256, 256, 256])
    num_samples: int = 100
    num_elites: int = 10
    num_iterations: int = 10
    init_std: float = 0.5
    answer: str = "mean"
    """Whose cost is lowered: that of the search's `mean`, or of its `best` sample."""
    num_updates: int = 400
    batch_size: int = 16
    """Initial states an update."""
    lr: float = 1e-3
    """Its peak: it rises over a tenth of the updates and falls along a cosine."""
    grad_clip: float = 1.0
    precision: str = "bfloat16"
    """Of the decoder's products in training, `bfloat16` or `float32`; evaluations are in float32."""
    compile: bool = False
    """Compile the rollouts in training: a minute once, also in a sweep, for a third less an update."""
    eval_every: int = 50
    checkpoint_every: int = 50
    seed: int = 0
    device: str = "cpu"
    threads: int = 1


GROUPS: dict[str, dict[str, Any]] = {}


class Search(NamedTuple):
    """How a plan is searched for."""

    num_samples: int
    num_elites: int
    num_iterations: int
    init_std: float = 0.5
    temperature: float = 0.0
    answer: str = "mean"

    @property
    def num_trajectories(self) -> int:
        """Evaluated in a solve."""
        return self.num_samples * self.num_iterations


def check(config: Config) -> None:
    """Refuse settings that cannot be run."""
    counts = ("latent", "num_updates", "batch_size", "num_iterations", "eval_every", "checkpoint_every", "threads")
    for key in counts:
        require(getattr(config, key) >= 1, key, "at least 1", getattr(config, key))
    require(config.temperature >= 0, "temperature", "0 or above", config.temperature)
    require(bool(config.hidden) and min(config.hidden) >= 1, "hidden", "positive widths", config.hidden)
    require(config.init_std > 0, "init_std", "a positive number", config.init_std)
    require(config.lr > 0, "lr", "a positive number", config.lr)
    require(config.grad_clip > 0, "grad_clip", "a positive number", config.grad_clip)
    require(config.answer in ("mean", "best"), "answer", "mean or best", config.answer)
    require(config.precision in ("bfloat16", "float32"), "precision", "bfloat16 or float32", config.precision)
    try:
        solver(trained_search(config))
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from None


def build(config: Config) -> MLPDecoder:
    """The decoder that the config describes: ``z`` ``(..., latent)`` -> forces ``(..., 20, 1)`` within ±100 N."""
    return MLPDecoder(config.latent, (HORIZON, 1), config.hidden, bounds=SYSTEM.bounds)


def trained_search(config: Config) -> Search:
    """The search as in training."""
    return Search(
        config.num_samples,
        config.num_elites,
        config.num_iterations,
        config.init_std,
        config.temperature,
        config.answer,
    )


def trajectories_an_update(config: Config) -> int:
    """Evaluated for all the initial states of an update."""
    return config.batch_size * trained_search(config).num_trajectories


def solver(search: Search) -> dcem.CEM:
    """The cross-entropy method of a search."""
    selection = dcem.LML(search.temperature) if search.temperature > 0 else dcem.HardTopK()
    return dcem.CEM(search.num_samples, search.num_elites, selection, init_std=search.init_std)


def embedded(decoder: nn.Module, search: Search, *, dynamics: nn.Module = SYSTEM) -> MPC:
    """A controller that searches over the decoder's latent in ±1."""
    gradient = dcem.Unroll() if search.temperature > 0 else dcem.Detach()
    return _controller(search, dynamics, gradient=gradient, decoder=decoder, latent_bounds=(-1.0, 1.0))


def full(search: Search) -> MPC:
    """A controller that searches over the forces themselves."""
    return _controller(search, SYSTEM)


def _controller(search: Search, dynamics: nn.Module, **options: Any) -> MPC:
    common: dict[str, Any] = {"num_iterations": search.num_iterations, "answer": search.answer, **options}
    return MPC(dynamics, SYSTEM.cost, HORIZON, 1, SYSTEM.bounds, solver(search), **common)


EXPERT = Search(num_samples=1000, num_elites=100, num_iterations=30, init_std=50.0)
"""The full-space cross-entropy method that embedded searches are compared with."""


def validation_states(num: int = NUM_VALIDATION, seed: int = VALIDATION_SEED) -> Tensor:
    """Initial states ``(num, 5)`` that no training uses."""
    return SYSTEM.sample_states(num, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def plan(controller: MPC, states: Tensor, *, record: bool = False) -> Plan:
    """Plans from the states, with the same candidates whenever they are made."""
    generator = torch.Generator(states.device).manual_seed(0)
    result: Plan = controller(states, generator=generator, gradient=dcem.Detach(), record=record)
    return result


def costs(controller: MPC, states: Tensor, chunk: int = 100) -> Tensor:
    """What the plans cost, ``(num,)``."""
    return torch.cat([plan(controller, part).cost for part in torch.split(states, chunk)])


def evaluate(decoder: nn.Module, config: Config, states: Tensor) -> dict[str, float]:
    """The mean cost of the search as trained, and of the same search with a hard selection."""
    search = trained_search(config)
    hard = costs(embedded(decoder, search._replace(temperature=0.0)), states).mean()
    soft = costs(embedded(decoder, search), states).mean() if search.temperature > 0 else hard
    return {"cost_soft": float(soft), "cost_hard": float(hard)}


def main(config: Config, run: Run) -> dict[str, float]:
    """Train, evaluate, draw; returns the final metrics."""
    decoder = train(config, run)
    states = validation_states().to(run.device)
    expert = float(costs(full(EXPERT), states).mean())
    metrics = {**evaluate(decoder, config, states), "cost_expert": expert}
    metrics |= {f"factor_{name}": metrics[f"cost_{name}"] / expert for name in SELECTIONS}
    draw(config, run, expert)
    run.finish(**metrics)
    return metrics


def train(config: Config, run: Run) -> MLPDecoder:
    """The training alone: checkpoints and metrics go to the run, the decoder comes back."""
    device = choose_device(config.device)
    decoder = build(config).to(device)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=config.lr)
    schedule = Schedule(optimizer, "cosine", config.num_updates, patience=1)
    generator = torch.Generator(device).manual_seed(config.seed)
    run.track(decoder=decoder, optimizer=optimizer, schedule=schedule, generator=generator)
    dynamics = COMPILED if config.compile else SYSTEM
    controller = embedded(decoder, trained_search(config), dynamics=dynamics).to(device)
    states = validation_states().to(device)
    if run.step == 0:
        run.log(0, **evaluate(decoder, config, states), seconds=0.0)
    for step in run.steps(config.num_updates, config.checkpoint_every):
        initial = SYSTEM.sample_states(config.batch_size, generator=generator, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            loss = controller(initial, generator=generator).cost.mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), config.grad_clip)
        optimizer.step()
        schedule.step()
        if step % config.eval_every == 0 or step == config.num_updates:
            run.log(step, loss=loss.item(), **evaluate(decoder, config, states), seconds=run.elapsed, lr=schedule.lr)
    return decoder


def draw(config: Config, run: Run, expert: float) -> None:
    """The run's figure."""
    from dcem.experiments.cartpole_embed_figures import convergence

    records = run.records()
    of = {f"{name} selection": [[(r["step"], r[f"cost_{name}"]) for r in records]] for name in SELECTIONS}
    title = f"latent {config.latent}, τ = {config.temperature:g}"
    run.figure("convergence", convergence({title: of}, expert, trajectories_an_update(config)))
