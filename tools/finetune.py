"""Draw the pictures of `results/finetune` from its records, and print the differences to the true model's controller.

``python tools/finetune.py`` writes the five pictures and prints, seed by seed with a 95 % interval, what a method
returns more than the controller with the true model and cost from the same seed, after each number of steps.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from dcem.experiments.finetune import figures
from dcem.experiments.finetune.settings import METHODS
from dcem.experiments.harness.report import plus_minus

FOLDER = Path(__file__).resolve().parents[1] / "results" / "finetune"
STRONGEST, QUICK = "tuned sac-network", "sac-quick"
LABELS = {**METHODS, STRONGEST: "SAC, network, an update every step", QUICK: "SAC likewise, an update every step"}
NETWORKS = {"ppo-network": "ppo-network", STRONGEST: "sac-network-quick"}
"""What is drawn, and in which files it is."""
TUNED = {
    "pendulum-model": ("untuned", "ppo", "ppo-likelihood", "sac", QUICK, "sac-likelihood"),
    "pendulum-cost": ("untuned", "ppo", "sac", QUICK, "sac-likelihood"),
    "cartpole-model": ("untuned", "ppo", "ppo-likelihood", "sac", QUICK, "sac-likelihood"),
    "cartpole-cost": ("untuned", "ppo", "sac", "sac-likelihood"),
}
OTHERWISE = {("cartpole-model", "ppo"): "ppo-decay", ("cartpole-model", "sac"): "sac-48"}
Lines = list[dict[str, Any]]


def records(stem: str, seeds: int = 5) -> dict[int, Lines]:
    """The evaluations of each seed."""
    files = {seed: FOLDER / f"{stem}-{seed}.jsonl" for seed in range(seeds)}
    return {
        seed: [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
        for seed, file in files.items()
        if file.is_file()
    }


def draw() -> None:
    """The pictures: of the cartpole's wrong model one with 48 candidates, and one with 192."""
    of: dict[str, dict[str, list[Lines]]] = {}
    for task in ("pendulum", "cartpole"):
        stems = {"oracle": "oracle", **NETWORKS}
        of[task] = {method: [*records(f"{task}-{stem}").values()] for method, stem in stems.items()}
    for name, methods in TUNED.items():
        stems = {method: OTHERWISE.get((name, method), method) for method in methods}
        # All ten seeds where there are so many.
        of[name] = {
            method: [*records(f"{name}-{stem}", 10 if method == "sac-likelihood" else 5).values()]
            for method, stem in stems.items()
        }
    for name, figure in figures.draw(of, LABELS).items():
        if name == "cartpole-model":
            figure.axes[0].set_title("cartpole: wrong model, 48 candidates", fontsize="medium")
        figure.savefig(FOLDER / f"{'cartpole-model-48' if name == 'cartpole-model' else name}.png")
    many = {m: [*records(f"cartpole-model-{m}-192").values()] for m in ("untuned", "ppo")}
    cartpole = of["cartpole"] | {"oracle": [*records("cartpole-oracle-192").values()]}
    figure = figures.draw({"cartpole": cartpole, "cartpole-model": many}, LABELS)["cartpole-model"]
    figure.axes[0].set_title("cartpole: wrong model, 192 candidates", fontsize="medium")
    figure.savefig(FOLDER / "cartpole-model.png")


def compare(stem: str, oracle: str) -> None:
    """Print the differences of all seeds that both have."""
    runs, truth = records(stem, 20), records(oracle, 20)
    seeds = [seed for seed in runs if seed in truth]
    best = [truth[seed][-1]["return"] for seed in seeds]
    print(f"{stem}: {len(seeds)} seeds, {-figures.WITHIN * abs(statistics.fmean(best)):.1f} is the goal")
    for step, difference in figures.compared(figures.curve([runs[seed] for seed in seeds]), best).items():
        print(f"  after {step}: {plus_minus(difference, '.1f')}")


if __name__ == "__main__":
    draw()
    for name in TUNED:
        compare(f"{name}-sac-likelihood", f"{name.partition('-')[0]}-oracle")
    for name in ("pendulum-model-ppo", "pendulum-cost-ppo", "cartpole-cost-ppo", "cartpole-model-ppo-likelihood"):
        compare(name, f"{name.partition('-')[0]}-oracle")
    compare("cartpole-model-ppo-192", "cartpole-oracle-192")
