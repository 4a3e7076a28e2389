"""The projections as modules: what a solver takes as its ``selection``."""

from __future__ import annotations

from torch import Tensor, nn

from .functional import constrained_softmax, constrained_sparsemax, hard_topk, lml


class _Soft(nn.Module):
    temperature: float | Tensor

    def __init__(self, temperature: float | Tensor = 1.0) -> None:
        super().__init__()
        self.temperature = temperature

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


class LML(_Soft):
    def forward(self, scores: Tensor, k: float, dim: int = -1) -> Tensor:
        return lml(scores, k, temperature=self.temperature, dim=dim)


class ConstrainedSoftmax(_Soft):
    def forward(self, scores: Tensor, k: float, dim: int = -1) -> Tensor:
        return constrained_softmax(scores, k, temperature=self.temperature, dim=dim)


class ConstrainedSparsemax(_Soft):
    def forward(self, scores: Tensor, k: float, dim: int = -1) -> Tensor:
        return constrained_sparsemax(scores, k, temperature=self.temperature, dim=dim)


class HardTopK(nn.Module):
    def forward(self, scores: Tensor, k: int, dim: int = -1) -> Tensor:
        return hard_topk(scores, k, dim=dim)
