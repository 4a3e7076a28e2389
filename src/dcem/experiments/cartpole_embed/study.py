"""Finished cartpole embeddings compared with the cross-entropy method over the forces themselves.

`runs` is a folder that `dcem cartpole-embed` has left its run folders in, at any depth. Runs that differ only in their
seed make one row of the table, which is written as `table.md` beside the figures. For each number of trajectories that
a search had in training, the run with the lowest validation cost is then compared as `dcem cartpole-embed-evaluate`
does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dcem.control import rollout
from dcem.experiments.cartpole_embed import figures, settings, task
from dcem.experiments.cartpole_embed.evaluation import compare, mean_cost, table
from dcem.experiments.cartpole_embed.figures import Landscape
from dcem.experiments.cartpole_embed.settings import SELECTIONS, TEST_SEED, Search
from dcem.experiments.cartpole_embed.task import EXPERT, HORIZON, SYSTEM, embedded, full, plan
from dcem.experiments.harness.reading import checkpoint_of, finished_runs, require_records
from dcem.experiments.harness.report import interval, markdown, plus_minus, write_table
from dcem.experiments.harness.run import Run
from dcem.experiments.harness.settings import Settings, count, require

PAPER = {
    2: {1.0: 1.08, 0.1: 1.05, 0.0: 1.09},
    8: {1.0: 1.18, 0.1: 0.80, 0.0: 0.89},
    16: {1.0: 1.09, 0.1: 0.82, 0.0: 0.65},
}
"""The paper's improvement factors by latent size and temperature, of its best models, read off a plot."""
DEPLOYED = {1000: Search(200, 10, 5, answer="best"), 100: Search(50, 5, 2, answer="best")}
"""A better use of as many trajectories, in which every decoder is tried."""
ITERATIONS_SHOWN = (0, 3, 6, 9)


@dataclass
class Config(Settings):
    """Settings of `dcem cartpole-embed-study`."""

    runs: str = "runs/cartpole-embed"
    num_test: int = count(1000)
    """States of the test beside the validation states."""

    def check(self) -> None:
        super().check()
        finished_runs(self.runs, "cartpole-embed")


class Trained(NamedTuple):
    """A finished run."""

    config: settings.Config
    decoder: nn.Module
    records: list[dict[str, Any]]


def main(config: Config, run: Run) -> dict[str, Any]:
    """Compare, draw, write the tables; returns what is in them."""
    groups: dict[tuple[float | str, ...], list[Trained]] = {}
    for found in finished_runs(config.runs, "cartpole-embed"):
        require_records(found)
        decoder = task.build(of := settings.Config(**found.settings))
        tracked = checkpoint_of(found.folder)["tracked"]
        require("best" in tracked, "runs", "runs that keep the weights of their best evaluation", found.folder)
        decoder.load_state_dict(tracked["best"]["weights"])
        groups.setdefault(_order(of), []).append(Trained(of, decoder, found.records))
    ordered = [groups[key] for key in sorted(groups)]
    states, test = task.validation_states(), task.validation_states(config.num_test, TEST_SEED)
    expert = {"validation": mean_cost(full(EXPERT), states), "test": mean_cost(full(EXPERT), test)}
    rows = [row(group, states, test, expert) for group in ordered]
    bests: dict[int, Trained] = {}
    for trained in sorted((t for group in ordered for t in group), key=final_cost):
        bests.setdefault(trained.config.search.num_trajectories, trained)
    for budget, best in bests.items():
        weights = {name: tensor.half() for name, tensor in best.decoder.state_dict().items()}
        torch.save(weights, run.folder / f"decoder-{budget}.pt")
        best.decoder.load_state_dict(weights)
    decoders = {f"decoder-{budget}": best.decoder for budget, best in sorted(bests.items(), reverse=True)}
    searches = compare(decoders, states, test)
    write_table(run, tables(rows, searches, bests))
    draw(ordered, bests[max(bests)], expert["validation"], states, run)
    results = {"expert": expert, "rows": rows, "searches": searches}
    run.finish(**results)
    return results


