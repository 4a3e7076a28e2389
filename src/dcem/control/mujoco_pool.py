"""MuJoCo's threads for rollouts, safe to use from several threads, and after a fork."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from typing import Any


class Pool:
    """Threads with their data, started when they are first needed, for one call at a time."""

    def __init__(self, num_threads: int) -> None:
        self.num_threads, self.lock = num_threads, threading.Lock()
        self.threads: Any = None
        self.model: Any = None
        self.data: list[Any] = []

    def rollout(self, model: Any, initial: Any, control: Any) -> tuple[Any, Any]:
        """Full physical states and sensors after each step of `control`, which MuJoCo computes in C."""
        import mujoco  # type: ignore[import-untyped]
        from mujoco.rollout import Rollout  # type: ignore[import-untyped]

        with self.lock, _quiet():
            if self.threads is None:
                self.threads = Rollout(nthread=self.num_threads if self.num_threads > 1 else 0)
                weakref.finalize(self, _leave, self.threads.rollout_, os.getpid())
            if self.model is not model:
                self.model, self.data = model, [mujoco.MjData(model) for _ in range(self.num_threads)]
            states, readings = self.threads.rollout(model, self.data, initial, control)
            return states, readings


def _leave(threads: Any, process: int) -> None:
    """Never free the threads of another process: a forked one has the object but not the threads, for which its
    destructor would wait for ever.
    """
    if os.getpid() != process:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(threads))


class _Quiet:
    """MuJoCo reports every candidate that diverges on the terminal and in a file; its NaN states say it already.

    The report is the process's, so that threads which are quiet at the same time have to count themselves.
    """

    def __init__(self) -> None:
        self.lock, self.depth, self.before = threading.Lock(), 0, None

    def __enter__(self) -> None:
        import mujoco

        with self.lock:
            if self.depth == 0:
                self.before = mujoco.get_mju_user_warning()
                mujoco.set_mju_user_warning(lambda message: None)
            self.depth += 1

    def __exit__(self, *exception: object) -> None:
        import mujoco

        with self.lock:
            self.depth -= 1
            if self.depth == 0:
                mujoco.set_mju_user_warning(self.before)


_OF_PROCESS: dict[int, _Quiet] = {}


def _quiet() -> _Quiet:
    """That of this process: a fork while another thread is quiet must not inherit its lock."""
    return _OF_PROCESS.setdefault(os.getpid(), _Quiet())
