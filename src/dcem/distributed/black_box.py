"""Objectives and simulators that are ordinary functions, evaluated by workers that may be slow or die."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
import warnings
import weakref
from abc import ABC, abstractmethod
from collections import deque
from typing import Any

import torch
from torch import Tensor

from dcem._check import check_count, check_flag, check_int, check_positive
from dcem._given import brief, kind

Worker = Any


class Lost(Exception):
    """A worker has ended before it answered, or before it was there, and why."""


class Failed(Exception):
    """The function raised."""


LOST: Any = object()
"""In the place of what a call that was lost, or that raised, would have returned."""


class Engine(ABC):
    """Starts workers that hold a function, and talks to them."""

    @abstractmethod
    def start(self, seed: int) -> Worker:
        """A new worker, whose generators have this seed. Its first answer says that it is there."""

    @abstractmethod
    def give(self, worker: Worker, arguments: tuple[Any, ...]) -> None:
        """Have it call the function; raises `Lost`."""

    @abstractmethod
    def wait(self, workers: list[Worker], seconds: float | None) -> list[Worker]:
        """Those that have answered or ended, after at most so long."""

    @abstractmethod
    def take(self, worker: Worker) -> Any:
        """Its answer: what the function returned; raises `Lost` or `Failed`."""

    @abstractmethod
    def stop(self, worker: Worker) -> None:
        """End it at once, whatever it does."""


def seed_all(seed: int) -> None:
    """Seed the generators that a function may draw from."""
    torch.manual_seed(seed)
    random.seed(seed)
    if (numpy := sys.modules.get("numpy")) is not None:
        # Another generator, as a lock of NumPy's is held for ever in a process forked while another thread drew.
        numpy.random.set_bit_generator(numpy.random.MT19937(seed))


def plain(value: Any) -> Any:
    """Of a tensor an array, which any process can read: NumPy has no bfloat16."""
    if not isinstance(value, Tensor):
        return value
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


START = 60.0
"""Seconds that a worker may take to be there, where calls have a limit; that limit if it is longer."""

SPARE = 2
"""In succession, so many more than all workers may be gone without an answer of any: then no more are started."""


class Workers:
    """Calls of one function by several workers, with a time limit, and again elsewhere where one was lost.

    Attributes:
        num_retried: calls that were made again since this was constructed.
        num_lost: calls given up since then.
    """

    def __init__(self, engine: Engine, num_workers: int, timeout: float | None, retries: int, progress: bool) -> None:
        self.num_workers = check_count("num_workers", num_workers)
        if timeout is not None:
            check_positive("timeout", timeout)
        self.timeout, self.retries = timeout, check_int("retries", retries)
        if self.retries < 0:
            raise ValueError(f"retries: expected an int >= 0, got {retries}")
        self.progress = check_flag("progress", progress)
        self.engine, self.num_retried, self.num_lost = engine, 0, 0
        self._num_started = 0
        self._gone: list[str] = []  # why: of workers that were given nothing, since the last answer
        self._begin()

    def _begin(self) -> None:
        """Without workers, in this process."""
        self._process = os.getpid()
        self._all: list[Worker] = []
        self._starting: dict[Worker, float] = {}  # and since when somebody waits for it
        self._idle: list[Worker] = []
        self._calling = threading.RLock()
        self._finalizer = weakref.finalize(self, _stop_all, self.engine, self._all, self._process)

    def __reduce__(self) -> Any:
        """A copy, of a controller that holds a simulator say, starts workers of its own."""
        return Workers, (self.engine, self.num_workers, self.timeout, self.retries, self.progress)

    def close(self) -> None:
        """End the workers. They are started again when they are needed."""
        _stop_all(self.engine, self._all, self._process)
        self._starting.clear()
        self._idle.clear()

    def call(self, tasks: list[tuple[Any, ...]]) -> list[Any]:
        """What the function returns for each task; `LOST` for those that were lost, or in which it raised.

        Raises:
            RuntimeError: it raised in every one of them, or no worker could be started.

        Other threads wait for their turn: an answer does not say which call it is of.
        """
        if self._process != os.getpid():  # forked since: workers and lock are those of another process
            self._begin()
        with self._calling:
            return self._call(tasks)

    def _call(self, tasks: list[tuple[Any, ...]]) -> list[Any]:
        results = [LOST] * len(tasks)
        waiting = deque((i, 0) for i in range(len(tasks)))
        running: dict[Worker, tuple[int, int, float]] = {}
        lost = ""  # why the last was
        errors: list[str] = []  # not as they were raised: they hold this frame, and with it workers and tasks
        self._gone.clear()
        self._starting = dict.fromkeys(self._starting, time.monotonic())
        try:
            while waiting or running:
                self._assign(tasks, waiting, running)
                for worker in self.engine.wait([*self._starting, *running], self._rest(running)):
                    answer = LOST
                    try:
                        answer = self.engine.take(worker)
                    except Lost as error:
                        lost = str(error)
                        self._lose(worker, running, waiting, lost)
                        continue
                    except Failed as error:
                        errors.append(str(error))
                    self._idle.append(worker)
                    if self._starting.pop(worker, None) is None:
                        results[running.pop(worker)[0]] = answer
                        self._gone.clear()
                for worker in [worker for worker, end in self._ends(running).items() if end < time.monotonic()]:
                    lost = "it was not there in time"
                    self._lose(worker, running, waiting, lost)
                self._show(len(tasks) - len(waiting) - len(running), len(tasks))
        finally:
            for worker in list(running):  # interrupted: what they would answer belongs to no later call
                self._drop(worker)
        if errors and len(errors) == len(tasks):
            raise RuntimeError(f"function: raised for every candidate, the last time {errors[-1]}")
        if tasks and all(result is LOST for result in results) and not errors:
            warnings.warn(f"function: no worker gave any answer, the last: {lost}", RuntimeWarning, stacklevel=2)
        return results

    def _assign(self, tasks: list[Any], waiting: deque[tuple[int, int]], running: dict[Worker, Any]) -> None:
        """Give what waits to workers that are there, and start others for the rest."""
        while waiting:
            if not self._idle:
                if len(self._starting) >= min(len(waiting), self.num_workers - len(running)):
                    return
                if len(self._gone) >= self.num_workers + SPARE:
                    break
                self._start()
                continue
            worker = self._idle.pop()
            i, tries = waiting[0]
            running[worker] = (i, tries, time.monotonic())
            try:
                self.engine.give(worker, tasks[i])
            except Lost as error:
                del running[worker]  # nobody has worked on it
                self._lose(worker, running, waiting, str(error))
                continue
            waiting.popleft()
        if waiting and not running and not self._starting:
            why = f"{len(self._gone)} that did not, the last: {self._gone[-1]}"
            raise RuntimeError(f"function: expected workers that start, got {why}")

    def _start(self) -> None:
        # A function of torch's seed, and of how many were started before: nothing is drawn for it.
        self._num_started += 1
        worker = self.engine.start((torch.initial_seed() + 0x9E3779B97F4A7C15 * self._num_started) % 2**63)
        self._all.append(worker)
        self._starting[worker] = time.monotonic()

    def _drop(self, worker: Worker) -> None:
        self._all.remove(worker)
        self.engine.stop(worker)

    def _lose(self, worker: Worker, running: dict[Worker, Any], waiting: deque[tuple[int, int]], why: str) -> None:
        """The worker is gone or will be; its task waits for another one, unless it has been tried often enough."""
        self._drop(worker)
        if worker not in running:
            self._starting.pop(worker, None)
            self._gone.append(why)
            return
        i, tries, _ = running.pop(worker)
        if tries < self.retries:
            self.num_retried += 1
            waiting.append((i, tries + 1))
        else:
            self.num_lost += 1

    def _ends(self, running: dict[Worker, tuple[int, int, float]]) -> dict[Worker, float]:
        """Until when each may take, where calls have a limit."""
        if self.timeout is None:
            return {}
        starts = {worker: begun + max(START, self.timeout) for worker, begun in self._starting.items()}
        return starts | {worker: given + self.timeout for worker, (_, _, given) in running.items()}

    def _rest(self, running: dict[Worker, tuple[int, int, float]]) -> float | None:
        """The seconds until the first of them is late; None for ever."""
        first = min(self._ends(running).values(), default=None)
        return None if first is None else max(0.0, first - time.monotonic()) + 0.01

    def _show(self, done: int, num: int) -> None:
        if self.progress:
            end = "\n" if done == num else ""
            sys.stderr.write(f"\r{done}/{num} evaluated, {self.num_retried} again, {self.num_lost} lost{end}")
            sys.stderr.flush()


def _stop_all(engine: Engine, workers: list[Worker], process: int) -> None:
    while workers and os.getpid() == process:
        engine.stop(workers.pop())


class BlackBox:
    """The two fronts of workers: an objective, and a simulator's `rollout`. See `PoolObjective`."""

    def __init__(self, workers: Workers, batch_size: int | None) -> None:
        self.workers = workers
        self.batch_size = None if batch_size is None else check_count("batch_size", batch_size)

    @property
    def num_retried(self) -> int:
        """How many calls were made again, as a worker had died or was late."""
        return self.workers.num_retried

    @property
    def num_lost(self) -> int:
        """How many calls were given up: their candidates have failed."""
        return self.workers.num_lost

    def close(self) -> None:
        """End the workers; the next call starts new ones."""
        self.workers.close()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _values(self, samples: Tensor, batch: torch.Size, event_dims: int) -> Tensor:
        dtype = torch.promote_types(samples.dtype, torch.float32)  # values may be too large for half precision
        if 0 in batch:
            return samples.new_empty(batch, dtype=dtype)
        rows = _given(samples).reshape(-1, *samples.shape[samples.dim() - event_dims :])
        chunks = list(rows.split(1 if self.batch_size is None else self.batch_size))  # type: ignore[no-untyped-call]
        found = self.workers.call([(chunk if self.batch_size else chunk[0],) for chunk in chunks])
        values = [_numbers(result, len(chunk)) for result, chunk in zip(found, chunks, strict=True)]
        return torch.cat(values).to(samples.device, dtype).reshape(batch)


