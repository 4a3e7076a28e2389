"""Finished cartpole embeddings compared with the cross-entropy method over the forces themselves.

`runs` is a folder that `dcem cartpole-embed` has left its run folders in, at any depth. Runs that differ only in their
seed make one row of the table, which is written as `table.md` beside the figures. For each number of trajectories that
a search had in training, the run with the lowest validation cost is then tried with other searches, on the validation
states and on a thousand others.
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
from dcem.experiments import ConfigError
from dcem.experiments.cartpole_embed import figures, settings, task
from dcem.experiments.cartpole_embed.figures import Landscape, interval
from dcem.experiments.cartpole_embed.settings import SELECTIONS, Search
from dcem.experiments.cartpole_embed.task import EXPERT, HORIZON, SYSTEM, embedded, full, plan
from dcem.experiments.harness.run import CHECKPOINT, SUMMARY, Run
from dcem.experiments.harness.training import require

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
DEPLOYED = Search(200, 10, 5, answer="best")
"""A better use of 1000 trajectories, in which every decoder is tried."""
KINDS = (*SELECTIONS, "deployed")
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

    config: settings.Config
    decoder: MLPDecoder
    records: list[dict[str, Any]]


def check(config: Config) -> None:
    """Refuse settings that cannot be run."""
    require(Path(config.runs).is_dir(), "runs", "a folder of run folders", config.runs)
    require(config.num_test >= 1, "num_test", "at least 1", config.num_test)


def main(config: Config, run: Run) -> dict[str, Any]:
    """Compare, draw, write the tables; returns what is in them."""
    groups: dict[tuple[float | str, ...], list[Trained]] = {}
    for path in sorted(Path(config.runs).rglob(CHECKPOINT)):
        if not (path.parent / SUMMARY).exists():
            run.say(f"{path.parent} is not finished: left out")
            continue
        trained = load(path.parent)
        groups.setdefault(_order(trained.config), []).append(trained)
    if not groups:
        raise ConfigError(f"runs: expected folders of finished runs, got none in {config.runs}")
    ordered = [groups[key] for key in sorted(groups)]
    states, test = task.validation_states(), task.validation_states(config.num_test, TEST_SEED)
    expert = mean_cost(full(EXPERT), states)
    rows = [row(group, states, expert) for group in ordered]
    bests: dict[int, Trained] = {}
    for trained in sorted((t for group in ordered for t in group), key=final_cost):
        bests.setdefault(settings.trained_search(trained.config).num_trajectories, trained)
    for budget, best in bests.items():
        weights = {name: tensor.half() for name, tensor in best.decoder.state_dict().items()}
        torch.save(weights, run.folder / f"decoder-{budget}.pt")
        best.decoder.load_state_dict(weights)
    searches = [
        {"over": over, "search": _search(search), "trajectories": search.num_trajectories, "num_test": len(test),
         "validation": mean_cost(controller, states), "test": mean_cost(controller, test)}
        for over, search, controller in [
            *(("forces", search, full(search)) for search in FULL_SEARCHES),
            *((f"decoder-{budget}", search, embedded(best.decoder, search))
              for budget, best in sorted(bests.items(), reverse=True) for search in SEARCHES),
        ]
    ]  # fmt: skip
    text = tables(rows, searches, bests, f"dcem cartpole-embed-study runs={config.runs}")
    (run.folder / "table.md").write_text(text, "utf-8")
    run.say(text)
    draw(ordered, bests[max(bests)], expert, states, run)
    results = {"expert": expert, "rows": rows, "searches": searches}
    run.finish(**results)
    return results


def load(folder: Path) -> Trained:
    """The trained decoder of a run folder."""
    plain = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    assert isinstance(plain, dict)
    config = settings.Config(**{str(key): value for key, value in plain.items()})
    state = torch.load(folder / CHECKPOINT, weights_only=True)
    decoder = task.build(config)
    decoder.load_state_dict(state["tracked"]["decoder"])
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    return Trained(config, decoder, [json.loads(line) for line in lines])


def final_cost(trained: Trained) -> float:
    """The validation cost at the end of training, with a hard selection."""
    return float(trained.records[-1]["cost_hard"])


def _order(config: settings.Config) -> tuple[float | str, ...]:
    """What makes a row, in the table's order."""
    search = settings.trained_search(config)
    return (-search.num_trajectories, config.answer != "mean", config.num_updates, config.latent, -config.temperature,
            config.num_samples, config.num_elites, config.batch_size)  # fmt: skip


