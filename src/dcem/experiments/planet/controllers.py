"""What plans: over the actions themselves, or over a latent that a learned decoder turns into actions."""

from __future__ import annotations

from dataclasses import asdict, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

import dcem
from dcem._tree import leaves
from dcem.control import MPC
from dcem.experiments import ConfigError
from dcem.experiments.harness.processes import shard
from dcem.experiments.harness.settings import require
from dcem.experiments.planet.settings import Config, Embedding, Planner, Tuning
from dcem.experiments.planet.suite import Suite
from dcem.world import RSSM, LatentModel, RSSMBelief, Sequences
from dcem.world.two_hot import symlog


class RecurrentModel(RSSM):
    """The paper's model of the symlog of observations: their likelihood has unit variance, and velocities are large."""

    low: Tensor
    high: Tensor

    def __init__(self, suite: Suite) -> None:
        super().__init__(suite.observation_size, suite.action_size)
        self.register_buffer("low", suite.low.clone())
        self.register_buffer("high", suite.high.clone())

    def observe(self, belief: RSSMBelief, action: Tensor, observation: Tensor, **options: Any) -> RSSMBelief:
        return super().observe(belief, action, symlog(observation), **options)

    def read(self, sequences: Any) -> Sequences:
        seen = super().read(sequences)
        return seen._replace(observation=symlog(seen.observation))


Model = LatentModel | RecurrentModel


def make_model(config: Config, suite: Suite) -> Model:
    """The model at its start, where actions and observations are."""
    if config.model == "rssm":
        return RecurrentModel(suite).to(suite.device)
    return LatentModel(
        suite.observation_size, suite.action_size, (suite.low, suite.high), latent_size=config.latent_size,
        hidden=config.hidden, discount=config.discount,
    ).to(suite.device)  # fmt: skip


def values_of(model: Model) -> dict[str, Any]:
    """What a plan is charged beyond its horizon, where the model has values."""
    if isinstance(model, RecurrentModel):
        return {}
    return {"terminal_cost": model.terminal_cost, "discount": model.discount}


def full_space(model: Model, settings: Planner) -> MPC:
    """Plan over actions with the vanilla selection; with values and proposals where the model has them."""
    proposals: dict[str, Any] = {}
    if isinstance(model, LatentModel):
        proposals = {"proposals": model.propose, "num_proposals": settings.num_proposals}
    solver = dcem.CEM(
        settings.num_samples, settings.num_elites, dcem.HardTopK(), init_std=settings.init_std,
        min_std=settings.min_std, max_std=settings.max_std,
    )  # fmt: skip
    return MPC(
        model.imagine, model.cost, settings.horizon, model.action_size, (model.low, model.high), solver,
        num_iterations=settings.num_iterations, gradient=dcem.Detach(), shard=shard(), **values_of(model), **proposals,
    )  # fmt: skip


def belief_size(model: Model) -> int:
    """How many numbers a belief has."""
    return sum(leaf.shape[-1] for leaf in leaves(model.initial()))


@torch.no_grad()
def last_beliefs(model: Model, sequences: TensorDictBase) -> Any:
    """What the model believes at the end of sequences `(B, T)`, which it knows nothing about before they begin."""
    observation, action = sequences["observation"], sequences["action"]
    belief: Any = model.initial((len(action),))
    before = torch.zeros_like(action[:, 0])
    for t in range(action.shape[1]):
        belief, before = model.observe(belief, before, observation[:, t]), action[:, t]
    return belief


class BeliefDecoder(nn.Module):
    """Plans worth considering in a belief: `(*batch, N, latent) -> (*batch, N, horizon, action)`."""

    def __init__(self, model: Model, latent_size: int, horizon: int, hidden: int) -> None:
        super().__init__()
        self.latent_shape, self.event_shape = (latent_size,), (horizon, model.action_size)
        self.register_buffer("low", model.low.clone())
        self.register_buffer("high", model.high.clone())
        self.layers = nn.Sequential(
            nn.Linear(latent_size + belief_size(model), hidden), nn.LayerNorm(hidden), nn.SiLU(),
            nn.Linear(hidden, hidden), nn.LayerNorm(hidden), nn.SiLU(),
            nn.Linear(hidden, horizon * model.action_size),
        )  # fmt: skip

    def forward(self, z: Tensor, *, state: Tensor | RSSMBelief) -> Tensor:
        share: Tensor = torch.sigmoid(self.layers(torch.cat([z, *leaves(state)], -1)))
        low, high = self.get_buffer("low"), self.get_buffer("high")
        return low + (high - low) * share.reshape(*z.shape[:-1], *self.event_shape)


