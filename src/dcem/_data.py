"""Results as data: cut from their graphs, moved, copied, saved, and shown in a few lines."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dcem._tree import detach, map_tensors

if TYPE_CHECKING:
    from typing_extensions import Self


class Result:
    """A dataclass of tensors that a solve gives back."""

    _work: object = None  # no field: it is no data

    def _keeping(self, work: object) -> Self:
        """The same, with what its backward pass may need: that lives as long."""
        object.__setattr__(self, "_work", work)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """What is saved: its data."""
        return {name: part for name, part in vars(self).items() if name != "_work"}

    def detach(self) -> Self:
        """The same without a graph: constants, that keep nothing of the solve in memory."""
        return detach(self)

    def to(self, device: torch.device | str | torch.dtype | None = None, dtype: torch.dtype | None = None) -> Self:
        """The same on another device, or its floating-point numbers in another dtype."""
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        return map_tensors(lambda leaf: leaf.to(device, dtype if leaf.is_floating_point() else None), self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy of the numbers: of a graph there is only one."""
        return map_tensors(lambda leaf: leaf.detach().clone(), self)


def shown(kind: str, status: Tensor, names: Any, **parts: object) -> str:
    """A result in a line or two: shapes, the range of numbers, and how the problem ended, or how many in which way."""
    counts = Counter() if status.is_meta else Counter(status.flatten().tolist())
    number = "" if status.numel() == 1 else "{} "
    ways = ", ".join(number.format(count) + names(way).name for way, count in sorted(counts.items()))
    lines = [f"{name}={_brief(part)}" for name, part in parts.items()]
    return f"{kind}({', '.join(lines)}, status: {ways or 'not known'})"


def _brief(part: object) -> str:
    if not isinstance(part, Tensor):
        return repr(part)
    kind = f"{tuple(part.shape)}, {str(part.dtype).removeprefix('torch.')}"
    kind += f" on {part.device}" if part.device.type != "cpu" else ""
    if part.numel() == 0 or part.is_meta:
        return f"<{kind}>"
    low, high = part.detach().amin(), part.detach().amax()
    return f"<{kind}: {low.item():.4g}>" if part.numel() == 1 else f"<{kind}: {low.item():.4g} ... {high.item():.4g}>"
