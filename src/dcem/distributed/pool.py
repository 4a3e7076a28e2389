"""Black-box objectives and simulators evaluated by processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from multiprocessing import connection
from multiprocessing.reduction import ForkingPickler
from traceback import format_exception_only
from typing import Any, cast

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

SEEDING = 10.0
"""Seconds after which a forked process that has not seeded its generators ends."""

_forking = threading.Lock()
"""One at a time: a worker that inherits another's end of a pipe would hide that the other has died."""


def _before_fork() -> None:
    if _forking.locked():  # by `Processes.start`
        # Waits until no thread draws from torch's generator, whose lock would be held for ever in the forked process.
        # Other threads cannot begin to draw, as they need Python's lock, which is held from here to the fork.
        torch.default_generator.get_state()


def _after_fork() -> None:
    global _forking
    _forking = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)


def _serve(function: Any, pipe: Any, seed: int) -> None:
    torch.set_num_threads(1)
    parent = os.getppid()
    try:
        if isinstance(function, _Sent):
            pipe.send(None)  # asks for it
            data = _received(pipe, parent)
            try:
                function = pickle.loads(data)
            except Exception as error:
                pipe.send((None, _last_line(error)))
                return
            seed_all(seed)
        else:
            _seed_forked(seed)
        pipe.send((True, None))
        while True:
            pipe.send_bytes(_answer(function, pickle.loads(_received(pipe, parent))))
    except (EOFError, KeyboardInterrupt):
        return


def _received(pipe: Any, parent: int) -> bytes:
    while not pipe.poll(2.0):  # forked workers hold each other's pipes: none ends with the parent's death
        if os.getppid() != parent:
            raise EOFError
    return cast("bytes", pipe.recv_bytes())


def _answer(function: Any, arguments: tuple[Any, ...]) -> Any:
    try:
        # As plain numbers: a tensor would be sent as a handle to memory that ends with this process.
        return ForkingPickler.dumps((True, plain(function(*(torch.from_numpy(array) for array in arguments)))))
    except Exception as error:  # also of what cannot be sent
        return ForkingPickler.dumps((False, _last_line(error)))


def _last_line(error: Exception) -> str:
    return "".join(format_exception_only(type(error), error)).strip()


def _seed_forked(seed: int) -> None:
    """Seed, or end where a lock of a generator was held at the fork after all, by a thread that is not here."""
    handler = signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, SEEDING)
    seed_all(seed)
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    signal.signal(signal.SIGALRM, handler or signal.SIG_DFL)


class _Sent:
    """In the place of a function that a process asks for once it has started: to one that cannot start, more than a
    pipe holds could be written for ever.
    """

    def __init__(self, function: Callable[..., Any] | None) -> None:
        self.function, self.data = function, b""

    def __reduce__(self) -> Any:
        # Written while the process starts: only then can it inherit the locks and pipes that a function may hold.
        self.data = bytes(ForkingPickler.dumps(self.function))
        return _Sent, (None,)


class Processes(Engine):
    """Workers that are processes, one pipe to each."""

    def __init__(self, function: Callable[..., Any], start_method: str | None) -> None:
        if not callable(function):
            raise TypeError(f"function: expected a callable, got {function!r}")
        method = ("fork" if sys.platform == "linux" else "spawn") if start_method is None else start_method
        if method not in multiprocessing.get_all_start_methods():
            known = ", ".join(multiprocessing.get_all_start_methods())
            raise ValueError(f"start_method: expected one of {known}, got {start_method!r}")
        self.function, self.method = function, method

    def start(self, seed: int) -> Any:
        if multiprocessing.current_process().daemon:
            raise RuntimeError(
                "num_workers: expected workers of a process that may start others, got a daemonic process, such as a "
                "worker of a DataLoader or of a pool: call the function itself there"
            )
        context: Any = multiprocessing.get_context(self.method)
        function: Any = self.function if self.method == "fork" else _Sent(self.function)
        getattr(sys.modules.get("numpy"), "random", None)  # is loaded here once, and not by each forked process
        with _forking, warnings.catch_warnings():  # of Python 3.12 about threads: a worker only calls the function
            warnings.simplefilter("ignore", DeprecationWarning)
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(function, theirs, seed), daemon=True)
            try:
                process.start()
            except (AttributeError, TypeError, pickle.PicklingError) as error:
                raise TypeError(
                    f"function: expected what {self.method!r} can send to a process, such as a function of a module, "
                    f"got {self.function!r} ({error})"
                ) from None
            except BaseException:  # interrupted: nobody would end it
                if process.pid is not None:
                    process.kill()
                raise
            theirs.close()
        return _Worker(process, ours, function.data if isinstance(function, _Sent) else None)

    def give(self, worker: Any, arguments: tuple[Any, ...]) -> None:
        try:
            worker.pipe.send(tuple(plain(argument) for argument in arguments))
        except OSError:
            raise Lost(worker.end()) from None

    def wait(self, workers: list[Any], seconds: float | None) -> list[Any]:
        ready = connection.wait([worker.pipe for worker in workers], seconds)
        return [worker for worker in workers if worker.pipe in ready and not self._has_asked(worker)]

    def _has_asked(self, worker: Any) -> bool:
        """Whether it only asked for its function, which it then has."""
        if worker.data is None:
            return False
        try:
            worker.pipe.recv()
            worker.pipe.send_bytes(worker.data)
        except (EOFError, OSError):  # which `take` meets again
            return False
        worker.data = None
        return True

    def take(self, worker: Any) -> Any:
        try:
            worked, answer = worker.pipe.recv()
        except (EOFError, OSError):
            raise Lost(worker.end()) from None
        if worked is None:
            raise Lost(answer)
        if not worked:
            raise Failed(answer)
        return answer

    def stop(self, worker: Any) -> None:
        worker.process.kill()
        worker.process.join()
        worker.process.close()
        worker.pipe.close()


