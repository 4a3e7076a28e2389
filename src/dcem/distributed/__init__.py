"""More than one process: solves divided among processes, and objectives evaluated by pools of workers."""

from dcem.distributed.cluster import RayObjective, RayRollout
from dcem.distributed.pool import PoolObjective, PoolRollout
from dcem.distributed.sharding import Problems, Samples

__all__ = ["PoolObjective", "PoolRollout", "Problems", "RayObjective", "RayRollout", "Samples"]
