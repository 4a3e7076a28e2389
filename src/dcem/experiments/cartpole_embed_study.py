"""Finished cartpole embeddings compared with the cross-entropy method over the forces themselves.

`runs` is a folder that `dcem cartpole-embed` has left its run folders in, at any depth. Runs that differ only in their
seed make one row of the table, which is written as `table.md` beside the figures. The run with the lowest validation
cost is then tried with other searches, on the validation states and on a thousand others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import OmegaConf
from torch import Tensor

from dcem.control import MPC, rollout
from dcem.embedding import MLPDecoder
from dcem.experiments import ConfigError, cartpole_embed, cartpole_embed_figures
from dcem.experiments.cartpole_embed import EXPERT, HORIZON, SELECTIONS, SYSTEM, Search, embedded, full, plan
from dcem.experiments.cartpole_embed_figures import Landscape, interval
from dcem.experiments.run import CHECKPOINT, Run
from dcem.experiments.training import require

GROUPS: dict[str, dict[str, Any]] = {}
TEST_SEED = 1000
PAPER = {
    2: {1.0: 1.08, 0.1: 1.05, 0.0: 1.09},
    8: {1.0: 1.18, 0.1: 0.80, 0.0: 0.89},
    16: {1.0: 1.09, 0.1: 0.82, 0.0: 0.65},
}
"""The paper's improvement factors by latent size and temperature, of its best models, read off a plot."""
FULL_SEARCHES = (
    EXPERT,
    EXPERT._replace(num_elites=10),
    Search(num_samples=100, num_elites=10, num_iterations=10, init_std=50.0),
)
SEARCHES = (
    Search(100, 10, 10),
    Search(100, 10, 10, answer="best"),
    Search(100, 5, 10, answer="best"),
    Search(50, 5, 20, answer="best"),
    Search(200, 10, 5, answer="best"),
    Search(250, 10, 4, answer="best"),
    Search(500, 10, 2, answer="best"),
    Search(20, 4, 5),
    Search(20, 4, 5, answer="best"),
    Search(25, 3, 4, answer="best"),
    Search(33, 4, 3, answer="best"),
    Search(50, 5, 2, answer="best"),
)
ITERATIONS_SHOWN = (0, 3, 6, 9)


@dataclass
class Config:
    """Settings of `dcem cartpole-embed-study`."""

    runs: str = "runs/cartpole-embed"
    num_test: int = 1000
    """States of the test beside the validation states."""
    seed: int = 0
    device: str = "cpu"
    threads: int = 1


class Trained(NamedTuple):
    """A finished run."""

    config: cartpole_embed.Config
    decoder: MLPDecoder
    records: list[dict[str, Any]]


def check(config: Config) -> None:
    """Refuse settings that cannot be run."""
    require(Path(config.runs).is_dir(), "runs", "a folder of run folders", config.runs)
    require(config.num_test >= 1, "num_test", "at least 1", config.num_test)


def main(config: Config, run: Run) -> dict[str, Any]:
    """Compare, draw, write the tables; returns what is in them."""
    groups: dict[tuple[int, float, int], list[Trained]] = {}
    for path in sorted(Path(config.runs).rglob(CHECKPOINT)):
        trained = load(path.parent)
        settings = trained.config
        groups.setdefault((settings.latent, -settings.temperature, settings.num_updates), []).append(trained)
    if not groups:
        raise ConfigError(f"runs: expected run folders with a {CHECKPOINT}, got none in {config.runs}")
    ordered = [groups[key] for key in sorted(groups)]
    states, test = cartpole_embed.validation_states(), cartpole_embed.validation_states(config.num_test, TEST_SEED)
    expert = mean_cost(full(EXPERT), states)
    rows = [row(group, expert) for group in ordered]
    best = min((trained for group in ordered for trained in group), key=lambda t: float(t.records[-1]["cost_hard"]))
    weights = {name: tensor.half() for name, tensor in best.decoder.state_dict().items()}
    torch.save(weights, run.folder / "decoder.pt")
    best.decoder.load_state_dict(weights)
    searches = [
        {"space": space, **search._asdict(), "validation": mean_cost(controller, states),
         "test": mean_cost(controller, test)}
        for space, search, controller in [
            *(("forces", search, full(search)) for search in FULL_SEARCHES),
            *(("latent", search, embedded(best.decoder, search)) for search in SEARCHES),
        ]
    ]  # fmt: skip
    text = tables(rows, searches, best, f"dcem cartpole-embed-study runs={config.runs}")
    (run.folder / "table.md").write_text(text, "utf-8")
    run.say(text)
    draw(ordered, best, expert, states, run)
    results = {"expert": expert, "rows": rows, "searches": searches}
    run.finish(**results)
    return results


