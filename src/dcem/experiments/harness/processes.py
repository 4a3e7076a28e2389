"""An experiment by several processes: `torchrun --nproc-per-node 2 --no-python dcem regression ...`.

Every process makes every update, with the same draws and the same batch; the problems of a solve, and so the work of an
update, are divided among them. The first process leaves the run's folder. The others work in one of their own, which
goes away: nothing is written twice. As all of them know everything, a run goes on with any number of processes.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import dcem
from dcem.experiments import EXPERIMENTS
from dcem.experiments.harness.folder import BadCommand

TIMEOUT = 600.0
"""Seconds that a process waits for the others."""


@contextmanager
def joined(name: str, *, is_sweep: bool = False) -> Iterator[int]:
    """Be one of the processes that `torchrun` has started for an experiment, if it has; which one, from 0."""
    num = int(os.environ.get("WORLD_SIZE", "1"))
    if num == 1:
        yield 0
        return
    if not EXPERIMENTS[name].is_divided:
        raise BadCommand(f"expected one process: its work is not divided among several; got {num} of torchrun")
    if is_sweep:
        raise BadCommand(f"-m: expected one process for a sweep, torchrun for a single run; got {num} of torchrun")
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        with contextlib.ExitStack() as stack:
            if dist.get_rank() > 0:
                stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            yield dist.get_rank()
    finally:
        dist.destroy_process_group()


@contextmanager
def own_folder(rank: int, folder: str | None) -> Iterator[str | None]:
    """Where this process works: in the run's `folder`, if it is the first; else in a copy of it, or a new one."""
    if rank == 0:
        _wait()  # nothing is written to it before the others have their copies
        yield folder
        return
    with tempfile.TemporaryDirectory() as scratch:
        own = Path(scratch, "run")
        if folder is not None and Path(folder).exists():
            shutil.copytree(folder, own)
        _wait()
        yield str(own)


def _wait() -> None:
    """For the other processes, if there are any."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


class _Divided:
    """Solve the problems of a batch by all processes, where they can share it evenly and nobody asks for the history,
    of which each would have a part; if not, each by itself.
    """

    def __init__(self) -> None:
        self.problems = dcem.distributed.Problems(timeout=TIMEOUT)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self

    def solve(self, minimize: Callable[..., Any], objective: Any, init: Any, solver: Any, **options: Any) -> Any:
        """As `dcem.distributed.Problems` does."""
        mean = init if isinstance(init, torch.Tensor) else init.mean
        batch = mean.shape[: mean.dim() - (options["event_dims"] if mean is init else init.event_dims)]
        is_watched = options["record"] or options["callback"] is not None
        if batch and batch[0] % self.problems.ranks.size == 0 and not is_watched:
            return self.problems.solve(minimize, objective, init, solver, **options)
        return minimize(objective, init, solver, **options)


def shard() -> Any:
    """For the models and controllers of an experiment: how their solves are divided; None with one process."""
    return _Divided() if torch.distributed.is_available() and torch.distributed.is_initialized() else None
