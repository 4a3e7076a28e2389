"""The best of the candidates seen: of an iteration, and of a whole solve."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_MOST_KEPT = 1 << 18  # numbers of samples that wait to be compared


def best_of(samples: Tensor, values: Tensor, num: int = 1) -> tuple[Tensor, Tensor]:
    """The `num` candidates of the lowest values, those that are not finite last.

    Args:
        samples: `(*batch, N, *event)`.
        values: `(*batch, N)`.
        num: how many.

    Returns:
        The candidates `(*batch, num, *event)`; their values `(*batch, num)`, detached, `inf` where not finite.
    """
    ranked = values.detach().nan_to_num(torch.inf, torch.inf, torch.inf)
    lowest, index = ranked.min(-1, keepdim=True) if num == 1 else ranked.topk(num, largest=False)
    index = index.reshape(index.shape + (1,) * (samples.dim() - values.dim()))
    return torch.take_along_dim(samples, index, values.dim() - 1), lowest


def finite_range(values: Tensor, *, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """The lowest and the highest finite value of `(*batch, N)`, `(*batch,)` each; `inf` and `-inf` of none."""
    finite = values.isfinite()
    low = torch.where(finite, values, torch.inf).amin(-1, keepdim=keepdim)
    return low, torch.where(finite, values, -torch.inf).amax(-1, keepdim=keepdim)


class Best(NamedTuple):
    """The best candidate of a problem so far, and what came since: many are compared at a time, which costs less.

    Attributes:
        samples: candidates `(*batch, n, *event)`, the first of them the best of those before.
        values: theirs, `(*batch, n)`.
        size: how many numbers came since.
    """

    samples: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    size: int

    @classmethod
    def start(cls, x: Tensor, batch_dims: int) -> Best:
        """Nothing seen: `x` `(*batch, *event)` stands in, with the value `inf`."""
        x = x.detach()
        return cls((x.unsqueeze(batch_dims),), (x.new_full((*x.shape[:batch_dims], 1), torch.inf),), 0)

    def after(self, samples: Tensor, values: Tensor) -> Best:
        """With the candidates of another iteration."""
        size = self.size + samples.numel()
        new = Best((*self.samples, samples.detach()), (*self.values, values.detach()), size)
        return new.compared() if size > _MOST_KEPT else new

    def compared(self) -> Best:
        """The best alone."""
        values = torch.cat(self.values, -1)
        sample, value = best_of(torch.cat(self.samples, values.dim() - 1), values)
        return Best((sample,), (value,), 0)