def mean_cost(controller: MPC, states: Tensor) -> float:
    """What the controller's plans cost on average."""
    return float(task.costs(controller, states).mean())


def row(group: Sequence[Trained], states: Tensor, expert: float) -> dict[str, Any]:
    """Costs and improvement factors at the end of training, a number a seed."""
    config = group[0].config
    search = settings.trained_search(config)
    as_paper = search == Search(100, 10, 10, temperature=config.temperature)
    costs = {f"cost_{name}": [trained.records[-1][f"cost_{name}"] for trained in group] for name in SELECTIONS}
    costs["cost_deployed"] = [mean_cost(embedded(trained.decoder, DEPLOYED), states) for trained in group]
    factors = {f"factor_{name}": [cost / expert for cost in costs[f"cost_{name}"]] for name in KINDS}
    return {
        "latent": config.latent,
        "temperature": config.temperature,
        "search": _search(search),
        "updates": config.num_updates,
        "batch_size": config.batch_size,
        "seeds": len(group),
        **costs,
        **factors,
        "factor_paper": PAPER.get(config.latent, {}).get(config.temperature) if as_paper else None,
    }


def _search(search: Search) -> str:
    return f"{search.num_samples} × {search.num_iterations}, {search.num_elites} elites, {search.answer}"


def tables(rows: list[dict[str, Any]], searches: list[dict[str, Any]], bests: dict[int, Trained], command: str) -> str:
    """Both tables as Markdown."""
    expert = searches[0]
    lines = [
        f"Mean cost of {task.NUM_VALIDATION} validation states over seeds, ± 95 % interval. The expert, CEM "
        f"over the forces with {EXPERT.num_trajectories} trajectories a solve, reaches {expert['validation']:.2f}; "
        "factor: cost over the expert's. Search: samples × iterations, elites, and whether the mean or the best sample "
        "is the answer. soft: the selection of the training; hard: the same decoder with a hard one; deployed: with "
        f"{_search(DEPLOYED)}, and hard. best: of the seeds, soft or hard. paper: of its best models, read off a plot. "
        f"Made by `{command}`.",
        "",
        "| latent | τ | search | updates | seeds | cost, soft | cost, hard | cost, deployed | factor, soft "
        "| factor, hard | factor, deployed | best | paper |",
        "| " + " | ".join(["---"] * 13) + " |",
    ]
    for r in rows:
        numbers = [_with_interval(r[f"{what}_{name}"]) for what in ("cost", "factor") for name in KINDS]
        top = max(r["factor_soft"] + r["factor_hard"])
        paper = "" if r["factor_paper"] is None else f"{r['factor_paper']:.2f}"
        updates = f"{r['updates']} of {r['batch_size']}"
        cells = [str(r["latent"]), f"{r['temperature']:g}", r["search"], updates, str(r["seeds"]), *numbers]
        lines.append("| " + " | ".join([*cells, f"{top:.2f}", paper]) + " |")
    lines += ["", "The best decoders, with weights rounded to half precision and a hard selection, in other searches:"]
    for budget, best in sorted(bests.items(), reverse=True):
        c = best.config
        lines.append(
            f"- `decoder-{budget}`: latent {c.latent}, τ = {c.temperature:g}, "
            f"{_search(settings.trained_search(c))}, {c.num_updates} updates of {c.batch_size}, seed {c.seed}"
        )
    lines += [
        "",
        f"test: {searches[0]['num_test']} states that nothing was chosen by; factor: over the expert's cost there.",
        "",
        "| search over | search | trajectories | validation | factor | test | factor |",
        "| " + " | ".join(["---"] * 7) + " |",
    ]
    for s in searches:
        cells = [s["over"], s["search"], str(s["trajectories"])]
        for states in ("validation", "test"):
            cells += [f"{s[states]:.2f}", f"{s[states] / expert[states]:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _with_interval(values: Sequence[float]) -> str:
    mean, half = interval(values)
    return f"{mean:.2f}" if math.isnan(half) else f"{mean:.2f} ± {half:.2f}"


def draw(groups: Sequence[Sequence[Trained]], best: Trained, expert: float, states: Tensor, run: Run) -> None:
    """Convergence over seeds; the latent space of a decoder with two dimensions; the best decoder's candidates."""
    grid = [group for group in groups if _order(group[0].config)[:3] == _order(groups[0][0].config)[:3]]
    panels: dict[str, dict[str, list[figures.Curve]]] = {}
    for name in SELECTIONS:
        for group in grid:
            config = group[0].config
            curves: list[figures.Curve] = [
                [(r["step"], r[f"cost_{name}"]) for r in trained.records] for trained in group
            ]
            title = f"latent {config.latent}, {name} selection"
            panels.setdefault(title, {})[f"trained with τ = {config.temperature:g}"] = curves
    trajectories = settings.trajectories_an_update(grid[0][0].config)
    figure = figures.convergence(panels, expert, trajectories, rows=len(SELECTIONS))
    run.figure("convergence", figure)
    flat = [trained for group in groups for trained in group if trained.config.latent == 2]
    if flat:
        of = min(flat, key=final_cost)
        run.figure("latent-space", figures.landscapes([landscape(of, x) for x in states[:4]]))
    hanging = states[states[:, 2].argmin()]
    searches = {
        "CEM over 20 forces": full(EXPERT),
        f"CEM over {best.config.latent} latents": embedded(best.decoder, SEARCHES[0]),
    }
    plans = {label: plan(controller, hanging, record=True) for label, controller in searches.items()}
    decoders = {label: controller.decoder for label, controller in searches.items()}
    of_forces, of_pole = {}, {}
    for label, made in plans.items():
        decoder, forces, poles = decoders[label], [], []
        for t in ITERATIONS_SHOWN:
            iteration = made.solution.history[t]
            chosen = iteration.samples[:25], iteration.samples[iteration.values.argmin()].unsqueeze(0)
            actions = torch.cat(chosen).detach()
            with torch.no_grad():
                actions = actions if decoder is None else decoder(actions)
                path = follow(hanging, actions)
            forces.append((actions[:-1, :, 0], actions[-1, :, 0]))
            poles.append((path[:-1, :, 2], path[-1, :, 2]))
        of_forces[label], of_pole[label] = forces, poles
    for name, shown, label in (("forces", of_forces, "force (N)"), ("pole", of_pole, "height of the pole, cos θ")):
        run.figure(f"samples-{name}", figures.samples(shown, ITERATIONS_SHOWN, label, SYSTEM.dt))


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
    search = settings.trained_search(trained.config)._replace(temperature=0.0)
    made = plan(embedded(trained.decoder, search), state, record=True)
    passed = [iteration.distribution for iteration in made.solution.history]
    means = torch.stack([torch.zeros(2), *(d.mean for d in passed)])
    stds = torch.stack([torch.full((2,), search.init_std), *(d.std for d in passed)])  # type: ignore[attr-defined]
    angle = math.degrees(math.atan2(float(state[3]), float(state[2])))
    return Landscape(f"θ = {angle:.0f}°, θ̇ = {float(state[4]):.1f} rad/s", grid, cost, means, stds)
