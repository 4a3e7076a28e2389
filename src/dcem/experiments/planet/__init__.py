"""Controllers that plan through a learned model on cheetah.run and walker.walk (ICML 2020, section 5.3)."""

from __future__ import annotations

from typing import Any

from dcem.experiments.harness.run import Run
from dcem.experiments.planet.settings import GROUPS, Config
from dcem.experiments.planet.training import learn

__all__ = ["GROUPS", "Config", "main"]


def main(config: Config, run: Run) -> dict[str, Any]:
    """Run a phase; returns what its controller reaches."""
    if config.phase == "tune":
        from dcem.experiments.planet.tuning import tune  # TorchRL's losses are imported where they are used

        tune(config, run)
    else:
        learn(config, run)
    last = run.records()[-1]
    metrics = {name: last[name] for name in ("env_steps", "return", "return_eval")}
    run.finish(**metrics)
    return metrics
