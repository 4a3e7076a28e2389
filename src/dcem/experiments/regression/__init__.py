"""Energy-based regression in one dimension: learn `y = x sin x` as `argmin_y E_θ(x, y)` (Amos & Yarats 2020, 5.1).

Unrolled gradient descent learns an energy that is right only after the number of steps it was trained with; an energy
learned through DCEM has its minimum where the target is, so more inner iterations do no harm.
"""

from dcem.experiments.regression.settings import GROUPS, Config
from dcem.experiments.regression.training import main

__all__ = ["GROUPS", "Config", "main"]
