"""Black-box objectives and simulators evaluated by actors of a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from dcem.distributed.black_box import (
    BlackBoxObjective,
    BlackBoxRollout,
    Engine,
    Failed,
    Lost,
    Workers,
    plain,
    seed_all,
)


class _Holder:
    """What an actor is: the function, and a way to call it."""

    def __init__(self, function: Callable[..., Any], seed: int) -> None:
        torch.set_num_threads(1)
        seed_all(seed)
        self.function = function

    def is_there(self) -> Any:
        """Returns once the actor has started."""
        return True, None

    def call(self, *arrays: Any) -> Any:
        try:
            return True, plain(self.function(*(torch.tensor(array) for array in arrays)))
        except Exception as error:
            return False, f"{type(error).__name__}: {error}"


class Actors(Engine):
    """Workers that are Ray actors, on this machine or on a cluster."""

    def __init__(self, function: Callable[..., Any], options: dict[str, Any] | None) -> None:
        if not callable(function):
            raise TypeError(f"function: expected a callable, got {function!r}")
        try:
            import ray
        except ImportError:
            raise ImportError("RayObjective: expected Ray: pip install 'dcem[ray]', or use PoolObjective") from None
        self.ray, self.function, self.options = ray, function, options
        if not ray.is_initialized():
            os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # of a cluster that is this process's own
            ray.init(log_to_driver=False, include_dashboard=False)
        self.actor = ray.remote(_Holder).options(**({} if options is None else options))

    def __reduce__(self) -> Any:
        return Actors, (self.function, self.options)

    def start(self, seed: int) -> Any:
        actor = self.actor.remote(self.function, seed)
        return _Worker(actor, actor.is_there.remote())

    def give(self, worker: Any, arguments: tuple[Any, ...]) -> None:
        worker.answer = worker.actor.call.remote(*(argument.numpy() for argument in arguments))

    def wait(self, workers: list[Any], seconds: float | None) -> list[Any]:
        of = {worker.answer: worker for worker in workers}
        ready, _ = self.ray.wait(list(of), num_returns=1, timeout=seconds)
        return [of[answer] for answer in ready]

    def take(self, worker: Any) -> Any:
        try:
            worked, answer = self.ray.get(worker.answer)
        except self.ray.exceptions.RayError as error:
            raise Lost(str(error).strip().rsplit("\n", 1)[-1]) from None
        if not worked:
            raise Failed(answer)
        return answer.copy() if hasattr(answer, "flags") else answer  # of an array Ray keeps the memory, read-only

    def stop(self, worker: Any) -> None:
        if self.ray.is_initialized():
            self.ray.kill(worker.actor)


class _Worker:
    def __init__(self, actor: Any, answer: Any) -> None:
        self.actor, self.answer = actor, answer


class RayObjective(BlackBoxObjective):
    """Minimise an ordinary function of one candidate, evaluated by actors of a Ray cluster.

    Like [`dcem.distributed.PoolObjective`][] on many machines: what is lost with a worker is tried again elsewhere,
    and then counts as failed. Uses the cluster that `ray.init(address=...)` has connected to, or else starts Ray on
    this machine.

    Args:
        function: as for `PoolObjective`; anything that cloudpickle can send.
        num_workers: how many actors.
        timeout: seconds that one call may take, without the start of an actor; None for any time.
        retries: how often a call is made again after a loss.
        batch_size: give the function so many candidates at a time, at most.
        event_dims: how many trailing axes are one candidate.
        progress: show on stderr how many candidates of an iteration have been evaluated.
        options: of the actors, as `ray.remote` takes them: `{"num_cpus": 1, "resources": {...}}`.

    Raises:
        ImportError: Ray is not installed (`pip install 'dcem[ray]'`).
        TypeError: `function` is not callable, or an argument is of the wrong type.
        ValueError: an argument is out of its range; in a call, the function returns another number of values.
        RuntimeError: in a call, the function raised for every candidate, or no actor could be started.

    Example::

        objective = dcem.distributed.RayObjective(simulate, num_workers=100, timeout=60.0)
        solution = dcem.minimize(objective, torch.zeros(8), dcem.CEM(1000, 50))

    Source: Moritz et al., "Ray: a distributed framework for emerging AI applications", OSDI 2018.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        num_workers: int,
        *,
        timeout: float | None = None,
        retries: int = 1,
        batch_size: int | None = None,
        event_dims: int = 1,
        progress: bool = False,
        options: dict[str, Any] | None = None,
    ) -> None:
        workers = Workers(Actors(function, options), num_workers, timeout, retries, progress)
        super().__init__(workers, batch_size, event_dims)


class RayRollout(BlackBoxRollout):
    """Plan with a simulator that is an ordinary function of one sequence, run by actors of a Ray cluster.

    Like [`dcem.distributed.PoolRollout`][], with the arguments of `RayObjective`.

    Args:
        function: maps a state `(s,)` and actions `(H, *a)` to the states `x_0 ... x_H`, `(H + 1, s)`.
        num_workers: how many actors.
        timeout: seconds that one call may take.
        retries: how often a call is made again after a loss.
        progress: show how many sequences of an iteration have been followed.
        options: of the actors, as `ray.remote` takes them.

    Raises:
        ImportError: Ray is not installed.

    Example::

        mpc = dcem.control.MPC(dcem.distributed.RayRollout(simulate, num_workers=100), cost, horizon, action_shape)

    Source: as `RayObjective`.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        num_workers: int,
        *,
        timeout: float | None = None,
        retries: int = 1,
        progress: bool = False,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(Workers(Actors(function, options), num_workers, timeout, retries, progress), None)