def embedded(model: Model, decoder: BeliefDecoder, settings: Embedding) -> MPC:
    """Plan by DCEM over the latent of a decoder; every search starts from 0, which the belief gives its meaning."""
    solver = dcem.CEM(
        settings.num_samples, settings.num_elites, dcem.LML(settings.temperature), init_std=settings.init_std
    )
    return MPC(
        model.imagine, model.cost, decoder.event_shape[0], model.action_size, (model.low, model.high), solver,
        num_iterations=settings.num_iterations, decoder=decoder, latent_bounds=(-2.0, 2.0),
        shard=shard(), **values_of(model),
    )  # fmt: skip


class Controller(NamedTuple):
    """A model and what plans through it."""

    config: Config
    model: Any  # of the types of Model
    decoder: BeliefDecoder | None
    env_steps: int

    @property
    def mpc(self) -> MPC:
        """The embedded controller where there is a decoder, else the full-space one."""
        if self.decoder is None:
            return full_space(self.model, self.config.planner)
        return embedded(self.model, self.decoder, self.config.embedding)

    def searched_with(self, **changes: float) -> Controller:
        """The same, which plans by a search with other settings: those of `Planner` or `Embedding` by name."""
        name = "planner" if self.decoder is None else "embedding"
        search = getattr(self.config, name)
        for change in changes:
            require(hasattr(search, change), change, f"0 for a controller that plans by its {name}", changes[change])
        changed = replace(search, **changes)
        least = f"0, or at least {changed.num_elites:g}, the elites of the search"
        require(changed.num_samples >= changed.num_elites, "num_samples", least, changed.num_samples)
        return self._replace(config=replace(self.config, **{name: changed}))


_OF_THE_MODEL = ("task", "model", "latent_size", "hidden", "discount")
_OF_THE_DECODER = ("planner.horizon", "embedding.latent_size")


def save(path: Path, controller: Controller) -> None:
    """Write a controller in half precision, whole or not at all."""
    modules = {"model": controller.model, "decoder": controller.decoder}
    state = {
        "config": {key: value for key, value in asdict(controller.config).items() if key != "defaults"},
        "env_steps": controller.env_steps,
        "weights": {
            name: {key: tensor.half() for key, tensor in module.state_dict().items()}
            for name, module in modules.items()
            if module is not None
        },
    }
    temporary = path.with_name(path.name + ".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def load(path: Path, goes_on: Config | None = None, device: torch.device | str = "cpu") -> tuple[Controller, Suite]:
    """Read a controller, with environments of its task; where it `goes_on`, these settings have to be those it has."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        plain = dict(state["config"])
        config = Config(
            **{
                **plain,
                "planner": Planner(**plain["planner"]),
                "embedding": Embedding(**plain["embedding"]),
                "tuning": Tuning(**plain.get("tuning", {})),
            }
        )
        weights, env_steps = state["weights"], state["env_steps"]
    except FileNotFoundError:
        raise ConfigError(f"checkpoint: expected a file that dcem planet has written; {path} is not there") from None
    except Exception as error:
        raise ConfigError(f"checkpoint: expected a file that dcem planet has written; {path}: {error}") from None
    if goes_on is not None:
        for name in _OF_THE_MODEL + (_OF_THE_DECODER if "decoder" in weights else ()):
            theirs, ours = (attrgetter(name)(settings) for settings in (config, goes_on))
            require(ours == theirs, name, f"{theirs}, as {path} was made with", ours)
    suite = Suite(config.task, config.num_envs, config.episode_steps, device)
    model = make_model(config, suite)
    model.load_state_dict(weights["model"])
    decoder = None
    if "decoder" in weights:
        decoder = make_decoder(config, model)
        decoder.load_state_dict(weights["decoder"])
    return Controller(config, model, decoder, env_steps), suite


def make_decoder(config: Config, model: Model) -> BeliefDecoder:
    """The decoder at its start, where the model is."""
    decoder = BeliefDecoder(model, config.embedding.latent_size, config.planner.horizon, config.hidden)
    return decoder.to(model.low.device)
