"""Control tasks with their true models and costs: Gymnasium's pendulum and tasks of the DeepMind control suite."""

from dcem.control.tasks.suite import HORIZONS, LABELS, SECONDS, Task, environment, load

__all__ = ["HORIZONS", "LABELS", "SECONDS", "Task", "environment", "load"]
