"""The table and the figures of the fine-tuning experiment."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from dcem import plotting
from dcem.experiments.harness.report import markdown, plus_minus
from dcem.plotting.intervals import interval

Records = Mapping[str, Mapping[str, list[list[dict[str, Any]]]]]
WITHIN = 0.05


def curve(runs: list[list[dict[str, Any]]]) -> dict[int, list[float]]:
    """The return of each seed at each number of environment steps that all have reached."""
    steps = set.intersection(*({line["step"] for line in lines} for lines in runs))
    at = [{line["step"]: line["return"] for line in lines} for lines in runs]
    return {step: [of[step] for of in at] for step in sorted(steps)}


def reached(returns: Mapping[int, list[float]], goal: float) -> int | None:
    """The first evaluation at which the mean over seeds is at least the goal."""
    return next((step for step, values in returns.items() if statistics.fmean(values) >= goal), None)


def compared(returns: Mapping[int, list[float]], oracle: list[float]) -> dict[int, tuple[float, float]]:
    """What each seed returns more than the controller with the true model from that seed: mean and 95 % interval."""
    if len(oracle) < 2 or any(len(values) != len(oracle) for values in returns.values()):
        return {}
    return {
        step: interval([value - of for value, of in zip(values, oracle, strict=True)])
        for step, values in returns.items()
    }


def metrics(records: Records) -> dict[str, Any]:
    """Final and best mean returns, and steps to within 5 % of the controller with the true model: of the mean over
    seeds, and until seed by seed no more than that is lost at the lower end of a 95 % interval.
    """
    result: dict[str, Any] = {}
    for name, methods in records.items():
        goal, oracle = _goal(records, name), _oracle(records, name)
        result[name] = {}
        for method, runs in methods.items():
            returns = curve(runs)
            differences = compared(returns, oracle)
            last = returns[max(returns)]
            result[name][method] = {
                "steps": max(returns),
                "return": statistics.fmean(last),
                "return_of_seeds": last,
                "best": max(statistics.fmean(values) for values in returns.values()),
                "steps_to_goal": None if goal is None else reached(returns, goal),
                "difference": differences.get(max(returns)),
                "steps_until_shown": next(
                    (step for step, (mean, half) in differences.items() if mean - half >= -_margin(oracle)), None
                ),
            }
    return result


def table(records: Records, values: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """Returns and steps, in Markdown."""
    text = (
        "Mean return over seeds (in brackets the worst seed) of episodes without exploration, the same initial states "
        f"for all. Goal: within {WITHIN:.0%} of the controller with the true model and cost; steps to it are those of "
        "the first evaluation at which the mean over seeds is there.\n"
    )
    for name, methods in values.items():
        goal, rows = _goal(records, name), []
        for method, of in methods.items():
            steps, shown = ("" if of[key] is None else str(of[key]) for key in ("steps_to_goal", "steps_until_shown"))
            difference = "" if of["difference"] is None else plus_minus(of["difference"], ".1f")
            returned = f"{of['return']:.1f} ({min(of['return_of_seeds']):.1f})"
            rows.append([labels[method], str(of["steps"]), returned, f"{of['best']:.1f}", difference, steps, shown])
        head = ["method", "environment steps", "return", "best evaluation", "difference", "steps to the goal"]
        head.append("until it is shown")
        text += f"\n**{name}**" + ("" if goal is None else f", goal {goal:.1f}") + "\n\n" + markdown(head, rows)
    return text


def draw(records: Records, labels: Mapping[str, str]) -> dict[str, Figure]:
    """Return against environment steps, a figure for each thing that a controller is wrong about."""
    drawn: dict[str, Figure] = {}
    for name, tuned in records.items():
        task, _, wrong = name.partition("-")
        if not wrong:
            continue
        figure = Figure(figsize=(6.4, 5.0), layout="constrained", dpi=150)
        axes = figure.subplots()
        everything = {**records.get(task, {}), **tuned}
        curves = {method: curve(runs) for method, runs in everything.items()}
        least = min((s for c in curves.values() for s in c if s > 0), default=1)
        colours = itertools.cycle(plotting.COLOURS)
        for method, returns in curves.items():
            means = [statistics.fmean(values) for values in returns.values()]
            if len(returns) == 1:
                grey = "0.6" if method == "untuned" else "black"
                axes.axhline(means[0], color=grey, linestyle="--", linewidth=1.2, label=labels[method])
                continue
            colour = next(colours)
            x = [max(step, least / 2) for step in returns]
            axes.plot(x, means, color=colour, label=labels[method])
            low, high = ([of(values) for values in returns.values()] for of in (min, max))
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        goal = _goal(records, name)
        if goal is not None:
            axes.axhline(goal, color="black", linestyle=":", linewidth=1.2, label=f"goal, within {WITHIN:.0%}")
        # From scratch a network starts far below what is compared.
        of_controllers = [v for m, c in curves.items() if not m.endswith("network") for of in c.values() for v in of]
        if of_controllers:
            least_shown, most = min(of_controllers), max(of_controllers)
            axes.set_ylim(bottom=least_shown - 0.3 * (most - least_shown or 1.0))
        axes.set(xscale="log", xlabel="environment steps (the first point is before learning)", ylabel="return")
        axes.set_title(name.replace("-", ": wrong "), fontsize="medium")
        axes.grid(alpha=0.25)
        title = "mean, and from the lowest to the highest seed"
        figure.legend(loc="outside lower center", ncols=2, fontsize="x-small", title=title, title_fontsize="x-small")
        drawn[name] = figure
    return drawn


def _oracle(records: Records, name: str) -> list[float]:
    """What the controller with the true model returns from each seed."""
    return [lines[-1]["return"] for lines in records.get(name.partition("-")[0], {}).get("oracle", [])]


def _margin(oracle: list[float]) -> float:
    return WITHIN * abs(statistics.fmean(oracle))


def _goal(records: Records, name: str) -> float | None:
    oracle = _oracle(records, name)
    return statistics.fmean(oracle) - _margin(oracle) if oracle else None