def final_cost(trained: Trained) -> float:
    """The lowest validation cost in training, with a hard selection: that of the weights that were kept."""
    return float(min(record["cost_hard"] for record in trained.records))


def _order(config: settings.Config) -> tuple[float | str, ...]:
    """What makes a row, in the table's order."""
    search = config.search
    return (-search.num_trajectories, config.sees_state, config.answer != "mean", config.num_updates, config.latent,
            -config.temperature, config.num_samples, config.num_elites, config.batch_size, config.lr)  # fmt: skip


def row(group: Sequence[Trained], states: Tensor, test: Tensor, expert: dict[str, float]) -> dict[str, Any]:
    """Costs and improvement factors of the weights that were kept, a number a seed."""
    config = group[0].config
    search = config.search
    hard = search.but(temperature=0.0)
    averaged = hard.but(answer="mean")
    as_paper = averaged == Search(100, 10, 10) and not config.sees_state
    deployed = DEPLOYED.get(search.num_trajectories, hard.but(answer="best"))
    searched = {"soft": search, "hard": hard, "mean": averaged, "deployed": deployed}
    costs: dict[str, list[float]] = {}
    for kind, used in searched.items():
        costs[f"cost_{kind}"] = [mean_cost(embedded(trained.decoder, used), states) for trained in group]
    costs["test"] = [mean_cost(embedded(trained.decoder, searched["deployed"]), test) for trained in group]
    return {
        "latent": config.latent,
        "sees_state": config.sees_state,
        "temperature": config.temperature,
        "search": str(search),
        "answer": search.answer,
        "deployed": str(searched["deployed"]),
        "updates": config.num_updates,
        "batch_size": config.batch_size,
        "lr": config.lr,
        "seeds": len(group),
        "trajectories": config.num_updates * config.trajectories_an_update,
        **costs,
        **{f"factor_{k}": [cost / expert["validation"] for cost in costs[f"cost_{k}"]] for k in (*SELECTIONS, "mean")},
        "factor_test": [cost / expert["test"] for cost in costs["test"]],
        "factor_paper": PAPER.get(config.latent, {}).get(config.temperature) if as_paper else None,
    }


def tables(rows: list[dict[str, Any]], searches: list[dict[str, Any]], bests: dict[int, Trained]) -> str:
    """Both tables as Markdown."""
    expert = searches[0]
    note = (
        f"Mean costs over seeds, ± 95 % interval. The expert, CEM over the forces with {EXPERT.num_trajectories} "
        f"trajectories a solve, reaches {expert['validation']:.2f} on the {task.NUM_VALIDATION} validation states "
        f"and {expert['test']:.2f} on the {expert['num_test']} test states; factor: cost over the expert's. "
        "Search: samples × iterations, elites, and whether the mean or the best sample is the answer. soft: the "
        "selection of the training; hard: the same decoder with a hard one (both on the validation states, which "
        "chose the evaluation whose weights were kept). test: on the test states, hard, the best sample of as "
        "many trajectories. mean: hard, with the mean as answer whatever the training had. best: of the factors of "
        "the seeds with the mean as answer, soft or hard. paper: of its best models, read off a plot, with the "
        "mean as answer. trained with: trajectories, in millions."
    )
    head = ["latent", "sees the state", "τ", "search", "updates", "rate", "seeds", "trained with"]
    head += ["soft", "hard", "mean", "factor, soft", "factor, hard", "factor, mean", "best", "paper", "test", "factor"]
    cells = []
    for r in rows:
        kinds = (*SELECTIONS, "mean")
        names = [*(f"cost_{kind}" for kind in kinds), *(f"factor_{kind}" for kind in kinds), "test", "factor_test"]
        *found, test, factor = (plus_minus(interval(r[name]), ".2f") for name in names)
        top = max(r["factor_mean"] + (r["factor_soft"] if r["answer"] == "mean" else []))
        paper = "" if r["factor_paper"] is None else f"{r['factor_paper']:.2f}"
        updates = f"{r['updates']} of {r['batch_size']}"
        first = [str(r["latent"]), "yes" if r["sees_state"] else "no", f"{r['temperature']:g}", r["search"], updates]
        first += [f"{r['lr']:g}", str(r["seeds"]), f"{r['trajectories'] / 1e6:.1f}"]
        cells.append([*first, *found, f"{top:.2f}", paper, test, factor])
    lines = [note, "", markdown(head, cells)]
    lines += ["The best decoders, with weights rounded to half precision and a hard selection, in other searches:"]
    for budget, best in sorted(bests.items(), reverse=True):
        c = best.config
        lines.append(
            f"- `decoder-{budget}`: latent {c.latent}{' and the state' if c.sees_state else ''}, "
            f"τ = {c.temperature:g}, {c.search}, {c.num_updates} updates of {c.batch_size}, seed {c.seed}"
        )
    return "\n".join([*lines, "", table(searches)])


