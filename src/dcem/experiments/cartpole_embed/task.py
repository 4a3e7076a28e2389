"""The cartpole, what plans for it, and what plans cost."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import dcem
from dcem.bounds import BoundsLike
from dcem.control import MPC, Compiled, Plan
from dcem.control.systems import Cartpole
from dcem.embedding import MLPDecoder, SplineDecoder
from dcem.experiments.cartpole_embed.settings import VALIDATION_SEED, Config, Search
from dcem.experiments.harness.processes import shard

HORIZON = 20
SYSTEM = Cartpole()
COMPILED = Compiled(SYSTEM)
"""One for all runs of a sweep: compilation takes longer than a short training."""
NUM_VALIDATION = 100


def build(config: Config) -> nn.Module:
    """The decoder that the config describes: `z` `(..., latent)` -> forces `(..., 20, 1)` within ±100 N."""
    kind = StateDecoder if config.sees_state else MLPDecoder
    return kind(config.latent, (HORIZON, 1), config.hidden, bounds=SYSTEM.bounds)


class StateDecoder(nn.Module):
    """One that sees the initial state, too: then the latent need only say what is best in that state."""

    def __init__(self, latent: int, event_shape: tuple[int, int], hidden: list[int], *, bounds: BoundsLike) -> None:
        super().__init__()
        self.latent_shape, self.event_shape = (latent,), event_shape
        self.joint = MLPDecoder(latent + SYSTEM.state_shape[0], event_shape, hidden, bounds=bounds)

    def forward(self, z: Tensor, *, state: Tensor) -> Tensor:
        """Forces `(..., 20, 1)` of `z` `(..., latent)` in `state` `(..., 5)`."""
        actions: Tensor = self.joint(torch.cat([z, state], -1))
        return actions


def embedded(decoder: nn.Module, search: Search, *, dynamics: nn.Module = SYSTEM) -> MPC:
    """A controller that searches over the decoder's latent in ±1."""
    gradient = dcem.Unroll() if search.temperature > 0 else dcem.Detach()
    return _controller(search, dynamics, gradient=gradient, decoder=decoder, latent_bounds=(-1.0, 1.0))


def full(search: Search, *, knots: int | None = None, exponent: float | None = None) -> MPC:
    """A controller that searches over the forces themselves, with nothing learned.

    With `knots` over those of straight lines instead; with an `exponent` as iCEM does: coloured noise, and a third of
    the elites kept.
    """
    options: dict[str, Any] = {}
    if knots is not None:
        decoder = SplineDecoder(knots, (HORIZON, 1), bounds=SYSTEM.bounds)
        options = {"decoder": decoder, "latent_bounds": SYSTEM.bounds}
    if exponent is not None:
        options |= {"noise": dcem.ColoredNoise(exponent, dim=-2), "keep_elites": 0.3}
    return _controller(search, SYSTEM, **options)


def _controller(search: Search, dynamics: nn.Module, *, keep_elites: float = 0.0, **options: Any) -> MPC:
    common: dict[str, Any] = {
        "num_iterations": search.num_iterations, "answer": search.answer, "shard": shard(), **options,
    }  # fmt: skip
    return MPC(dynamics, SYSTEM.cost, HORIZON, 1, SYSTEM.bounds, search.solver(keep_elites), **common)


EXPERT = Search(num_samples=1000, num_elites=100, num_iterations=30, init_std=50.0)
"""The full-space cross-entropy method that embedded searches are compared with."""


def validation_states(num: int = NUM_VALIDATION, seed: int = VALIDATION_SEED) -> Tensor:
    """Initial states `(num, 5)` that no training uses."""
    return SYSTEM.sample_states(num, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def plan(controller: MPC, states: Tensor, *, record: bool = False) -> Plan:
    """Plans from the states, with the same candidates whenever they are made."""
    generator = torch.Generator(states.device).manual_seed(0)
    result: Plan = controller(states, generator=generator, gradient=dcem.Detach(), record=record)
    return result


def costs(controller: MPC, states: Tensor, chunk: int = 100) -> Tensor:
    """What the plans cost, `(num,)`."""
    return torch.cat([plan(controller, part).cost for part in torch.split(states, chunk)])


def evaluate(decoder: nn.Module, config: Config, states: Tensor) -> dict[str, float]:
    """The mean cost of the search as trained, and of the same search with a hard selection."""
    search = config.search
    hard = costs(embedded(decoder, search.but(temperature=0.0)), states).mean()
    soft = costs(embedded(decoder, search), states).mean() if search.temperature > 0 else hard
    return {"cost_soft": float(soft), "cost_hard": float(hard)}