def load(folder: Path) -> Trained:
    """The trained decoder of a run folder."""
    settings = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    assert isinstance(settings, dict)
    config = cartpole_embed.Config(**{str(key): value for key, value in settings.items()})
    state = torch.load(folder / CHECKPOINT, weights_only=True)
    decoder = cartpole_embed.build(config)
    decoder.load_state_dict(state["tracked"]["decoder"])
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    return Trained(config, decoder, [json.loads(line) for line in lines])


def mean_cost(controller: MPC, states: Tensor) -> float:
    """What the controller's plans cost on average."""
    return float(cartpole_embed.costs(controller, states).mean())


def row(group: Sequence[Trained], expert: float) -> dict[str, Any]:
    """Costs and improvement factors at the end of training, a number a seed."""
    config = group[0].config
    costs = {f"cost_{name}": [trained.records[-1][f"cost_{name}"] for trained in group] for name in SELECTIONS}
    factors = {f"factor_{name}": [cost / expert for cost in costs[f"cost_{name}"]] for name in SELECTIONS}
    return {
        "latent": config.latent,
        "temperature": config.temperature,
        "updates": config.num_updates,
        "seeds": len(group),
        **costs,
        **factors,
        "factor_paper": PAPER.get(config.latent, {}).get(config.temperature),
    }


