"""Numbers and table of `dcem embed-synthetic`."""

from __future__ import annotations

import math
from typing import Any

from dcem.experiments.embed_synthetic.methods import LABELS, Part, saved
from dcem.experiments.embed_synthetic.settings import Config
from dcem.experiments.harness.report import deviation, markdown, plus_minus

GAINS = (
    "N", "evaluations to CEM's final cost, learned", "CEM", "factor", "CEM to learned's final cost, factor",
    "iCEM's final cost, factor", "training, s", "paid back after, problems",
)  # fmt: skip


def summary(config: Config, parts: dict[int, list[Part]]) -> dict[str, Any]:
    """Plain numbers, a list over seeds each."""
    per_update = config.batch_size * (config.num_samples * config.num_iterations + 1)
    sizes = {
        size: {
            "final_cost": {name: [one.curves[name][-1][1] for one in seeds] for name in LABELS},
            "evaluations": {name: seeds[0].curves[name][-1][0] for name in LABELS},
            "vs_cem": [saved(one.curves, "cem") for one in seeds],
            "vs_icem": [saved(one.curves, "icem") for one in seeds],
            "training_seconds": [one.seconds for one in seeds],
        }
        for size, seeds in parts.items()
    }
    return {"training_evaluations": config.num_updates * per_update, "sizes": sizes}


def table(config: Config, metrics: dict[str, Any]) -> str:
    """Markdown: final costs, then what was saved and what the training cost."""
    costs, gains = [], []
    for size, of in metrics["sizes"].items():
        costs.append([str(size), *(_mean(values, ".2e") for values in of["final_cost"].values())])
        cem, icem = of["vs_cem"], of["vs_icem"]
        reached = all(s["rival_gets_there"] for s in cem)
        cells = [
            _mean([s["evaluations"] for s in cem], ".0f"),
            _mean([s["rival_evaluations"] for s in cem], ".0f"),
            _mean([s["factor"] for s in cem], ".0f"),
            ("" if reached else "> ") + _mean([s["factor_at_own_cost"] for s in cem], ".0f"),
            _mean([s["factor"] for s in icem], ".1f"),
            _mean(of["training_seconds"], ".0f"),
            ("" if reached else "< ") + _mean([_paid_back(metrics["training_evaluations"], s) for s in cem], ".0f"),
        ]
        gains.append([str(size), *cells])
    cost = markdown(["N", *LABELS.values()], costs, text_columns=0)
    gain = markdown(GAINS, gains, text_columns=0)
    budget = metrics["sizes"][config.sizes[0]]["evaluations"]
    note = (
        f"Means over {config.num_seeds} seeds (± standard deviation); costs are means over {config.num_test} unseen "
        f"problems. Evaluations of the objective: CEM {budget['cem']:,}, iCEM {budget['icem']:,}, embeddings "
        f"{budget['learned']:,} a problem; training {metrics['training_evaluations']:,}, each with a gradient. A dash: "
        "not every seed reaches that cost. Seconds are of the processor. The training is paid back when CEM would have "
        "made as many evaluations more to reach the learned embedding's final cost; `>`, `<`: CEM does not get there.\n"
    )
    return f"{note}\n**Final cost**\n\n{cost}\n**Evaluations saved by the learned embedding**\n\n{gain}"


def _paid_back(training: int, saving: dict[str, Any]) -> float | None:
    """After how many problems, solved to the learned embedding's final cost, the training's evaluations are saved."""
    each = saving["rival_evaluations_at_own_cost"] - saving["evaluations_at_own_cost"]
    return math.ceil(training / each) if each > 0 else None


def _mean(values: list[Any], form: str) -> str:
    return "–" if any(value is None for value in values) else plus_minus(deviation(values), form)
