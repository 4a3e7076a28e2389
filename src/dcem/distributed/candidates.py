"""An objective whose candidates several processes share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dcem._evaluate import as_values, check_left
from dcem._guard import Cut, WithData
from dcem._no_gradient import refuse_outside
from dcem._unchanged import Versions
from dcem.distributed.outside import Outside, OwnWork
from dcem.distributed.ranks import Gather, Ranks, Scatter, digest, tied


class SharedObjective:
    """`function(samples, data, cut)` of a whole objective: each process evaluates its share of the candidates.

    Args:
        whole: the objective.
        dim: the axis of the candidates.
        ranks: the processes.
    """

    def __init__(self, whole: WithData, dim: int, ranks: Ranks) -> None:
        self.whole, self.dim, self.ranks = whole, dim, ranks
        self.outside = Outside(ranks)
        self.lost: list[bool] = []

    def __call__(self, samples: Tensor, data: Any, cut: Cut) -> Tensor:
        # The solve tells of errors itself; but a backward pass may evaluate again, after it.
        with self.ranks.telling():
            return (self._by_each if samples.shape[self.dim] < self.ranks.size else self._shared)(samples, data, cut)

    def _shared(self, samples: Tensor, data: Any, cut: Cut) -> Tensor:
        num = samples.shape[self.dim]
        work = OwnWork(self.outside)
        own = self._own(samples, work)
        failed = None if cut.failed is None else self._own(cut.failed, work)
        noted = Versions(own)
        with work:
            values: Any = self.whole.function(own, data, Cut(failed))
        check_left(noted)
        work.check(values)
        values = as_values("objective", values, tuple(own.shape[: self.dim + 1]), own)
        if values.requires_grad:
            values = refuse_outside(values, own, self.lost)  # beyond the exchange they depend on all candidates
        self.outside.attached.append(values.requires_grad)
        attached = tied(own, *self.outside.shares()) if values.requires_grad else None
        sent = values.double().movedim(self.dim, 0)  # of one size, whatever dtype another process has
        gathered: Tensor = Gather.apply(sent, self.ranks, None, attached, values.dtype)  # type: ignore[no-untyped-call]
        return gathered[:num].movedim(0, self.dim).to(values.dtype)

    def _own(self, x: Tensor, work: OwnWork) -> Tensor:
        """The own part of `x`, `(*batch, N, ...)`."""
        rest = -x.shape[self.dim] % self.ranks.size
        every = x.movedim(self.dim, 0)
        if rest:  # proposals, pruned or shrunk populations: the last one is evaluated again
            every = torch.cat([every, every[-1:].expand(rest, *every.shape[1:])])
        return work.made(Scatter.apply(every, self.ranks)).movedim(0, self.dim)  # type: ignore[no-untyped-call]

    def _by_each(self, samples: Tensor, data: Any, cut: Cut) -> Tensor:
        values: Any = self.whole.function(samples, data, cut)
        values = as_values("objective", values, tuple(samples.shape[: self.dim + 1]), samples)
        self.ranks.agree("values of the same dtype", values.dtype)
        return values

    def compare(self, mean: Tensor) -> None:
        """Raise in all processes where one has another objective, as its values at `mean` `(*batch, *event)` show."""
        batch = mean.shape[: self.dim]
        # As a solve calls it first: it may keep features, with a gradient.
        value: Any = self.whole(mean.clone().unsqueeze(self.dim))
        is_tensor = isinstance(value, Tensor)
        form = (value.shape, value.dtype) if is_tensor else type(value).__qualname__
        if is_tensor and value.shape == (*batch, 1) and value.is_floating_point():
            values = value.detach().to(mean.device, torch.float64).flatten()
        else:
            values = mean.new_zeros(batch.numel(), dtype=torch.float64)  # what is wrong the solve says better
        sent = torch.cat([values.new_tensor([digest(form) >> 11]), values])  # 53 bits, as many as a number holds
        every = self.ranks.gathered(sent.unsqueeze(0))
        size = 1e-3 * every[:, 1:].abs().amax(0)
        others = (every - every[0]).abs()
        differs = {
            "returns another shape or dtype": others[:, 0] > 0,
            "has another value": (others[:, 1:] > size).any(-1),
        }
        said = "the same objective on every rank, which draws no random numbers; at the initial mean it"
        for what, mask in differs.items():
            self.ranks.refuse(f"{said} {what} than on", mask.nonzero().flatten().tolist())