def tables(rows: list[dict[str, Any]], searches: list[dict[str, Any]], best: Trained, command: str) -> str:
    """Both tables as Markdown."""
    expert = searches[0]
    lines = [
        f"Mean cost of {cartpole_embed.NUM_VALIDATION} validation states over seeds, ± 95 % interval. The expert, CEM "
        f"over the forces with 30 000 trajectories a solve, reaches {expert['validation']:.2f}; factor: cost over the "
        "expert's. All searches over the latent have 1000 trajectories. soft: the selection of the training; hard: the "
        f"same decoder with a hard one. Made by `{command}`.",
        "",
        "| latent | τ | updates | seeds | cost, soft | cost, hard | factor, soft | factor, hard | best seed | paper |",
        "| " + " | ".join(["---"] * 10) + " |",
    ]
    for r in rows:
        numbers = [_with_interval(r[f"{what}_{name}"]) for what in ("cost", "factor") for name in SELECTIONS]
        top = max(r["factor_soft"] + r["factor_hard"])
        paper = "" if r["factor_paper"] is None else f"{r['factor_paper']:.2f}"
        cells = [str(r["latent"]), f"{r['temperature']:g}", str(r["updates"]), str(r["seeds"]), *numbers]
        lines.append("| " + " | ".join([*cells, f"{top:.2f}", paper]) + " |")
    config = best.config
    lines += [
        "",
        f"The best decoder (latent {config.latent}, τ = {config.temperature:g}, {config.num_updates} updates, seed "
        f"{config.seed}; weights rounded to half precision) with other searches, all with a hard selection, on the "
        "validation states and on others that nothing was chosen by.",
        "",
        "| search over | samples × iterations | elites | answer | trajectories | validation | factor | test | factor |",
        "| " + " | ".join(["---"] * 9) + " |",
    ]
    for s in searches:
        cells = [s["space"], f"{s['num_samples']} × {s['num_iterations']}", str(s["num_elites"]), s["answer"]]
        cells.append(str(s["num_samples"] * s["num_iterations"]))
        for states in ("validation", "test"):
            cells += [f"{s[states]:.2f}", f"{s[states] / expert[states]:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _with_interval(values: Sequence[float]) -> str:
    mean, half = interval(values)
    return f"{mean:.2f}" if math.isnan(half) else f"{mean:.2f} ± {half:.2f}"


def draw(groups: Sequence[Sequence[Trained]], best: Trained, expert: float, states: Tensor, run: Run) -> None:
    """Convergence over seeds; the latent space of a decoder with two dimensions; the best decoder's candidates."""
    shortest = min(group[0].config.num_updates for group in groups)
    panels: dict[str, dict[str, list[cartpole_embed_figures.Curve]]] = {}
    for name in SELECTIONS:
        for group in groups:
            config = group[0].config
            if config.num_updates == shortest:
                curves: list[cartpole_embed_figures.Curve] = [
                    [(r["step"], r[f"cost_{name}"]) for r in trained.records] for trained in group
                ]
                title = f"latent {config.latent}, {name} selection"
                panels.setdefault(title, {})[f"trained with τ = {config.temperature:g}"] = curves
    run.figure("convergence", cartpole_embed_figures.convergence(panels, expert, rows=len(SELECTIONS)))
    flat = [trained for group in groups for trained in group if trained.config.latent == 2]
    if flat:
        of = min(flat, key=lambda trained: float(trained.records[-1]["cost_hard"]))
        run.figure("latent-space", cartpole_embed_figures.landscapes([landscape(of, x) for x in states[:4]]))
    hanging = states[states[:, 2].argmin()]
    searches = {
        "CEM over the forces": full(EXPERT),
        f"over the latent ({best.config.latent})": embedded(best.decoder, SEARCHES[0]),
    }
    plans = {label: plan(controller, hanging, record=True) for label, controller in searches.items()}
    decoders = {label: controller.decoder for label, controller in searches.items()}
    of_forces, of_pole = {}, {}
    for label, made in plans.items():
        decoder, forces, poles = decoders[label], [], []
        for t in ITERATIONS_SHOWN:
            iteration = made.solution.history[t]
            chosen = iteration.samples[:40], iteration.samples[iteration.values.argmin()].unsqueeze(0)
            actions = torch.cat(chosen).detach()
            with torch.no_grad():
                actions = actions if decoder is None else decoder(actions)
                path = follow(hanging, actions)
            forces.append((actions[:-1, :, 0], actions[-1, :, 0]))
            poles.append((path[:-1, :, 2], path[-1, :, 2]))
        of_forces[label], of_pole[label] = forces, poles
    figure = cartpole_embed_figures.samples
    run.figure("samples-forces", figure(of_forces, ITERATIONS_SHOWN, "force (N)", SYSTEM.dt))
    run.figure("samples-pole", figure(of_pole, ITERATIONS_SHOWN, "height of the pole, cos θ", SYSTEM.dt))


def follow(state: Tensor, actions: Tensor) -> Tensor:
    """Where action sequences ``(n, 20, 1)`` lead from one state: ``(n, 21, 5)``."""
    states: Tensor = rollout(SYSTEM, state.expand(len(actions), -1), actions)
    return states


@torch.no_grad()
def landscape(trained: Trained, state: Tensor, num: int = 101) -> Landscape:
    """The cost over a decoder's two latent numbers, and the way of a search."""
    grid = torch.linspace(-1, 1, num)
    actions = trained.decoder(torch.cartesian_prod(grid, grid))
    path = follow(state, actions)
    cost = SYSTEM.cost(path[:, :HORIZON], actions).sum(-1).reshape(num, num)
    search = cartpole_embed.trained_search(trained.config)._replace(temperature=0.0)
    made = plan(embedded(trained.decoder, search), state, record=True)
    passed = [iteration.distribution for iteration in made.solution.history]
    means = torch.stack([torch.zeros(2), *(d.mean for d in passed)])
    stds = torch.stack([torch.full((2,), search.init_std), *(d.std for d in passed)])  # type: ignore[attr-defined]
    angle = math.degrees(math.atan2(float(state[3]), float(state[2])))
    return Landscape(f"θ = {angle:.0f}°, θ̇ = {float(state[4]):.1f} rad/s", grid, cost, means, stds)
