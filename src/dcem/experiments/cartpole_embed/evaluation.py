"""`dcem cartpole-embed-evaluate`: learned decoders against searches over the forces with nothing learned.

All are judged by the same 1000 states, which nothing was chosen by. The searches with nothing learned get as many
trajectories and the best of many settings, which are chosen on the validation states.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from dcem.control import MPC
from dcem.experiments.cartpole_embed import settings, task
from dcem.experiments.cartpole_embed.settings import TEST_SEED, Search
from dcem.experiments.cartpole_embed.task import EXPERT, SYSTEM, embedded, full
from dcem.experiments.harness.reading import saved
from dcem.experiments.harness.report import markdown, write_table
from dcem.experiments.harness.run import Run
from dcem.experiments.harness.settings import Settings, count, require, setting

DIVISIONS = {
    30000: ((1000, 100, 30), (1000, 10, 30)),
    1000: ((100, 10, 10), (100, 5, 10), (50, 5, 20)),
    100: ((20, 4, 5), (33, 4, 3), (50, 5, 2)),
}
"""Samples, elites and iterations that so many trajectories are spent as."""
STDS, EXPONENTS, KNOTS = (30.0, 50.0, 100.0, 200.0), (0.5, 1.0, 2.0), (5, 7, 10)
"""Of the first forces (N), of iCEM's noise, and of the straight lines that the forces lie on."""
SEARCHES = (
    Search(100, 10, 10),
    Search(100, 10, 10, answer="best"),
    Search(50, 5, 20, answer="best"),
    Search(200, 10, 5, answer="best"),
    Search(250, 10, 4, answer="best"),
    Search(500, 10, 2, answer="best"),
    Search(20, 4, 5, answer="best"),
    Search(33, 4, 3, answer="best"),
    Search(50, 5, 2, answer="best"),
)
"""Over the latent numbers of each decoder."""


@dataclass
class Config(Settings):
    """Settings of `dcem cartpole-embed-evaluate`."""

    decoders: list[str] = setting(["decoder-1000.pt"], distinct=True)
    """Weights that `dcem cartpole-embed-study` has left."""
    num_validation: int = count(task.NUM_VALIDATION)
    """States that the searches with nothing learned are tuned on: with both numbers a quarter of an hour."""
    num_test: int = count(1000)
    """States of the test."""

    def check(self) -> None:
        super().check()
        for path in self.decoders:
            require(Path(path).is_file(), "decoders", "files of dcem cartpole-embed-study", path)
            load(path)


def main(config: Config, run: Run) -> dict[str, Any]:
    """Search, write the table; returns what is in it."""
    states, test = task.validation_states(config.num_validation), task.validation_states(config.num_test, TEST_SEED)
    searches = compare({Path(path).stem: load(path) for path in config.decoders}, states, test)
    write_table(run, table(searches))
    run.finish(searches=searches)
    return {"searches": searches}


def load(path: str) -> nn.Module:
    """A decoder from its weights, whose shapes say what it is."""
    weights = {name: tensor for name, tensor in saved(Path(path)).items() if isinstance(tensor, Tensor)}
    sees_state = "joint.layers.0.weight" in weights
    layers = [w for name, w in weights.items() if name.removeprefix("joint.").startswith("layers.") and w.dim() == 2]
    require(len(layers) > 0, "decoders", "weights of a cartpole's decoder", path)
    latent = layers[0].shape[1] - (SYSTEM.state_shape[0] if sees_state else 0)
    hidden = [layer.shape[0] for layer in layers[:-1]]
    decoder = task.build(settings.Config(latent=latent, sees_state=sees_state, hidden=hidden))
    decoder.load_state_dict(weights)
    return decoder


class Rival(NamedTuple):
    """A search over the forces with nothing learned."""

    method: str
    search: Search
    options: dict[str, Any]

    def controller(self) -> MPC:
        """What plans so."""
        return full(self.search, **self.options)

    def __str__(self) -> str:
        said = [f"std {self.search.init_std:g} N", *(f"{name} {value:g}" for name, value in self.options.items())]
        return f"{self.search}, {', '.join(said)}"


def rivals(trajectories: int) -> dict[str, list[Rival]]:
    """By their method: CEM, iCEM and CEM over a few knots, with so many trajectories and every setting tried."""
    found: dict[str, list[Rival]] = {"CEM": [], "iCEM": [], "CEM over knots": []}
    for samples, elites, iterations in DIVISIONS[trajectories]:
        for std in STDS:
            search = Search(samples, elites, iterations, std, answer="best")
            found["CEM"].append(Rival("CEM", search, {}))
            found["iCEM"] += [Rival("iCEM", search, {"exponent": exponent}) for exponent in EXPONENTS]
            found["CEM over knots"] += [Rival("CEM over knots", search, {"knots": knots}) for knots in KNOTS]
    return found


def compare(decoders: Mapping[str, nn.Module], states: Tensor, test: Tensor) -> list[dict[str, Any]]:
    """What each search costs on average, on validation and test states."""
    tuned = [
        min(tried, key=lambda rival: mean_cost(rival.controller(), states))
        for trajectories in DIVISIONS
        for tried in rivals(trajectories).values()
    ]
    sampled = EXPERT.but(answer="best")
    return [
        {"over": over, "search": said, "trajectories": search.num_trajectories,
         "num_validation": len(states), "num_test": len(test),
         "validation": mean_cost(controller, states), "test": mean_cost(controller, test)}
        for over, said, search, controller in [
            *(("the expert", str(search), search, full(search)) for search in (EXPERT, sampled)),
            *((rival.method, str(rival), rival.search, rival.controller()) for rival in tuned),
            *((name, str(search), search, embedded(decoder, search))
              for name, decoder in decoders.items() for search in SEARCHES),
        ]
    ]  # fmt: skip


def mean_cost(controller: MPC, states: Tensor) -> float:
    """What the controller's plans cost on average."""
    return float(task.costs(controller, states).mean())


def table(searches: list[dict[str, Any]]) -> str:
    """As Markdown; factors are of the expert, the first of them."""
    expert = searches[0]
    tried = sum(len(of) for trajectories in DIVISIONS for of in rivals(trajectories).values())
    note = (
        f"Mean costs of {expert['num_validation']} validation states and of {expert['num_test']} test states that "
        "nothing was chosen by; factor: cost over the expert's. Searches with nothing learned (CEM, iCEM, CEM "
        "over knots) are for each method and number of trajectories the best on the validation states of the "
        f"settings tried, {tried} in all."
    )
    cells = []
    for s in searches:
        costs = [number for of in ("validation", "test") for number in (s[of], s[of] / expert[of])]
        cells.append([s["over"], s["search"], str(s["trajectories"]), *(f"{cost:.2f}" for cost in costs)])
    head = ["what", "search", "trajectories", "validation", "factor", "test", "factor"]
    return "\n".join([note, "", markdown(head, cells, text_columns=2)])