def draw(groups: Sequence[Sequence[Trained]], best: Trained, expert: float, states: Tensor, run: Run) -> None:
    """Convergence over seeds; the latent space of a decoder with two dimensions; the best decoder's candidates."""
    first = _order(groups[0][0].config)
    grid = [group for group in groups if _order(group[0].config)[:4] == first[:4]]
    panels: dict[str, dict[str, list[figures.Curve]]] = {}
    for name in SELECTIONS:
        for group in grid:
            config = group[0].config
            curves: list[figures.Curve] = [
                [(r["step"], r[f"cost_{name}"]) for r in trained.records] for trained in group
            ]
            title = f"latent {config.latent}, {name} selection"
            panels.setdefault(title, {})[f"trained with τ = {config.temperature:g}"] = curves
    trajectories = grid[0][0].config.trajectories_an_update
    figure = figures.convergence(panels, expert, trajectories, rows=len(SELECTIONS))
    run.figure("convergence", figure)
    flat = [t for group in groups for t in group if t.config.latent == 2 and not t.config.sees_state]
    if flat:
        of = min(flat, key=final_cost)
        run.figure("latent-space", figures.landscapes([landscape(of, x) for x in states[:4]]))
    hanging = states[states[:, 2].argmin()]
    searches = {
        "CEM over 20 forces": full(EXPERT),
        f"CEM over {best.config.latent} latents": embedded(best.decoder, Search(100, 10, 10)),
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
                if decoder is not None:
                    seen = {"state": hanging.expand(len(actions), -1)} if best.config.sees_state else {}
                    actions = decoder(actions, **seen)
                path = follow(hanging, actions)
            forces.append((actions[:-1, :, 0], actions[-1, :, 0]))
            poles.append((path[:-1, :, 2], path[-1, :, 2]))
        of_forces[label], of_pole[label] = forces, poles
    for name, shown, label in (("forces", of_forces, "force (N)"), ("pole", of_pole, "height of the pole, cos θ")):
        run.figure(f"samples-{name}", figures.samples(shown, ITERATIONS_SHOWN, label, SYSTEM.dt))


def follow(state: Tensor, actions: Tensor) -> Tensor:
    """Where action sequences `(n, 20, 1)` lead from one state: `(n, 21, 5)`."""
    states: Tensor = rollout(SYSTEM, state.expand(len(actions), -1), actions)
    return states


@torch.no_grad()
def landscape(trained: Trained, state: Tensor) -> Landscape:
    """The cost over a decoder's two latent numbers, and the way of a search."""
    grid = torch.linspace(-1, 1, 101)
    actions = trained.decoder(torch.cartesian_prod(grid, grid))
    path = follow(state, actions)
    cost = SYSTEM.cost(path[:, :HORIZON], actions).sum(-1).reshape(len(grid), len(grid))
    search = trained.config.search.but(temperature=0.0)
    made = plan(embedded(trained.decoder, search), state, record=True)
    passed = [iteration.distribution for iteration in made.solution.history]
    means = torch.stack([torch.zeros(2), *(d.mean for d in passed)])
    stds = torch.stack([torch.full((2,), search.init_std), *(d.std for d in passed)])  # type: ignore[attr-defined]
    angle = math.degrees(math.atan2(float(state[3]), float(state[2])))
    return Landscape(f"θ = {angle:.0f}°, θ̇ = {float(state[4]):.1f} rad/s", grid, cost, means, stds)