def _given(x: Tensor) -> Tensor:
    """As a function gets it, by way of NumPy, which has no bfloat16."""
    x = x.detach().cpu()
    return x.float() if x.dtype == torch.bfloat16 else x


def _tensor(result: Any, expected: str, dtype: torch.dtype | None = None) -> Tensor:
    if _is_complex(result):  # of arrays torch would drop the imaginary parts
        raise TypeError(f"function: expected to return {expected}, got complex ones, {brief(result)}")
    try:
        return torch.as_tensor(result, dtype=dtype)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(f"function: expected to return {expected}, got {brief(result)}") from None


def _is_complex(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_is_complex, value))
    return isinstance(value, complex) or "complex" in str(getattr(value, "dtype", ""))


def _numbers(result: Any, num: int) -> Tensor:
    if result is LOST:
        return torch.full((num,), torch.nan, dtype=torch.float64)
    values = _tensor(result, f"{num} numbers", torch.float64).reshape(-1)
    if len(values) != num:
        raise ValueError(f"function: expected to return {num} numbers, got {len(values)}")
    return values


class BlackBoxObjective(BlackBox):
    """An objective `(*batch, N, *event) -> (*batch, N)` of a function of one candidate."""

    def __init__(self, workers: Workers, batch_size: int | None, event_dims: int) -> None:
        super().__init__(workers, batch_size)
        self.event_dims = check_int("event_dims", event_dims)
        if self.event_dims < 0:
            raise ValueError(f"event_dims: expected an int >= 0, got {event_dims}")

    def __call__(self, samples: Tensor) -> Tensor:
        """The values of candidates; NaN of those that were lost, or for which the function raised."""
        dim = samples.dim() - self.event_dims
        if dim < 1:
            raise ValueError(
                f"event_dims: expected at most {samples.dim() - 1} for candidates (*batch, N, *event) = "
                f"{tuple(samples.shape)}, got {self.event_dims}"
            )
        return self._values(samples, samples.shape[:dim], self.event_dims)


