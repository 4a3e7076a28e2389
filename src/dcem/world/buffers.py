"""What was seen, kept on disk and drawn again as sequences: TorchRL's replay buffer, set up for world models."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from dcem._check import check_count
from dcem._given import brief

NOTE = "replay.json"


def replay(
    capacity: int,
    batch_size: int,
    length: int,
    *,
    batched: bool = False,
    episode_key: Any = "episode",
    generator: torch.Generator | None = None,
) -> Any:
    """Keep what was seen of an environment, and draw sequences of it to learn from.

    Makes a TorchRL `ReplayBuffer` with a memory-mapped storage and a `SliceSampler`: `buffer.extend(steps)` adds
    steps in the order of time, `buffer.sample()` draws sequences: an episode uniformly among those that are long
    enough, then its start uniformly. No sequence goes from one episode into the next, or across the place where new
    steps have overwritten old ones.

    Args:
        capacity: how many steps are kept, rounded up to as many for each environment; new ones then take the place
            of the oldest.
        batch_size: `B`, how many sequences a sample has.
        length: `T`, how many steps a sequence has, at least 2.
        batched: steps come from several environments at once, as TensorDicts `(E, n)`, always of as many
            environments. By default they come as `(n,)`.
        episode_key: the entry that numbers episodes, an integer a step, of the shape of the batch. Two episodes that
            follow each other have different numbers, also those before and after an interruption. TorchRL's collectors
            write `("collector", "traj_ids")`.
        generator: source of randomness of the samples; it is saved with the buffer.

    Returns:
        The buffer. Its `sample()` returns a TensorDict `(B, T)` of all that was stored, as
        [`dcem.world.WorldModel.loss`][] takes it.

    Raises:
        ImportError: TorchRL is not installed: `pip install "dcem[rl]"`.
        TypeError: an argument is of the wrong type; in `extend()` and `add()`, steps are no TensorDict.
        ValueError: an argument is out of its range; in `extend()` and `add()`, steps lack the `episode_key`, or come in
            another shape; in `sample()`, no episode has as many steps as a sequence.

    Example:
        >>> import logging, torch, torchrl
        >>> from tensordict import TensorDict
        >>> logging.getLogger("torchrl").setLevel("WARNING")  # it announces the storages that it makes
        >>> buffer = replay(capacity=1000, batch_size=4, length=5)
        >>> steps = TensorDict({"observation": torch.randn(20, 3), "episode": torch.zeros(20, dtype=torch.long)}, (20,))
        >>> indices = buffer.extend(steps)
        >>> buffer.sample()["observation"].shape
        torch.Size([4, 5, 3])

    Source: Lin, "Self-improving reactive agents based on reinforcement learning, planning and teaching", 1992.
    """
    capacity, batch_size = check_count("capacity", capacity), check_count("batch_size", batch_size)
    length = check_count("length", length)
    if not 2 <= length <= capacity:
        raise ValueError(f"length: expected 2 to capacity={capacity} steps, got {length}")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator: expected a torch.Generator or None, got {brief(generator)}")
    try:
        from dcem.world._torchrl import SequenceBuffer
    except ImportError as error:
        raise ImportError('replay: expected TorchRL; install it by pip install "dcem[rl]"') from error
    return SequenceBuffer(capacity, batch_size, length, 2 if batched else 1, episode_key, generator)


def save_replay(buffer: Any, folder: str | Path) -> None:
    """Save a buffer of `replay` so that a run that is killed at any time can go on from here.

    The whole buffer is written beside what was saved before, which is deleted only when the new one is complete.

    Args:
        buffer: what `replay` returned.
        folder: where to, made if it is not there. Nothing else should be in it.

    Raises:
        ValueError: nothing is in the buffer.
    """
    if not len(buffer):
        raise ValueError("buffer: expected at least one step to save, got an empty one")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    name = str(1 + max((int(path.name) for path in folder.iterdir() if path.name.isdigit()), default=0))
    buffer.dumps(folder / name)
    (folder / name / "prefetch.pkl").unlink(missing_ok=True)  # of use to buffers that prefetch, and not plain data
    note = folder / f"{NOTE}.tmp"
    note.write_text(json.dumps({"saved": name, "layout": _layout(buffer), "files": _sizes(folder / name)}))
    os.replace(note, folder / NOTE)
    for path in folder.iterdir():
        if path.name.isdigit() and path.name != name:
            shutil.rmtree(path)


def load_replay(buffer: Any, folder: str | Path) -> None:
    """Fill a buffer with what `save_replay` wrote last; samples go on as they would have.

    Args:
        buffer: what `replay` returned, with the arguments of the one that was saved.
        folder: where it was saved.

    Raises:
        FileNotFoundError: nothing was saved there.
        ValueError: what was saved has another layout, or is damaged.
    """
    folder = Path(folder)
    if not (folder / NOTE).exists():
        raise FileNotFoundError(f"folder: expected a replay that save_replay wrote, got {folder}")
    try:
        note = json.loads((folder / NOTE).read_text())
        saved, layout, files = folder / str(int(note["saved"])), note["layout"], note["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"folder: expected a replay that save_replay wrote, got a damaged {folder / NOTE}") from error
    if layout != _layout(buffer):
        raise ValueError(f"folder: expected a replay of {_layout(buffer)}, got one of {layout} in {folder}")
    if _sizes(saved) != files:  # a file that is cut short would be read as if it ended in zeros
        raise ValueError(f"folder: expected a whole replay, got a damaged one in {saved}")
    buffer.loads(saved)


def _layout(buffer: Any) -> dict[str, Any]:
    return {"capacity": buffer.capacity, "axes": buffer.storage.ndim}


def _sizes(folder: Path) -> dict[str, int]:
    """The bytes of each file."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
