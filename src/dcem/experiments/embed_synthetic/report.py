"""Numbers and tables of `dcem embed-synthetic`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dcem.embedding import MLPDecoder
from dcem.experiments.embed_synthetic.counting import Outcome, expected_evaluations
from dcem.experiments.embed_synthetic.methods import LABELS
from dcem.experiments.embed_synthetic.settings import Config
from dcem.experiments.harness.report import interval, markdown, plus_minus

Settings = dict[str, Any]
UNTRAINED = ("cem", "icem", "cma", "adam", "random", "cosine")
"""What needs neither training nor solutions."""


class Part(NamedTuple):
    """One size and seed: the settings and the outcome of every method on the same test problems."""

    chosen: dict[str, Settings]
    outcomes: dict[str, dict[str, Any]]
    seconds: float
    decoder: MLPDecoder


def plain(outcome: Outcome) -> dict[str, Any]:
    """An outcome as JSON has it: the costs' geometric means, and after how many evaluations a problem was solved."""
    return {
        "evaluations": outcome.evaluations.tolist(),
        "cost": [float(f"{value:.3e}") for value in outcome.costs.log().mean(0).exp().tolist()],
        "solved": [value if math.isfinite(value) else None for value in outcome.solved.tolist()],
    }


def solved(outcome: Mapping[str, Any]) -> Tensor:
    """Evaluations until each problem was solved, infinite where it was not."""
    return torch.tensor([math.inf if value is None else value for value in outcome["solved"]])


def curves(parts: Mapping[int, Sequence[Part]]) -> dict[str, Any]:
    """What the figure of the courses shows: by size and method a list over seeds of costs and of shares solved."""
    first = next(iter(parts.values()))[0].outcomes["learned"]["evaluations"]
    sizes: dict[str, Any] = {}
    for size, seeds in parts.items():
        sizes[str(size)] = {
            name: {
                "cost": [one.outcomes[name]["cost"] for one in seeds],
                "share": [
                    [round(float((solved(one.outcomes[name]) <= mark).float().mean()), 4) for mark in first]
                    for one in seeds
                ],
            }
            for name in seeds[0].outcomes
        }
    return {"evaluations": first, "sizes": sizes}


def summary(
    config: Config, parts: Mapping[int, Sequence[Part]], landscapes: Mapping[int, Mapping[str, float]]
) -> dict[str, Any]:
    """Plain numbers; of a method lists over seeds, but the evaluations of a problem solved over all of them."""
    per_update = 2 * config.batch_size * (config.num_samples * config.num_iterations + 1)
    training, sizes = config.num_updates * per_update, {}
    for size, seeds in parts.items():
        methods: dict[str, Any] = {}
        for name in seeds[0].outcomes:
            outcomes = [one.outcomes[name] for one in seeds]
            mean = expected_evaluations(torch.cat([solved(of) for of in outcomes]), config.budget)
            methods[name] = {
                "settings": seeds[0].chosen[name],
                "share_solved": [float(solved(of).isfinite().float().mean()) for of in outcomes],
                "evaluations_a_problem_solved": _finite(mean),
                "of_each_seed": [_finite(expected_evaluations(solved(of), config.budget)) for of in outcomes],
                "final_cost": [of["cost"][-1] for of in outcomes],
            }
        needed: dict[str, float | None] = {name: of["evaluations_a_problem_solved"] for name, of in methods.items()}
        best = min(UNTRAINED, key=lambda name: needed.get(name) or math.inf)
        least = needed.get(best)
        prices = {"learned": training, "pca": None if least is None else round(config.num_solutions * least)}
        sizes[size] = {
            "landscape": landscapes[size],
            "methods": methods,
            "training_seconds": [one.seconds for one in seeds],
            "strongest_untrained": None if least is None else best,
            "price": prices,
            "paid_back_after": {name: paid_back(price, needed[name], least) for name, price in prices.items()},
        }
    return {"training_evaluations": training, "sizes": sizes}