class _Worker:
    def __init__(self, process: Any, pipe: Any, data: bytes | None) -> None:
        self.process, self.pipe = process, pipe
        self.data = data  # the function, until the process has asked for it

    def end(self) -> str:
        """How it ended, which it has or is about to."""
        self.process.join(1.0)
        return f"a process with exit code {self.process.exitcode} (what it wrote to stderr may say why)"


class PoolObjective(BlackBoxObjective):
    """Minimise an ordinary function of one candidate, evaluated by a pool of processes on this machine.

    A worker that dies, or that takes longer than `timeout`, is replaced, and what it worked on is tried again by
    another one, `retries` times; then the candidates count as failed samples, as do those for which the function
    raises. The solve goes on. The values have no gradient. Each worker draws random numbers of its own, torch's,
    Python's and NumPy's; which candidate gets which depends on who is free.

    Args:
        function: maps a candidate, a tensor of shape `event`, to a number; with `batch_size` several of them
            `(n, *event)` to `n` numbers.
        num_workers: how many processes.
        timeout: seconds that one call may take, without the start of a worker; None for any time.
        retries: how often a call is made again after a loss.
        batch_size: give the function so many candidates at a time, at most.
        event_dims: how many trailing axes are one candidate.
        progress: show on stderr how many candidates of an iteration have been evaluated.
        start_method: of `multiprocessing`: `"fork"` by default on Linux, with which the function may be
            anything; else `"spawn"`, for which it has to be importable. A forked worker cannot use CUDA.

    Raises:
        TypeError: `function` is not callable, or an argument is of the wrong type; in a call, it cannot be sent.
        ValueError: an argument is out of its range; in a call, the function returns another number of values.
        RuntimeError: in a call, the function raised for every candidate, or no worker could be started.

    Example:
        >>> import torch, dcem
        >>> from dcem.distributed import PoolObjective
        >>> with PoolObjective(lambda x: float((x - 1).square().sum()), num_workers=2, timeout=60.0) as objective:
        ...     solution = dcem.minimize(objective, torch.zeros(2), dcem.CEM(20, 5), num_iterations=8,
        ...                              generator=torch.Generator().manual_seed(0))
        >>> bool((solution.x - 1).abs().max() < 0.1)
        True

    Source: evaluation of populations by workers that may fail, Salimans et al., "Evolution strategies as a scalable
    alternative to reinforcement learning", 2017.
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
        start_method: str | None = None,
    ) -> None:
        workers = Workers(Processes(function, start_method), num_workers, timeout, retries, progress)
        super().__init__(workers, batch_size, event_dims)


class PoolRollout(BlackBoxRollout):
    """Plan with a simulator that is an ordinary function of one sequence, run by a pool of processes.

    To be the `dynamics` of [`dcem.control.MPC`][]. What is lost is a candidate that failed, as for
    `PoolObjective`, whose other arguments these are.

    Args:
        function: maps a state `(s,)` and actions `(H, *a)` to the states `x_0 ... x_H`, `(H + 1, s)`.
        num_workers: how many processes.
        timeout: seconds that one call may take.
        retries: how often a call is made again after a loss.
        progress: show how many sequences of an iteration have been followed.
        start_method: of `multiprocessing`.

    Raises:
        TypeError: `function` is not callable, or an argument is of the wrong type.
        ValueError: an argument is out of its range; in a call, the states have another shape.
        RuntimeError: in a call, the function raised for every sequence, or no worker could be started.

    Example:
        >>> import torch, dcem
        >>> def simulate(state, actions):
        ...     return torch.cat([state[None], state + actions.cumsum(0)])
        >>> with PoolRollout(simulate, num_workers=2) as simulator:
        ...     mpc = dcem.control.MPC(simulator, lambda x, u: x.square().sum(-1), 3, 1, solver=dcem.CEM(20, 5))
        ...     plan = mpc(torch.ones(1), generator=torch.Generator().manual_seed(0))
        >>> plan.states.shape
        torch.Size([4, 1])

    Source: as `PoolObjective`.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        num_workers: int,
        *,
        timeout: float | None = None,
        retries: int = 1,
        progress: bool = False,
        start_method: str | None = None,
    ) -> None:
        super().__init__(Workers(Processes(function, start_method), num_workers, timeout, retries, progress), None)