class BlackBoxRollout(BlackBox):
    """A simulator for [`dcem.control.MPC`][], of a function `(state, actions) -> states` of one sequence."""

    def rollout(self, state: Tensor, actions: Tensor) -> Tensor:
        """The states `(*batch, H + 1, *s)` of sequences `(*batch, H, *a)`; NaN, `x_0` too, of those that were lost."""
        if not isinstance(state, Tensor):
            raise TypeError(f"state: expected a tensor (*batch, s), got {kind(state)}")
        batch = state.shape[:-1]
        if 0 in batch:
            return state.new_empty(*batch, actions.shape[len(batch)] + 1, state.shape[-1])
        starts = _given(state).reshape(-1, state.shape[-1])
        sequences = _given(actions).reshape(len(starts), *actions.shape[len(batch) :])
        found = self.workers.call(list(zip(starts, sequences, strict=True)))
        lost = torch.full((sequences.shape[1] + 1, starts.shape[-1]), torch.nan)
        paths = []
        for result in found:
            expected = f"states (H + 1, s) = {tuple(lost.shape)}"
            path = lost.clone() if result is LOST else _tensor(result, expected)
            if tuple(path.shape) != tuple(lost.shape):
                raise ValueError(f"function: expected {expected}, got {tuple(path.shape)}")
            paths.append(path.to(state))
        return torch.stack(paths).reshape(*batch, *lost.shape)

    def __call__(self, state: Tensor, action: Tensor) -> Tensor:
        """One step of each: dynamics as [`dcem.control.MPC`][] calls them where it does not ask for sequences."""
        return self.rollout(state, action.unsqueeze(state.dim() - 1)).select(state.dim() - 1, -1)