def table(config: Config, metrics: dict[str, Any]) -> str:
    """Markdown: what each method needs, how often it gets there, where it ends; then the price of the training."""
    sizes = metrics["sizes"]
    labels = _labels(next(iter(sizes.values()))["methods"])
    head = ["", *(f"N = {size}" for size in sizes)]

    def rows(cell: Any) -> str:
        return markdown(
            head, [[label, *(cell(of["methods"][name]) for of in sizes.values())] for name, label in labels.items()]
        )

    needed = rows(lambda of: _needed(of["evaluations_a_problem_solved"], config))
    share = rows(lambda of: plus_minus(interval([100 * share for share in of["share_solved"]]), ".0f"))
    final = rows(lambda of: _geometric(of["final_cost"]))
    price = markdown(
        (
            "N",
            "",
            "before the first problem, evaluations",
            "training, s",
            "saved a problem",
            "paid back after, problems",
        ),
        [
            _prices(str(size), of, name, label)
            for size, of in sizes.items()
            for name, label in labels.items()
            if name in of["price"]
        ],
        text_columns=2,
    )
    minima = markdown(
        ("N", "minima along", "of random starts end in a minimum of their own, %", "in the lowest, %"),
        [[str(size), *(f"{value:.0f}" for value in _percent(of["landscape"]))] for size, of in sizes.items()],
        text_columns=0,
    )
    chosen = markdown(
        ("", *head[1:]),
        [[label, *(_settings(of["methods"][n]["settings"]) for of in sizes.values())] for n, label in labels.items()],
    )
    return (
        f"{config.num_seeds} seeds of training, {config.num_test} unseen problems each, {config.budget:,} evaluations "
        "a problem; a gradient counts as one more. Searches that end before start again.\n"
        f"\n**Evaluations for a problem solved** (to {config.target:g}; all evaluations over the problems solved)\n\n"
        f"{needed}"
        f"\n**Problems solved within the budget, %** (mean over seeds, 95 % interval)\n\n{share}"
        f"\n**Final cost** (geometric mean over problems and seeds, and the seeds' range)\n\n{final}"
        "\n**What is paid before the first problem**, beside the best of the methods that pay nothing: training, its "
        f"gradients counted; the {config.num_solutions} solutions whose components are taken, found by that method\n\n"
        f"{price}"
        f"\n**Minima** (along the surface by a grid; gradient descent from {config.num_starts} starts)\n\n{minima}"
        f"\n**Settings**, chosen on {config.num_valid} problems that are no test problems\n\n{chosen}"
    )


def _labels(methods: Mapping[str, Any]) -> dict[str, str]:
    return {name: label for name, label in LABELS.items() if name in methods}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def paid_back(price: float | None, ours: float | None, theirs: float | None) -> int | None:
    """After how many problems solved what was paid before the first is saved; None for never.

    Args:
        price: evaluations before the first problem.
        ours: evaluations a problem solved.
        theirs: likewise, of a rival that pays nothing before; None if it solves none.
    """
    if price is None or ours is None or theirs is None or ours >= theirs:
        return None
    return math.ceil(price / (theirs - ours))


def _prices(size: str, of: Mapping[str, Any], name: str, label: str) -> list[str]:
    best, methods, price, after = (
        of["strongest_untrained"],
        of["methods"],
        of["price"][name],
        of["paid_back_after"][name],
    )
    theirs = None if best is None else methods[best]["evaluations_a_problem_solved"]
    ours = methods[name]["evaluations_a_problem_solved"]
    saved = "–" if theirs is None or ours is None else f"{theirs - ours:,.0f}"
    seconds = plus_minus(interval(of["training_seconds"]), ".0f") if name == "learned" else "–"
    label += f" (beside {LABELS[best]})" if best else ""
    return [
        size,
        label,
        "–" if price is None else f"{price:,}",
        seconds,
        saved,
        "never" if after is None else f"{after:,}",
    ]


def _needed(value: float | None, config: Config) -> str:
    every = config.budget * config.num_test * config.num_seeds
    return f"> {every:,}" if value is None else f"{value:,.0f}"


def _geometric(values: Sequence[float]) -> str:
    mean = math.exp(sum(map(math.log, values)) / len(values))
    return f"{mean:.1e}" + (f" ({min(values):.0e} to {max(values):.0e})" if len(values) > 1 else "")


def _percent(landscape: Mapping[str, float]) -> tuple[float, float, float]:
    return landscape["minima_along"], 100 * landscape["minima_of_their_own"], 100 * landscape["solved"]


def _settings(settings: Settings) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in settings.items()).replace("_", " ").replace("num ", "")
