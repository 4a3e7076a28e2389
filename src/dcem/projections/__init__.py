"""Soft and hard top-k: scores to weights in `[0, 1]` that sum to `k`."""

from .functional import constrained_softmax, constrained_sparsemax, hard_topk, lml
from .modules import LML, ConstrainedSoftmax, ConstrainedSparsemax, HardTopK

__all__ = [
    "LML",
    "ConstrainedSoftmax",
    "ConstrainedSparsemax",
    "HardTopK",
    "constrained_softmax",
    "constrained_sparsemax",
    "hard_topk",
    "lml",
]
