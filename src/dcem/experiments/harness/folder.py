"""A run's folder belongs to one process at a time: two that write to it would leave what neither has computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from dcem.experiments.harness.reading import CHECKPOINT, CONFIG

try:
    import fcntl
except ImportError:  # not on Windows, where only what is there already is refused
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
OF_A_SWEEP = "multirun.yaml"


class BadCommand(Exception):
    """A command line that names something that is not there; the message is one line."""


@contextmanager
def taken(folder: Path, key: str, *, is_new: bool, of_sweep: bool = False) -> Iterator[None]:
    """Have a folder, made where it is missing, for this process alone, until the block or the process ends.

    Args:
        folder: of a run, or of a sweep.
        key: the setting that names it, for messages.
        is_new: whether a run begins, and the folder may hold none.
        of_sweep: whether it is of a sweep, which goes on with its own runs in it.

    Raises:
        BadCommand: it cannot be written, another process has it, or it holds a run or a sweep.
            Then nothing has been changed.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("a")
    except OSError:
        raise BadCommand(f"{key}: expected a folder that can be written; got {folder}") from None
    with lock:  # the system frees it with the process, however that ends
        if not _locked(lock):
            raise BadCommand(f"{key}: expected a folder in which nothing runs now; a run is writing to {folder}")
        if is_new and not of_sweep and (folder / OF_A_SWEEP).exists():
            raise BadCommand(f"{key}: expected a new folder; {folder} holds the runs of a sweep")
        if is_new and any((folder / name).exists() for name in (CHECKPOINT, CONFIG)):
            raise BadCommand(f"{key}: expected a new folder; {folder} holds a run (resume={folder})")
        yield


def _locked(file: IO[str]) -> bool:
    """Whether it is ours now. Some network file systems have no locks: there it always is."""
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass
    return True
